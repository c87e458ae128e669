"""What a curve depends on, as digests: the code that computes it, the libraries, the data.

Snakemake does not see edits of imported modules, so the workflow hands it these digests: a curve is computed again
when its digest changes. A digest covers whole folders of this package. Comments, formatting and docstrings do not
count, nor do registered functions (rules, attacks, data sets, models, probes) that are not used.
"""

import ast
import hashlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import DATASETS
from krum.simulation.models import MODELS
from krum.simulation.parameters import Cell
from krum.suite.probes import PROBES, Probe

PACKAGE = Path(__file__).resolve().parents[1]
GROUND = ("registry.py", "errors.py")
LIBRARIES = ("numpy", "pyarrow", "scikit-learn", "torch")
DRAWING_LIBRARIES = ("matplotlib", "pandas", "scipy")
FUNCTIONS = {name: name.replace("-", "_") for name in (*ATTACKS, *DATASETS, *MODELS, *PROBES)}  # of every public name
FUNCTIONS |= {name: rule.function.__name__ for name, rule in AGGREGATORS.items()}
# Read when the code is, so that an edit while this process works does not pass for what it computes.
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


@dataclass(frozen=True)
class Statement:
    """A statement of a module's top level."""

    function: str  # the name of a function, or ""
    decorated: bool
    uses: frozenset[str]  # every name in it
    code: str  # without docstrings


@cache
def code_digest(measured: Cell | Probe) -> str:
    """sha256 over the code and the library versions that decide a cell's curve or a probe's rows."""
    if isinstance(measured, Cell):
        names = (measured.aggregator, measured.compare_with, measured.attack, measured.dataset, measured.model)
        used = frozenset(FUNCTIONS[name] for name in names if name is not None)
        code = [code_in(*GROUND, "rules", "simulation", "suite/store.py", used=used)]
    else:
        folders = ["rules", "distributed", *(["simulation"] if PROBES[measured.name].training else [])]
        code = [code_in(*GROUND, *folders, "suite/store.py", "suite/theory.py")]
        code += [code_in("suite/probes.py", used=frozenset([FUNCTIONS[measured.name]]))]
    return _digest([*code, *(f"{name} {number}" for name, number in libraries().items())])


@cache
def drawing_digest() -> str:
    """sha256 over the code that draws and judges, and the versions of its libraries."""
    return _digest([code_in("suite"), *(f"{name} {version(name)}" for name in DRAWING_LIBRARIES)])


@cache
def code_in(*places: str, used: frozenset[str] | None = None) -> str:
    """sha256 over the code in some files and folders of this package, of registered functions only what `used` need."""
    paths = sorted(path for path in SOURCES for place in places if path == place or path.startswith(f"{place}/"))
    code = [statement for path in paths for statement in statements(SOURCES[path])]
    return _digest(each.code for each in (code if used is None else needed(used, code, FUNCTIONS.values())))


def needed(used: Iterable[str], code: Iterable[Statement], registered: Iterable[str]) -> list[Statement]:
    """Some code without the `registered` functions that those in `used` do not need, directly or through others."""
    names: set[str] = set()
    waiting = list(used)
    while waiting:
        if (name := waiting.pop()) not in names:
            names.add(name)
            waiting += [other for each in code if each.function == name for other in each.uses]
    unneeded = set(registered) - names
    return [each for each in code if not (each.decorated and each.function in unneeded)]


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


@cache
def statements(source: str) -> list[Statement]:
    """The statements of a module's top level, in order."""
    result = []
    for node in _WithoutDocstrings().visit(ast.parse(source)).body:
        uses = frozenset(each.id for each in ast.walk(node) if isinstance(each, ast.Name))
        is_function = isinstance(node, ast.FunctionDef)
        decorated = is_function and bool(node.decorator_list)
        result.append(Statement(node.name if is_function else "", decorated, uses, ast.dump(node)))
    return result


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


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
