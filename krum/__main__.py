"""The command line that the workflow calls: one command per step, each reading files and writing one."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow as pa
import torch
from tqdm import tqdm

from krum.errors import InputError, located
from krum.simulation import datasets, run
from krum.simulation.parameters import Cell
from krum.suite import claims as scorecards
from krum.suite import experiment, figures, planning, probes, provenance, reading, report, store
from krum.suite import fidelity as fidelity_page
from krum.suite.probes import Probe

REPEATS = {  # how far the same cell gives the same curve again
    "cpu": "to the byte, on this machine with these libraries",
    "other": "to rounding: the order of this device's sums is its own",
}
ROOT = experiment.EXPERIMENTS.parent

experiment_file = click.argument("experiment_file", type=Path)
output = click.option("--output", type=Path, required=True, help="the parquet file")
results_folder = click.option("--results", type=Path, default="results", show_default=True, help="their folder")
figures_folder = click.option("--figures", type=Path, default="figures", show_default=True, help="their folder")


@click.group()
def commands() -> None:
    """Steps of the workflow; `snakemake` runs them."""


@commands.command()
@click.argument("name")
@click.option("--output", type=Path, help="a file for the checksums")
def data(name: str, output: Path | None) -> None:
    """Get the data set NAME and check every byte."""
    checksums = datasets.obtain(name)
    if output is not None:
        store.write_text(output, "".join(f"{digest}  {file}\n" for file, digest in checksums.items()))
    print(f"{name}: {len(checksums)} file(s), every checksum fits")


@commands.command()
@click.option("--cell", required=True, help="the cell as JSON text, see `cells`")
@output
@click.option("--device", envvar=planning.DEVICE, default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--benchmark", type=Path, help="a file for the seconds and the megabytes that it took")
def curve(cell: str, output: Path, device: str, benchmark: Path | None) -> None:
    """Simulate one cell, all its seeds."""
    start = time.monotonic()
    store.check_writable(output)
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


@commands.command()
@click.option("--probe", required=True, help="the probe as JSON text, see `cells`")
@output
def probe(probe: str, output: Path) -> None:
    """Take one measurement that is no training run, all its seeds."""
    torch.set_num_threads(1)
    store.check_writable(output)
    with located("--probe, a line of `python -m krum cells`"):
        chosen = Probe.from_json(probe)
    run_probe = partial(probes.run_probe, chosen.name, options=dict(chosen.options))
    rows = [{"seed": seed, **row} for seed in range(chosen.seeds) for row in run_probe(seed)]
    store.write_probe(chosen.name, rows, output, {"probe": json.loads(chosen.to_json()), **_source(chosen)})


@commands.command()
@experiment_file
@click.argument("curves", nargs=-1, required=True, type=Path)
@output
@click.option("--overrides", default="{}", help="parameters that win over the YAML's, as JSON text")
def collect(experiment_file: Path, curves: tuple[Path, ...], output: Path, overrides: str) -> None:
    """Join an experiment's CURVES, probes among them, into its results."""
    with located("--overrides"):
        chosen = reading.parse(overrides)
        reading.check_structure({"overrides": chosen}, "config", "config")
    spec = experiment.load(experiment_file, chosen)
    asked = {measured.slug for measured in spec.measured}
    for path in curves:
        if path.stem not in asked:
            raise InputError(f"{path}: {experiment_file} does not ask for it; give what `python -m krum cells` lists")
    source = {
        "experiment": {"name": spec.name, "title": spec.title, "claim": spec.claim, "figure": dict(spec.figure)},
        "yaml": experiment_file.read_text(encoding="utf-8"),
        "overrides": dict(spec.overrides),
        "git": provenance.git_commit(),
    }
    store.write_experiment(spec.name, curves, output, source)


@commands.command()
@click.argument("results", nargs=-1, required=True, type=Path)
@output
@click.option("--page", type=Path, required=True, help="the HTML page; the same as Markdown goes beside it")
def claims(results: tuple[Path, ...], output: Path, page: Path) -> None:
    """Evaluate every claim about the experiments in RESULTS, and write the scorecard."""
    rows, digests, overrides = {}, {}, {}
    for path in results:
        table, metadata = _results(path)
        rows[metadata["experiment"]["name"]], digests[path.stem] = table, store.file_digest(path)
        overrides.update(metadata["overrides"])
    claimed = [claim for claim in scorecards.load() if claim.experiment in rows]
    evaluated = scorecards.evaluate(scorecards.untouched(claimed, overrides), rows)
    metadata = {"digests": digests, "captions": report.captions(experiment.load_all(), rows, evaluated)}
    store.write_text(page, report.page(evaluated))
    store.write_text(page.with_suffix(".md"), report.markdown(evaluated))
    store.write_table(pa.Table.from_pandas(evaluated, preserve_index=False), output, metadata)
    print(report.tally(evaluated))


@commands.command()
@click.option("--output", type=Path, default="docs/fidelity.md", show_default=True, help="the Markdown file")
def fidelity(output: Path) -> None:
    """Write docs/fidelity.md from the experiments."""
    store.write_text(output, fidelity_page.fidelity(experiment.load_all()))


@commands.command()
@results_folder
@figures_folder
def gallery(results: Path, figures: Path) -> None:
    """Write docs/ and the README's scorecard from a full run."""
    rows, metadata = store.read(results / "claims.parquet")
    _check_checkout()
    chosen = {name: spec for name, spec in experiment.load_all().items() if spec.part != "review"}
    report.gallery(chosen, rows, metadata["captions"], figures, ROOT)


@commands.command()
@results_folder
@figures_folder
def review(results: Path, figures: Path) -> None:
    """Write docs/review.md, with its figures, from the results of `make review`."""
    rows, _ = store.read(results / "review.parquet")
    _check_checkout()
    experiments = experiment.load_all()
    faults, _ = store.read(results / "applications.parquet")
    tables = {
        "survival": report.survival(faults),
        "survives": report.number(report.SURVIVES),
        "memory": report.memory(experiments["data-size"], results, 10_000, 10_000_000),
    }
    text = report.answers((ROOT / "docs" / "review.in.md").read_text(encoding="utf-8"), rows, tables)
    for name, spec in experiments.items():
        if spec.part == "review":
            report.copy_figure(name, figures, ROOT, "make review")
    store.write_text(ROOT / "docs" / "review.md", text)


@commands.command()
@click.argument("results", type=Path)
@click.option("--output", type=Path, required=True, help="the figure's path without .png or .pdf")
def figure(results: Path, output: Path) -> None:
    """Draw an experiment's figure, from its RESULTS alone."""
    rows, metadata = _results(results)
    for path in figures.save(figures.draw(rows, metadata["experiment"]), output, store.file_digest(results)):
        print(path)


@commands.command()
@experiment_file
def cells(experiment_file: Path) -> None:
    """Check an experiment and print its training runs and probes, one JSON text a line."""
    for measured in experiment.load(experiment_file).measured:
        print(measured.to_json())


def _check_checkout() -> None:
    """Refuse to write docs/ where there is none: an installed package."""
    if not (ROOT / "docs").is_dir():
        raise InputError("only a checkout of the project has docs/ and README.md; run it there")


def _source(measured: Cell | Probe) -> dict[str, Any]:
    """Where the rows of a cell or a probe come from."""
    source: dict[str, Any] = {"code": provenance.code_digest(measured), "libraries": provenance.libraries()}
    if measured.dataset is not None:
        source["data"] = datasets.DATASETS[measured.dataset].checksums
    return source


def _results(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """An experiment's rows and their metadata."""
    rows, metadata = store.read(path)
    if "experiment" not in metadata:
        raise InputError(f"{path}: not an experiment's results; give results/<experiment>.parquet")
    return rows, metadata


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code. Bad input is told in one line."""
    try:
        return commands(argv, prog_name="python -m krum", standalone_mode=False) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:  # a wrong command line
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
