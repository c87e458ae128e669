"""The command line that the workflow calls: one command per step, each reading files and writing one.

A command is a function: what comes before `*` are its arguments, what comes behind are its options, and the text in an
annotation is the help.
"""

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pyarrow as pa
import torch
from tqdm import tqdm

from krum.errors import InputError, located
from krum.simulation import datasets, run
from krum.simulation.parameters import Cell
from krum.suite import claims as scorecards
from krum.suite import experiment, figures, planning, probes, provenance, report, store
from krum.suite import fidelity as fidelity_page
from krum.suite.probes import Probe

REPEATS = {  # how far the same cell gives the same curve again
    "cpu": "to the byte, on this machine with these libraries",
    "other": "to rounding: the order of this device's sums is its own",
}
COMMANDS: dict[str, Callable[..., None]] = {}

Output = Annotated[Path, "the parquet file"]
Results = Annotated[Path, "the folder of the results"]
Figures = Annotated[Path, "the folder of the figures"]
Yaml = Annotated[Path, "experiments/<name>.yaml"]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a function as a command of its name."""
    COMMANDS[function.__name__] = function
    return function


@command
def data(name: Annotated[str, "the data set"], *, output: Annotated[Path | None, "the checksums' file"] = None) -> None:
    """Get a data set, check every byte, and note the checksums."""
    checksums = datasets.obtain(name)
    if output is not None:
        store.write_text(output, "".join(f"{digest}  {file}\n" for file, digest in checksums.items()))
    print(f"{name}: {len(checksums)} file(s), every checksum fits")


@command
def curve(
    *,
    cell: Annotated[str, "the cell as JSON text, see `cells`"],
    output: Output,
    device: Annotated[str, "auto, cpu or cuda"] = os.environ.get(planning.DEVICE, "auto"),
    benchmark: Annotated[Path | None, "a file for the seconds and the memory that it took"] = None,
) -> None:
    """Simulate one cell, all its seeds."""
    start = time.monotonic()
    with located("--cell, a line of `python -m krum cells`"):
        chosen = Cell.from_json(cell)
    kind = run.pick_device(device).type
    with tqdm(total=chosen.rounds, desc=chosen.slug, unit="round", mininterval=5) as bar:
        columns = run.simulate(chosen, device=device, progress=lambda round_: bar.update(round_ - bar.n))
    source = {**_source(chosen), "device": kind, "repeats": REPEATS["cpu" if kind == "cpu" else "other"]}
    store.write_curve(chosen, columns, output, source)
    if benchmark is not None:
        import resource

        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        store.write_text(benchmark, f"s\tmax_rss\n{time.monotonic() - start:.1f}\t{megabytes:.1f}\n")


@command
def probe(*, probe: Annotated[str, "the probe as JSON text, see `cells`"], output: Output) -> None:
    """Take one measurement that is no training run, all its seeds."""
    torch.set_num_threads(1)
    with located("--probe, a line of `python -m krum cells`"):
        chosen = Probe.from_json(probe)
    run_probe = partial(probes.run_probe, chosen.name, options=dict(chosen.options))
    rows = [{"seed": seed, **row} for seed in range(chosen.seeds) for row in run_probe(seed)]
    store.write_probe(chosen.name, rows, output, {"probe": json.loads(chosen.to_json()), **_source(chosen)})


@command
def collect(
    experiment_file: Yaml,
    curves: Annotated[list[Path], "the curves' and probes' parquet files, in order"],
    *,
    output: Output,
    overrides: Annotated[str, "parameters that win over the YAML's, as JSON text"] = "{}",
) -> None:
    """Join an experiment's curves and probes into its results."""
    try:
        spec = experiment.load(experiment_file, json.loads(overrides))
    except json.JSONDecodeError as error:
        raise InputError(f"--overrides: not JSON ({error})") from None
    missing = {measured.slug for measured in spec.measured}
    for path in curves:
        _, metadata = store.read(path)
        description = metadata.get("cell") or metadata.get("probe")
        if description is None:
            raise InputError(f"{path}: not a single curve or probe; give files from results/curves or results/probes")
        measured = (Cell if "cell" in metadata else Probe).from_json(json.dumps(description))
        if metadata["code"] != provenance.code_digest(measured):
            raise InputError(f"{path}: computed by other code than today's; delete it and run snakemake again")
        if measured.slug not in missing:
            raise InputError(f"{path}: holds {measured.slug}, which {experiment_file} does not ask for or has already")
        missing.remove(measured.slug)
    source = {
        "experiment": {"name": spec.name, "title": spec.title, "claim": spec.claim, "figure": dict(spec.figure)},
        "yaml": experiment_file.read_text(encoding="utf-8"),
        "overrides": dict(spec.overrides),
        "git": provenance.git_commit(),
    }
    store.write_experiment(spec.name, curves, output, source)


@command
def claims(
    results: Annotated[list[Path], "results/<name>.parquet of every experiment"],
    *,
    output: Output,
    captions: Annotated[Path, "the figures' captions, a JSON file"],
) -> None:
    """Evaluate every claim from the results alone, and write the figures' captions."""
    rows, digests, overrides = {}, {}, {}
    for path in results:
        table, metadata = _results(path)
        rows[metadata["experiment"]["name"]], digests[path.stem] = table, store.file_digest(path)
        overrides.update(metadata["overrides"])
    claimed = [claim for claim in scorecards.load() if claim.experiment in rows]
    claimed = scorecards.untouched(claimed, overrides)
    if idle := set(rows) - {claim.experiment for claim in claimed}:
        raise InputError(f"claims: no claim is about {', '.join(sorted(idle))}; leave its results out")
    evaluated = scorecards.evaluate(claimed, rows)
    store.write_text(captions, report.to_json(report.captions(experiment.load_all(), rows, evaluated)))
    store.write_table(pa.Table.from_pandas(evaluated, preserve_index=False), output, {"digests": digests})
    print(report.tally(evaluated))


@command
def scorecard(
    claims: Annotated[Path, "results/claims.parquet"],
    *,
    page: Annotated[Path, "the HTML page"],
    table: Annotated[Path, "the Markdown file"],
) -> None:
    """Write the evaluated claims as a page and as a Markdown table."""
    rows, _ = store.read(claims)
    if "verdict" not in rows:
        raise InputError(f"{claims}: no verdicts in it; give results/claims.parquet")
    store.write_text(page, report.page(rows))
    store.write_text(table, report.markdown(rows))


@command
def fidelity(*, output: Annotated[Path, "the Markdown file"] = Path("docs/fidelity.md")) -> None:
    """Write docs/fidelity.md from the experiments."""
    store.write_text(output, fidelity_page.fidelity(experiment.load_all()))


@command
def gallery(*, results: Results = Path("results"), figures: Figures = Path("figures")) -> None:
    """Write docs/ and the README's scorecard from a full run."""
    rows, _ = store.read(results / "claims.parquet")
    captions = results / "captions.json"
    try:
        texts = json.loads(captions.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{captions}: cannot be read ({error}); build it with snakemake") from None
    chosen = {name: spec for name, spec in experiment.load_all().items() if spec.part != "review"}
    report.gallery(chosen, rows, texts, figures, experiment.EXPERIMENTS.parent)


@command
def review(*, results: Results = Path("results"), figures: Figures = Path("figures")) -> None:
    """Write docs/review.md, with its figures, from the results of `make review`."""
    root = experiment.EXPERIMENTS.parent
    rows, _ = store.read(results / "review.parquet")
    experiments = experiment.load_all()
    faults, _ = store.read(results / "applications.parquet")
    tables = {
        "survival": report.survival(faults),
        "survives": report.number(report.SURVIVES),
        "memory": report.memory(experiments["data-size"], results, 10_000, 10_000_000),
    }
    text = report.answers((root / "docs" / "review.in.md").read_text(encoding="utf-8"), rows, tables)
    for name, spec in experiments.items():
        if spec.part == "review":
            report.copy_figure(name, figures, root, "make review")
    store.write_text(root / "docs" / "review.md", text)


@command
def figure(
    results: Annotated[Path, "results/<name>.parquet"],
    *,
    output: Annotated[Path, "the figure's path without .png or .pdf"],
) -> None:
    """Draw an experiment's figure, from its results alone."""
    rows, metadata = _results(results)
    for path in figures.save(figures.draw(rows, metadata["experiment"]), output, store.file_digest(results)):
        print(path)


@command
def cells(experiment_file: Yaml) -> None:
    """Check an experiment and print its training runs and probes, one JSON text a line."""
    for measured in experiment.load(experiment_file).measured:
        print(measured.to_json())


def _source(measured: Cell | Probe) -> dict[str, Any]:
    """Where the rows of a cell or a probe come from."""
    source: dict[str, Any] = {"code": provenance.code_digest(measured), "libraries": provenance.libraries()}
    if measured.dataset is not None:
        source["data"] = datasets.DATASETS[measured.dataset].checksums
    return source


def _results(path: Path) -> tuple[Any, dict[str, Any]]:
    """An experiment's rows and their metadata."""
    rows, metadata = store.read(path)
    if "experiment" not in metadata:
        raise InputError(f"{path}: not an experiment's results; give results/<experiment>.parquet")
    return rows, metadata


# ------------------------------------------------------------------------------------------------- the command line


def parser() -> argparse.ArgumentParser:
    """The arguments of every command, as its function declares them."""
    result = argparse.ArgumentParser(prog="python -m krum", description="Steps of the workflow; `snakemake` runs them.")
    subparsers = result.add_subparsers(required=True, metavar="command", dest="command")
    for name, function in COMMANDS.items():
        texts: dict[str, Any] = {"help": function.__doc__, "description": function.__doc__}
        added = subparsers.add_parser(name, **texts, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for parameter in inspect.signature(function).parameters.values():
            kind, help_text = get_args(parameter.annotation)
            options: dict[str, Any] = {"help": help_text, "type": str if kind is str else Path}
            if parameter.kind is not parameter.KEYWORD_ONLY:
                added.add_argument(parameter.name, nargs="+" if get_origin(kind) is list else None, **options)
                continue
            options["required"] = parameter.default is parameter.empty
            options["default"] = (
                argparse.SUPPRESS if parameter.default in (parameter.empty, None) else parameter.default
            )
            added.add_argument(f"--{parameter.name}", **options)
    return result


def main(argv: list[str] | None = None) -> int:
    """Run a command. Bad input is told in one line, and the exit code is 1."""
    arguments = vars(parser().parse_args(argv))
    function = COMMANDS[arguments.pop("command")]
    try:
        for name in {"output", "captions", "page", "table"} & arguments.keys():
            store.check_writable(arguments[name])
        function(**arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
