"""What a curve depends on, as digests: the code that computes it, the libraries, the data.

Snakemake does not see edits of imported modules, so the workflow hands it these digests: a curve is computed again
when its digest changes. A digest covers what the function that computes a curve mentions, and what that mentions, and
so on. Comments, formatting and docstrings do not count, nor does a rule, an attack or a data set that is not used.
"""

import ast
import hashlib
import subprocess
from collections import defaultdict
from collections.abc import Iterable
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
LIBRARIES = ("numpy", "pyarrow", "scikit-learn", "torch")
DRAWING_LIBRARIES = ("matplotlib", "pandas", "scipy")
GROUND = ("registry.py", "errors.py", "rules", "simulation", "suite/store.py")
FUNCTIONS = {name: name.replace("-", "_") for name in (*ATTACKS, *DATASETS, *MODELS, *PROBES)}  # of every public name
FUNCTIONS |= {name: rule.function.__name__ for name, rule in AGGREGATORS.items()}
# Read when the code is, so that an edit while this process works does not pass for what it computes.
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def code_digest(measured: Cell | Probe) -> str:
    """sha256 over the code and the library versions that decide a cell's curve or a probe's rows."""
    if isinstance(measured, Cell):
        names = (measured.aggregator, measured.compare_with, measured.attack, measured.dataset, measured.model)
        used = {FUNCTIONS[name] for name in names if name is not None}
        code = code_in(*GROUND, needs=frozenset({"simulate", "write_curve", *used}))
    else:  # a probe may name any rule or data set
        used = {function for name, function in FUNCTIONS.items() if name not in PROBES}
        needs = frozenset({"run_probe", "write_probe", FUNCTIONS[measured.name], *used})
        code = code_in(*GROUND, "distributed", "suite/theory.py", "suite/probes.py", needs=needs)
    return _digest([code, *(f"{name} {number}" for name, number in libraries().items())])


@cache
def drawing_digest() -> str:
    """sha256 over the code that draws and judges, and the versions of its libraries."""
    return _digest([code_in("suite"), *(f"{name} {version(name)}" for name in DRAWING_LIBRARIES)])


@cache
def code_in(*places: str, needs: frozenset[str] | None = None) -> str:
    """sha256 over the code in some files and folders of this package, or what some functions in it need."""
    code = []
    for path, source in SOURCES.items():
        if any(path == place or path.startswith(f"{place}/") for place in places):
            code += statements(source)
    return _digest(map(_text, code if needs is None else needed(needs, code, FUNCTIONS.values())))


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


@cache
def statements(source: str) -> list[ast.stmt]:
    """The statements of a module's top level, without docstrings, and with one for each imported name."""
    found: list[ast.stmt] = []
    for node in _WithoutDocstrings().visit(ast.parse(source)).body:
        if isinstance(node, ast.ImportFrom):
            found += [ast.ImportFrom(node.module, [name], node.level) for name in node.names]
        elif isinstance(node, ast.Import):
            found += [ast.Import([name]) for name in node.names]
        else:
            found.append(node)
    return found


_text = cache(ast.dump)


@cache
def _mentioned(node: ast.stmt) -> tuple[set[str], set[str]]:
    """The names in a statement, and the attributes."""
    names, attributes = set(), set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            names.add(part.id)
        elif isinstance(part, ast.alias):
            names.add(part.name)
        elif isinstance(part, ast.Attribute):
            attributes.add(part.attr)
    return names, attributes


@cache
def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement of a module's top level gives to something."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def needed(names: Iterable[str], code: Iterable[ast.stmt], registered: Iterable[str]) -> list[ast.stmt]:
    """Of some code what these names need, directly or through others, and what defines no name.

    A `registered` function is needed where it is named; an attribute, such as a tensor's `median`, is another thing.
    """
    code, registered = list(code), set(registered)
    by_name, by_attribute = defaultdict(list), defaultdict(list)
    for node in code:
        for name in _defined(node):
            by_name[name].append(node)
            if not (name in registered and isinstance(node, ast.FunctionDef) and node.decorator_list):
                by_attribute[name].append(node)
    kept: set[ast.stmt] = set()
    waiting = [node for node in code if not _defined(node)] + [node for name in names for node in by_name[name]]
    while waiting:
        if (node := waiting.pop()) not in kept:
            kept.add(node)
            mentioned, attributes = _mentioned(node)
            waiting += [other for name in mentioned for other in by_name[name]]
            waiting += [other for name in attributes for other in by_attribute[name]]
    return [node for node in code if node in kept]


@cache
def libraries() -> dict[str, str]:
    """The versions of the libraries that compute."""
    return {name: version(name) for name in LIBRARIES}


def git_commit() -> str:
    """The project's commit, with "-dirty" where files differ from it or are new; "unknown" outside its checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(PACKAGE / "__init__.py"))  # not just within somebody else's project
        commit = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        new = git("ls-files", "--others", "--exclude-standard", "krum", "experiments")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if new and not commit.endswith("-dirty") else commit


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
