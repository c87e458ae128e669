"""A digest changes with the code that a curve needs, and with nothing else."""

from krum.suite import provenance

SOURCE = '''
"""Module."""
FACTOR = 2

@rule()
def one(x):
    """First."""
    return FACTOR * helper(x)

@rule()
def two(x):
    return one(x) + 1

@rule()
def three(x):
    return x

def helper(x):
    return x
'''


def digest(source, function):
    return provenance._registered("any", function, source)


def changed(before, after):
    assert before in SOURCE
    edited = SOURCE.replace(before, after)
    return {name for name in ("one", "two", "three") if digest(SOURCE, name) != digest(edited, name)}


def test_editing_a_rule_touches_it_and_those_that_call_it():
    assert changed("FACTOR * helper", "FACTOR + helper") == {"one", "two"}
    assert changed("one(x) + 1", "one(x) + 2") == {"two"}
    assert changed("def three(x):\n    return x", "def three(x):\n    return -x") == {"three"}


def test_editing_what_all_share_touches_all():
    assert changed("FACTOR = 2", "FACTOR = 3") == {"one", "two", "three"}


def test_what_a_helper_calls_counts():
    calling = SOURCE.replace("def helper(x):\n    return x", "def helper(x):\n    return three(x)")
    edited = calling.replace("def three(x):\n    return x", "def three(x):\n    return -x")
    assert digest(calling, "one") != digest(edited, "one")


def test_words_do_not_count():
    assert changed('"""First."""', '"""Primus."""') == set()
    assert changed("FACTOR = 2", "FACTOR = 2  # twice") == set()


def test_adding_a_rule_touches_none():
    assert changed("def helper", "@rule()\ndef four(x):\n    return x\n\ndef helper") == set()


def test_cells_of_one_rule_share_a_digest_and_rules_do_not(make_cell):
    assert provenance.code_digest(make_cell()) == provenance.code_digest(make_cell(batch_size=1))
    different = {provenance.code_digest(make_cell(aggregator=name)) for name in ("krum", "average", "medoid")}
    assert len(different) == 3
    assert provenance.code_digest(make_cell()) != provenance.code_digest(make_cell(attack="gaussian"))
