"""What a curve depends on, as digests: the code that computes it, the libraries, the data.

Snakemake does not see edits of imported modules, so the workflow hands it these digests: a curve is computed again
when its digest changes. Comments, formatting and docstrings do not count, nor do aggregators and attacks that the
curve does not use.
"""

import ast
import hashlib
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.cell import Cell
from krum.suite.experiment import Probe
from krum.suite.probes import PROBES

PACKAGE = Path(__file__).resolve().parents[1]
ENGINE = (
    "adversary",
    "datasets",
    "deformations",
    "distances",
    "draws",
    "full_gradient",
    "gradients",
    "models",
    "recording",
    "round",
    "run",
    "store",
)
AGGREGATION = ("aggregation", "aggregators", "distances", "kernels", "selection", "store", "theory", "vectors")
LIBRARIES = ("numpy", "pyarrow", "scikit-learn", "torch")
# Read when the code is, so that an edit while this process works does not pass for what it computes.
SOURCES = {
    (path.parent.name if path.stem == "__init__" else path.stem): path.read_text(encoding="utf-8")
    for path in PACKAGE.glob("*/**/*.py")
}


def code_digest(cell: Cell) -> str:
    """sha256 over the code and the library versions that decide the cell's curve."""
    parts = [_module(name) for name in ENGINE]
    rules = [cell.aggregator] if cell.compare_with is None else [cell.aggregator, cell.compare_with]
    parts += [_registered("aggregators", AGGREGATORS[name].function.__name__) for name in rules]
    parts.append(_registered("attacks", ATTACKS[cell.attack].function.__name__))
    parts += [f"{name} {number}" for name, number in libraries().items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def probe_digest(probe: Probe) -> str:
    """sha256 over the code and the library versions that decide the probe's rows."""
    parts = [_module(name) for name in AGGREGATION]
    registered = PROBES[probe.name]
    if registered.training:
        parts += [_module(name) for name in (*ENGINE, "attacks")]
    parts += [_module(name) for name in registered.uses]
    parts.append(_registered("probes", registered.function.__name__))
    parts += [f"{name} {number}" for name, number in libraries().items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def module_digest(name: str) -> str:
    """sha256 over one module's code."""
    return hashlib.sha256(_module(name).encode()).hexdigest()


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


@cache
def _module(name: str) -> str:
    return _dump(ast.parse(SOURCES[name]))


@cache
def _registered(module: str, function: str, source: str | None = None) -> str:
    """A module without the registered functions that `function` does not use, directly or through others."""
    tree = ast.parse(SOURCES[module] if source is None else source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    registered = {name for name, node in functions.items() if node.decorator_list}
    used, waiting = set(), [function]
    while waiting:
        name = waiting.pop()
        if name in functions and name not in used:
            used.add(name)
            waiting += [node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)]
    tree.body = [node for node in tree.body if getattr(node, "name", None) not in registered - used]
    return _dump(tree)


def _dump(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body and _is_docstring(body[0]):
            node.body = body[1:]
    return ast.dump(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
