"""What the documentation says of the public names, and that its examples are true."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import krum
from krum.distributed import ddp as parallel
from krum.distributed import sharded
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "krum").rglob("[a-z]*.py"))


def public_functions(name):
    """A module's own functions, without their decorators."""
    module = importlib.import_module(name)
    for key, value in vars(module).items():
        found = inspect.unwrap(value) if callable(value) else None
        if inspect.isfunction(found) and found.__module__ == module.__name__ and not key.startswith("_"):
            yield key, found


def test_examples():
    """pytest finds none behind a decorator."""
    tried = 0
    for name in MODULES:
        module = vars(importlib.import_module(name))
        for key, function in public_functions(name):
            for example in doctest.DocTestFinder(recurse=False).find(function, key, globs=dict(module)):
                if example.examples:
                    assert doctest.DocTestRunner().run(example).failed == 0, key
                    tried += len(example.examples)
    assert tried >= 8


@pytest.mark.parametrize("function", [krum.aggregate, krum.weights, sharded.aggregate, parallel.aggregate_with])
def test_the_interface_says_what_goes_in_and_out(function):
    text = inspect.getdoc(inspect.unwrap(function))
    for section in ["Args:", "Raises:"] + (["Returns:"] if function is not parallel.aggregate_with else []):
        assert section in text, section
    for name in inspect.signature(inspect.unwrap(function)).parameters:
        assert re.search(rf"\b{name}\b", text), name
    assert re.search(r"\[[^\]]*\bn\b[^\]]*\]", text) or function is parallel.aggregate_with, "shapes"


@pytest.mark.parametrize("name", [*AGGREGATORS, *(name for name in ATTACKS if name != "none")])
def test_rules_and_attacks_name_their_source(name):
    function = AGGREGATORS[name].function if name in AGGREGATORS else ATTACKS[name].function
    source = r"\b(19|20)\d\d\b|Blanchard et al|\(ours\)|\([\w']+ [\w ]*\d\.\d"
    assert re.search(source, inspect.getdoc(function)), "who says so: a paper with its year, a library, or (ours)"


@pytest.mark.parametrize("name", MODULES)
def test_functions_that_refuse_say_so(name):
    """Where a public function raises InputError itself, its docstring says when."""
    for node in ast.walk(ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            raised = [part.exc.func.id for part in ast.walk(node) if is_call(getattr(part, "exc", None))]
            text = ast.get_docstring(node) or ""
            if "InputError" in raised:
                assert re.search("Raise|InputError|[Rr]efuse|as in `", text), node.name


def is_call(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_what_reliability_md_says_was_survived():
    """Enough of everything, as `make torture` counted it."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    found = {what: int(number.replace(",", "")) for what, number in re.findall(r"^\| (.+) \| ([\d,]+) \|$", page, re.M)}
    assert found["kills survived"] >= 10
    assert found["bad inputs refused in one line"] >= 60
    assert found["vectors drawn for a rule"] + found["rounds drawn for an attack"] >= 100_000
    assert found["files drawn for a reader"] >= 50_000
