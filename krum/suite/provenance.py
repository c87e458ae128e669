"""What a curve depends on, as digests: the code that computes it, the libraries, the data.

Snakemake does not see edits of imported modules, so the workflow hands it these digests: a curve is computed again
when its digest changes. A digest covers whole folders of this package. Comments, formatting and docstrings do not
count, nor do registered functions (rules, attacks, data sets, models, probes) that are not used.
"""

import ast
import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.cell import Cell
from krum.simulation.datasets import DATASETS
from krum.simulation.models import MODELS
from krum.suite.probes import PROBES, Probe

PACKAGE = Path(__file__).resolve().parents[1]
GROUND = ("registry.py", "errors.py")
LIBRARIES = ("numpy", "pyarrow", "scikit-learn", "torch")
DRAWING_LIBRARIES = ("matplotlib", "pandas", "scipy")
REGISTRIES: tuple[Mapping[str, Any], ...] = (AGGREGATORS, ATTACKS, DATASETS, MODELS, PROBES)
FUNCTIONS = {  # of every public name
    name: entry.function.__name__ if hasattr(entry, "function") else name.replace("-", "_")
    for registry in REGISTRIES
    for name, entry in registry.items()
}
# Read when the code is, so that an edit while this process works does not pass for what it computes.
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


@dataclass(frozen=True)
class Statement:
    """A statement of a module's top level."""

    function: str | None  # the name of a function
    decorated: bool
    uses: frozenset[str]  # every name in it
    digest: str  # of its code, without docstrings


@cache
def code_digest(measured: Cell | Probe) -> str:
    """sha256 over the code and the library versions that decide a cell's curve or a probe's rows."""
    if isinstance(measured, Cell):
        used = (measured.aggregator, measured.compare_with, measured.attack, measured.dataset, measured.model)
        functions = frozenset(FUNCTIONS[name] for name in used if name is not None)
        parts = [sliced(functions, *GROUND, "rules", "simulation", "suite/store.py")]
    else:
        folders = ["rules", "distributed", *(["simulation"] if PROBES[measured.name].training else [])]
        parts = [whole(*GROUND, *folders, "suite/store.py", "suite/theory.py")]
        parts += [sliced(frozenset([FUNCTIONS[measured.name]]), "suite/probes.py")]
    return _digest([*parts, *(f"{name} {number}" for name, number in libraries().items())])


def drawing_digest() -> str:
    """sha256 over the code that draws and judges, and the versions of its libraries."""
    return _digest([whole("suite"), *(f"{name} {version(name)}" for name in DRAWING_LIBRARIES)])


@cache
def whole(*places: str) -> str:
    """sha256 over all code in some files and folders of this package."""
    return _digest(each.digest for path in _paths(places) for each in statements(SOURCES[path]))


@cache
def sliced(used: frozenset[str], *places: str) -> str:
    """The same, without the registered functions that those in `used` do not need, directly or through others."""
    return slice_digest(used, [SOURCES[path] for path in _paths(places)], FUNCTIONS.values())


def slice_digest(used: Iterable[str], sources: Iterable[str], registered: Iterable[str]) -> str:
    """sha256 over some modules, without the `registered` functions that those in `used` do not need."""
    code = [statement for source in sources for statement in statements(source)]
    needed: set[str] = set()
    waiting = list(used)
    while waiting:
        if (name := waiting.pop()) not in needed:
            needed.add(name)
            waiting += [other for each in code if each.function == name for other in each.uses]
    unneeded = set(registered) - needed
    return _digest(each.digest for each in code if not (each.decorated and each.function in unneeded))


@cache
def statements(source: str) -> list[Statement]:
    """The statements of a module's top level, in order."""
    found = []
    for node in ast.parse(source).body:
        _drop_docstrings(node)
        names = frozenset(each.id for each in ast.walk(node) if isinstance(each, ast.Name))
        name, decorated = (node.name, bool(node.decorator_list)) if isinstance(node, ast.FunctionDef) else (None, False)
        found.append(Statement(name, decorated, names, _digest([ast.dump(node)])))
    return found


@cache
def libraries() -> dict[str, str]:
    """The versions of the libraries that compute."""
    return {name: version(name) for name in LIBRARIES}


def git_commit() -> str:
    """The project's commit, with "-dirty" where files have changed since; "unknown" outside a git checkout."""
    command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _paths(places: Iterable[str]) -> list[str]:
    """The modules in some files and folders."""
    return sorted(path for path in SOURCES for place in places if path == place or path.startswith(f"{place}/"))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _drop_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
