"""What the documentation says of the public names, and that its examples are true."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import krum
from krum.distributed import ddp, sharded
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "krum").rglob("[a-z]*.py"))


def public_functions(name):
    """A module's own functions, without their decorators."""
    module = importlib.import_module(name)
    for key, value in vars(module).items():
        function = inspect.unwrap(value) if callable(value) else None
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not key.startswith("_"):
            yield key, function


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


def test_the_interface_says_what_goes_in_and_out():
    for function in (krum.aggregate, krum.weights, sharded.aggregate, ddp.aggregate_with):
        text = inspect.getdoc(inspect.unwrap(function))
        for section in ["Args:", "Raises:"] + (["Returns:"] if function is not ddp.aggregate_with else []):
            assert section in text, (function, section)
        for name in inspect.signature(inspect.unwrap(function)).parameters:
            assert re.search(rf"\b{name}\b", text), (function, name)
        assert re.search(r"\[[^\]]*\bn\b[^\]]*\]", text) or function is ddp.aggregate_with, "shapes"


def test_rules_and_attacks_name_their_source():
    """A paper with its year, a library with its version, or (ours)."""
    source = r"\b(19|20)\d\d\b|Blanchard et al|\(ours\)|\([\w']+ [\w ]*\d\.\d"
    for registered in [*AGGREGATORS.values(), *(attack for name, attack in ATTACKS.items() if name != "none")]:
        assert re.search(source, inspect.getdoc(registered.function)), registered.name


def test_functions_that_refuse_say_so():
    """Where a public function raises InputError itself, its docstring says when."""
    silent = []
    for name in MODULES:
        module = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
        for node in [*module.body, *(part for kind in module.body if is_class(kind) for part in kind.body)]:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                raised = [part.exc.func.id for part in ast.walk(node) if is_call(getattr(part, "exc", None))]
                text = ast.get_docstring(node) or ""
                if "InputError" in raised and not re.search("Raise|InputError|[Rr]efuse|as in `", text):
                    silent.append(f"{name}.{node.name}")
    assert silent == []


def is_class(node):
    return isinstance(node, ast.ClassDef)


def is_call(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_what_reliability_md_says_was_survived():
    """Enough of everything, as `make torture` counted it."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    survived = {
        what: int(number.replace(",", "")) for what, number in re.findall(r"^\| (.+) \| ([\d,]+) \|$", page, re.M)
    }
    assert survived["kills survived"] >= 10
    assert survived["bad inputs refused in one line"] >= 60
    assert survived["vectors drawn for a rule"] + survived["rounds drawn for an attack"] >= 100_000
    assert survived["files drawn for a reader"] >= 10_000
