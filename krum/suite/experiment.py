"""Experiments: YAML files under experiments/, unfolded into cells and probes, and checked before anything runs.

An experiment's grid is a list of blocks. In a block every parameter takes a value or a list of values, and stands for
the product of its lists. What a block leaves out comes from the experiment's own `parameters`, then from the defaults
of `krum.simulation.parameters.Cell`. A cell is one curve: one combination, with all its seeds.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krum.errors import InputError, located
from krum.simulation.parameters import FIELDS, Cell, byzantine_count, complete, frozen, make_cell
from krum.suite import figures
from krum.suite.probes import Probe
from krum.suite.reading import EXPERIMENTS, read_checked

NOT_EXPERIMENTS = ("claims", "fidelity", "schema")


@dataclass(frozen=True)
class Experiment:
    """A validated experiment: its cells and probes in the order of the YAML, and how to draw them."""

    name: str
    title: str
    claim: str
    figure: Mapping[str, Any]
    cells: tuple[Cell, ...]
    probes: tuple[Probe, ...]
    part: str  # paper, supplement, beyond or review: whose figure it is
    fidelity: Mapping[str, str]  # parameter -> who says so (paper, supplement, ours) and why
    overrides: Mapping[str, Any]

    @property
    def measured(self) -> tuple[Cell | Probe, ...]:
        """Everything that it takes: its cells, then its probes."""
        return (*self.cells, *self.probes)


def load_all(folder: Path = EXPERIMENTS, overrides: Mapping[str, Any] | None = None) -> dict[str, Experiment]:
    """Every experiment in the folder, by name. Raises InputError for the first that cannot be run as it stands."""
    paths = sorted(path for path in Path(folder).glob("*.yaml") if path.stem not in NOT_EXPERIMENTS)
    return {path.stem: load(path, overrides) for path in paths}


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """One experiment. `overrides` are parameters that win over everything in the file, for a small run.

    Raises InputError for the first mistake in the file, in fidelity.yaml or in the overrides.
    """
    path, overrides = Path(path), overrides or {}
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", path.stem):
        raise InputError(f"{path}: the file's name names the experiment; give small letters, digits, - and _")
    document = read_checked(path, "experiment")
    for where, parameters in ((f"{path}: parameters", document.get("parameters", {})), ("overrides", overrides)):
        with located(where):
            complete(parameters)
    cells, measured = _cells(path, document, overrides), _probes(path, document, overrides)
    if not cells and not measured:
        raise InputError(f"{path}: nothing to run; give a grid of training runs, or probes")
    figure = figures.check(f"{path}: figure", document["figure"], cells, {probe.name for probe in measured})
    general = path.parent / "fidelity.yaml"
    if not general.exists():  # a file of one's own, elsewhere
        general = EXPERIMENTS / general.name
    return Experiment(
        name=path.stem,
        title=document["title"],
        claim=document["claim"],
        figure=figure,
        cells=tuple(dict.fromkeys(cells)),
        probes=tuple(dict.fromkeys(measured)),
        part=document.get("part", "beyond"),
        fidelity={**read_checked(general, "fidelity"), **document.get("fidelity", {})},
        overrides=overrides,
    )


# ------------------------------------------------------------------------------------- from blocks to cells and probes


def _combinations(path: Path, document: Mapping[str, Any], part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each combination of the blocks of a part stands, and its values."""
    for number, block in enumerate(document.get(part, [])):
        lists = [value if isinstance(value, list) else [value] for value in block.values()]
        for values in itertools.product(*lists):
            yield f"{path}: {part}[{number}]", dict(zip(block, values, strict=True))


def _cells(path: Path, document: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[Cell]:
    combinations, cells, most = [], [], 0
    for where, values in _combinations(path, document, "grid"):
        given = {**document.get("parameters", {}), **values, **overrides}
        combinations.append((where, given))
        with located(where):
            most = max(most, byzantine_count(complete(given)))
    # A defender does not know whether it is attacked: declared_f is the most that the experiment ever meets.
    for where, given in combinations:
        with located(where):
            cells.append(make_cell({"declared_f": most, **given}, document.get("outside_guarantee", False)))
    return cells


def _probes(path: Path, document: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[Probe]:
    measured = []
    shared = document.get("parameters", {}).get("seeds", FIELDS["seeds"].default)
    for where, options in _combinations(path, document, "probes"):
        name, seeds = options.pop("name"), overrides.get("seeds", options.pop("seeds", shared))
        with located(where):
            measured.append(Probe(name, frozen(options), seeds).validated())
    return measured
