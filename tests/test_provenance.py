"""A digest changes with the code that a curve needs, and with nothing else."""

import ast
import subprocess

from krum.suite import provenance

RULES = '''
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

@cached
def helper(x):
    return x
'''
OTHERS = "@rule()\ndef four(x):\n    return two(x)\n"
NAMES = ("one", "two", "three", "four")


def code(name, rules=RULES, registered=NAMES):
    """What the digest of that rule covers."""
    statements = [*provenance.statements(rules), *provenance.statements(OTHERS)]
    return [ast.dump(each) for each in provenance.needed([name], statements, registered)]


def changed(before, after, source=RULES):
    assert before in source
    return {name for name in NAMES if code(name, source) != code(name, source.replace(before, after))}


def test_editing_a_rule_touches_it_and_those_that_call_it():
    assert changed("FACTOR * helper", "FACTOR + helper") == {"one", "two", "four"}
    assert changed("one(x) + 1", "one(x) + 2") == {"two", "four"}
    assert changed("def three(x):\n    return x", "def three(x):\n    return -x") == {"three"}


def test_editing_what_others_share_touches_them():
    assert changed("FACTOR = 2", "FACTOR = 3") == {"one", "two", "four"}
    assert changed("def helper(x):\n    return x", "def helper(x):\n    return -x") == {"one", "two", "four"}
    shared = RULES.replace("    return x\n\n@cached", "    return all_use(x)\n\n@cached")
    shared += "\ndef all_use(x):\n    return helper(FACTOR * x)\n"
    assert changed("FACTOR = 2", "FACTOR = 3", shared) == set(NAMES)
    assert changed("def helper(x):\n    return x", "def helper(x):\n    return -x", shared) == set(NAMES)


def test_what_a_helper_calls_counts():
    calling = RULES.replace("def helper(x):\n    return x", "def helper(x):\n    return three(x)")
    assert "one" in changed("def three(x):\n    return x", "def three(x):\n    return -x", calling)


def test_words_do_not_count_nor_do_rules_that_are_added():
    assert changed('"""First."""', '"""Primus."""') == set()
    assert changed('"""First."""\n    return', "return") == set()
    assert changed("FACTOR = 2", "FACTOR = 2  # twice") == set()
    five = "from numbers import Five\nFIVE = Five()\ndef times(x):\n    return FIVE * x\n\n"
    five += "@rule(FIVE)\ndef five(x):\n    return times(x)\n"
    added = RULES.replace("@cached", f"{five}\n@cached")
    assert code("one", added, [*NAMES, "five"]) == code("one"), "with what only the new rule mentions"
    assert code("five", added, [*NAMES, "five"]) != code("five", added.replace("FIVE * x", "x"), [*NAMES, "five"])


def test_editing_this_package_touches_the_cells_that_need_it(make_cell, monkeypatch):
    rules = ("average", "krum", "medoid")
    cells = {
        (rule, attack): make_cell(aggregator=rule, attack=attack) for rule in rules for attack in ("none", "gaussian")
    }

    def digests():
        provenance.code_in.cache_clear(), provenance.code_digest.cache_clear()
        return {key: provenance.code_digest(cell) for key, cell in cells.items()}

    before = digests()
    for function, touched in (
        ("krum", {key for key in cells if key[0] == "krum"}),
        ("gaussian", {key for key in cells if key[1] == "gaussian"}),
        ("timing", set()),
    ):
        (path,) = (path for path, text in provenance.SOURCES.items() if f"\ndef {function}(" in text)
        edited = provenance.SOURCES[path].replace(f"\ndef {function}(", f"\ndef {function}(edited, ")
        with monkeypatch.context() as patch:
            patch.setitem(provenance.SOURCES, path, edited)
            assert {key for key, digest in digests().items() if digest != before[key]} == touched, function
    monkeypatch.setitem(provenance.SOURCES, "simulation/run.py", provenance.SOURCES["simulation/run.py"] + "EDITED()")
    assert all(digest != before[key] for key, digest in digests().items())
    monkeypatch.undo()
    assert digests() == before


def test_adding_a_data_set_touches_no_curve(make_cell, monkeypatch):
    """Nor does a file of its own, as for its download."""
    cells = [make_cell(), make_cell(dataset="mnist"), make_cell(attack="gaussian")]

    def digests():
        provenance.code_in.cache_clear(), provenance.code_digest.cache_clear()
        return [provenance.code_digest(cell) for cell in cells]

    before, path = digests(), "simulation/datasets.py"
    added = "import wave\nfrom krum.simulation import moons_download\nMOONS = {'samples': 100}\n"
    added += "@dataset(**MOONS, fetch=moons_download.obtain_moons)\n"
    added += "def moons(folder):\n    return wave.open(folder)\n"
    download = "AT = 'https://'\ndef obtain_moons(folder):\n    return fetch_moons(AT)\n"
    download += "def fetch_moons(at):\n    return at\n"
    monkeypatch.setitem(provenance.SOURCES, path, f"{provenance.SOURCES[path]}\n{added}")
    monkeypatch.setitem(provenance.SOURCES, "simulation/moons_download.py", download)
    monkeypatch.setitem(provenance.FUNCTIONS, "moons", "moons")
    assert digests() == before
    monkeypatch.undo()
    assert digests() == before


def test_results_tell_that_files_were_changed(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    package = tmp_path / "krum"
    monkeypatch.setattr(provenance, "PACKAGE", package)
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("init")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-m", "another project")
    assert provenance.git_commit() == "unknown", "installed below another project"
    git("add", ".")
    git("commit", "-m", "this project")
    commit = provenance.git_commit()
    assert len(commit) == 40
    (tmp_path / "notes").write_text("")
    assert provenance.git_commit() == commit
    (package / "new.py").write_text("")
    assert provenance.git_commit() == f"{commit}-dirty"
    (package / "new.py").unlink()
    (package / "__init__.py").write_text("EDITED = 1")
    assert provenance.git_commit() == f"{commit}-dirty"


def test_cells_of_one_rule_share_a_digest_and_rules_do_not(make_cell):
    assert provenance.code_digest(make_cell()) == provenance.code_digest(make_cell(batch_size=1))
    different = {provenance.code_digest(make_cell(aggregator=name)) for name in ("krum", "average", "1-p-krum")}
    assert len(different) == 3
    assert provenance.code_digest(make_cell()) != provenance.code_digest(make_cell(attack="gaussian"))
    assert provenance.code_digest(make_cell()) != provenance.code_digest(make_cell(compare_with="medoid"))
