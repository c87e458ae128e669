"""What is stale: data against their checksums, results against code, data and YAML, figures against results."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.cell import Cell
from krum.suite import experiment, provenance, store
from krum.suite.experiment import Experiment, Probe


def verify(
    results: Path, figures: Path, experiments: Path = experiment.EXPERIMENTS, data: Path = datasets.DATA
) -> Iterator[tuple[Path, str | None]]:
    """Every file of the data, results and figures that is there, and what is wrong with it in a few words, or None."""
    for name, entry in datasets.DATASETS.items():
        for file in entry.checksums:
            path = datasets.find(data, file)
            if path is not None:
                yield path, _why(lambda name=name, file=file: datasets.read_checked(data, name, file))
    wanted: set[str] = set()
    for path in sorted(Path(results).glob("*.parquet")):
        problem, its = _of_experiment(path, experiments)
        wanted |= its
        yield path, problem
    known = wanted.union(*(slugs(spec) for spec in experiment.load_all(experiments).values()))
    for path in sorted([*Path(results, "curves").glob("*.parquet"), *Path(results, "probes").glob("*.parquet")]):
        yield path, _of_part(path, known)
    for path in sorted([*Path(figures).glob("*.png"), *Path(figures).glob("*.pdf")]):
        yield path, _of_figure(path, Path(results, f"{path.stem}.parquet"))


def _why(check: Any) -> str | None:
    """What a check has to say against a file."""
    try:
        check()
    except InputError as error:
        return str(error)
    return None


def slugs(spec: Experiment) -> set[str]:
    """The names of an experiment's curves and probes."""
    return {cell.slug for cell in spec.cells} | {probe.slug for probe in spec.probes}


def _of_experiment(path: Path, experiments: Path) -> tuple[str | None, set[str]]:
    """What is wrong with an experiment's results, or a scorecard; and the parts that belong to it."""
    try:
        _, metadata = store.read(path)
    except InputError as error:
        return str(error), set()
    if "digests" in metadata:
        changed = [
            name
            for name, digest in metadata["digests"].items()
            if not path.with_name(f"{name}.parquet").is_file()
            or store.file_digest(path.with_name(f"{name}.parquet")) != digest
        ]
        return (f"judged other results of {', '.join(changed)} than those that are here" if changed else None), set()
    yaml = experiments / f"{path.stem}.yaml"
    if "experiment" not in metadata or metadata["experiment"]["name"] != path.stem:
        return "holds no results of an experiment of its name", set()
    if not yaml.is_file():
        return f"its experiment, {yaml}, is gone", set()
    spec = experiment.load(yaml, metadata["overrides"])
    parts = slugs(spec)
    found = metadata["curves"]
    if metadata["yaml"] != spec.source:
        return f"{yaml} has changed since", parts
    if not set(found) <= parts:
        return f"holds {len(set(found) - parts)} curves or probes that {yaml} does not ask for", parts
    stale = [problem for part in found.values() if (problem := _stale(part))]
    return (f"{len(stale)} of its {len(found)} curves and probes: {stale[0]}" if stale else None), parts


def _of_part(path: Path, known: set[str]) -> str | None:
    """What is wrong with a curve or a probe."""
    try:
        _, metadata = store.read(path)
    except InputError as error:
        return str(error)
    if "cell" not in metadata and "probe" not in metadata:
        return "is neither a curve nor a probe"
    if (problem := _stale(metadata)) is not None:
        return problem
    if part_of(metadata).slug != path.stem:
        return f"holds {part_of(metadata).slug}"
    return None if path.stem in known else "no experiment asks for it"


def part_of(metadata: Mapping[str, Any]) -> Cell | Probe:
    """The cell or probe whose rows a file holds."""
    if "probe" in metadata:
        return Probe.from_json(json.dumps(metadata["probe"]))
    return experiment.cell_from_json(json.dumps(metadata["cell"]))


def code_digest(part: Cell | Probe) -> str:
    """Today's digest of the code that computes a curve or probe."""
    return provenance.probe_digest(part) if isinstance(part, Probe) else provenance.code_digest(part)


def _stale(metadata: Mapping[str, Any]) -> str | None:
    """Why a curve or probe is not what today's code would compute from today's data."""
    try:
        part = part_of(metadata)
        today = code_digest(part)
    except (InputError, KeyError, TypeError, ValueError) as error:
        return f"today's code knows no such cell ({' '.join(str(error).split())[:80]})"
    if metadata["code"] != today:
        return "computed by other code or libraries than today's"
    if part.dataset is not None and metadata["data"] != datasets.DATASETS[part.dataset].checksums:
        return "computed from other data than today's"
    return None


def _of_figure(path: Path, results: Path) -> str | None:
    """What is wrong with a figure: it says whose results it shows."""
    if not results.is_file():
        return f"its results, {results}, are gone"
    if store.file_digest(results).encode() not in path.read_bytes():
        return f"shows other results than {results}"
    return None
