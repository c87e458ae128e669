"""What a curve depends on, as digests: the code that computes it, the libraries, the data.

Snakemake does not see edits of imported modules, so the workflow hands it these digests: a curve is computed again
when its digest changes. A digest covers whole folders of this package. Comments, formatting and docstrings do not
count, nor do registered functions (rules, attacks, data sets, models, probes) that are not used, nor what only these
mention.
"""

import ast
import hashlib
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable
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
        code = [code_in(*GROUND, used=frozenset(FUNCTIONS[name] for name in names if name is not None))]
    else:
        code = [code_in(*GROUND, "distributed", "suite/theory.py")]
        code += [code_in("suite/probes.py", used=frozenset([FUNCTIONS[measured.name]]))]
    return _digest([*code, *(f"{name} {number}" for name, number in libraries().items())])


@cache
def drawing_digest() -> str:
    """sha256 over the code that draws and judges, and the versions of its libraries."""
    return _digest([code_in("suite"), *(f"{name} {version(name)}" for name in DRAWING_LIBRARIES)])


@cache
def code_in(*places: str, used: frozenset[str] | None = None) -> str:
    """sha256 over the code in some files and folders of this package, of registered functions only what `used` need."""
    code = []
    for path, source in SOURCES.items():
        if any(path == place or path.startswith(f"{place}/") for place in places):
            code += statements(source)
    return _digest(map(_text, code if used is None else needed(used, code, FUNCTIONS.values())))


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
def _names(node: ast.stmt) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


@cache
def _mentioned(node: ast.stmt) -> set[str]:
    """The names and attributes in a statement, and what it imports under another name."""
    attributes = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    renamed = {part.name for part in ast.walk(node) if isinstance(part, ast.alias) and part.asname}
    return _names(node) | attributes | renamed


@cache
def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement of a module's top level gives to something."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


def needed(used: Iterable[str], code: Iterable[ast.stmt], registered: Collection[str]) -> list[ast.stmt]:
    """Some code without the `registered` functions that those in `used` do not need, directly or through others.

    What only these mention goes with them: an import, a constant, a helper.
    """
    code = list(code)
    functions = [node for node in code if isinstance(node, ast.FunctionDef)]
    names: set[str] = set()
    waiting = list(used)
    while waiting:
        if (name := waiting.pop()) not in names:
            names.add(name)
            waiting += [other for node in functions if node.name == name for other in _names(node)]
    gone: list[ast.stmt] = []
    going: list[ast.stmt] = [node for node in functions if node.decorator_list and node.name in set(registered) - names]
    while going:
        gone += going
        left = set(going)
        code = [node for node in code if node not in left]
        theirs = set().union(*map(_mentioned, gone))
        mentions = Counter(name for node in code for name in _mentioned(node))
        going = [
            node
            for node in code
            if (defined := _defined(node))
            and not defined & names
            and all(name in theirs and mentions[name] == (name in _mentioned(node)) for name in defined)
        ]
    return code


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
