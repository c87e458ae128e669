"""The command line that the workflow calls: one command per step, each reading files and writing one."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from krum.errors import InputError
from krum.simulation import datasets
from krum.suite import experiment, probes, provenance, store, verification

Given = TypeVar("Given")
REPEATS = {  # how far the same cell gives the same curve again
    "cpu": "to the byte, on this machine with these libraries",
    "other": "to rounding: the order of this device's sums is its own",
}
WRITTEN = ("output", "captions", "page", "table")  # arguments that name a file to write


def data(arguments: argparse.Namespace) -> None:
    """Get a data set, check every byte, and note the checksums."""
    checksums = datasets.obtain(arguments.name)
    if arguments.output:
        with store.replacing(arguments.output) as temporary:
            temporary.write_text("".join(f"{digest}  {file}\n" for file, digest in checksums.items()))
    print(f"{arguments.name}: {len(checksums)} file(s), every checksum fits")


def curve(arguments: argparse.Namespace) -> None:
    """Simulate one cell, all its seeds."""
    from krum.simulation import run as simulation

    cell = _given("--cell", experiment.cell_from_json, arguments.cell)
    device = simulation.pick_device(arguments.device)
    columns = simulation.simulate(cell, device=arguments.device, progress=_progress(cell))
    source = {
        "code": provenance.code_digest(cell),
        "libraries": provenance.libraries(),
        "data": datasets.DATASETS[cell.dataset].checksums,
        "device": device.type,
        "repeats": REPEATS["cpu" if device.type == "cpu" else "other"],
    }
    store.write_curve(cell, columns, arguments.output, source)


def probe(arguments: argparse.Namespace) -> None:
    """Take one measurement that is no training run, all its seeds."""
    import torch

    torch.set_num_threads(1)
    chosen = _given("--probe", experiment.Probe.from_json, arguments.probe)
    options = dict(chosen.options)
    rows = [{"seed": seed, **row} for seed in range(chosen.seeds) for row in probes.taken(chosen.name, seed, options)]
    source = {"code": provenance.probe_digest(chosen), "libraries": provenance.libraries()}
    if chosen.dataset is not None:
        source["data"] = datasets.DATASETS[chosen.dataset].checksums
    store.write_probe(chosen, rows, arguments.output, source)


def _given(flag: str, read: Callable[[str], Given], text: str) -> Given:
    try:
        return read(text)
    except InputError as error:
        raise InputError(f"{flag}: {error}; take one from `python -m krum cells`") from None


def collect(arguments: argparse.Namespace) -> None:
    """Join an experiment's curves into its results."""
    try:
        overrides = json.loads(arguments.overrides)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--overrides: not JSON ({error})") from None
    spec = experiment.load(arguments.experiment, overrides)
    asked = verification.slugs(spec)
    for path in arguments.curves:
        _, found = store.read(path)
        if "cell" not in found and "probe" not in found:
            raise InputError(f"{path}: not a single curve or probe; give files from results/curves or results/probes")
        part = verification.part_of(found)
        if found["code"] != verification.code_digest(part):
            raise InputError(f"{path}: computed by other code than today's; delete it and run snakemake again")
        if part.slug not in asked:
            raise InputError(f"{path}: holds {part.slug}, which {arguments.experiment} does not ask for or has already")
        asked.remove(part.slug)
    source = {
        "experiment": {"name": spec.name, "title": spec.title, "claim": spec.claim, "figure": dict(spec.figure)},
        "yaml": spec.source,
        "overrides": dict(spec.overrides),
        "git": provenance.git_commit(),
    }
    store.write_experiment(spec.name, arguments.curves, arguments.output, source)


def claims(arguments: argparse.Namespace) -> None:
    """Evaluate every claim from the results alone, and write the figures' captions."""
    import pyarrow as pa

    from krum.suite import claims as scorecard
    from krum.suite import report

    results, digests, overrides = {}, {}, {}
    for path in arguments.results:
        rows, metadata = store.read(path)
        if "experiment" not in metadata:
            raise InputError(f"{path}: not an experiment's results; give results/<experiment>.parquet")
        results[metadata["experiment"]["name"]], digests[path.stem] = rows, store.file_digest(path)
        overrides.update(metadata["overrides"])
    claimed = [claim for claim in scorecard.load() if claim.experiment in results]
    claimed = scorecard.untouched(claimed, overrides)
    idle = set(results) - {claim.experiment for claim in claimed}
    if idle:
        raise InputError(f"claims: no claim is about {', '.join(sorted(idle))}; leave its results out")
    evaluated = scorecard.evaluate(claimed, results)
    experiments = experiment.load_all()
    with store.replacing(arguments.captions) as temporary:
        temporary.write_text(report.to_json(report.captions(experiments, results, evaluated)), encoding="utf-8")
    store.write_table(pa.Table.from_pandas(evaluated, preserve_index=False), arguments.output, {"digests": digests})
    print(report.tally(evaluated))


def scorecard(arguments: argparse.Namespace) -> None:
    """Write the evaluated claims as a page and as a Markdown table."""
    from krum.suite import report

    rows, _ = store.read(arguments.claims)
    if "verdict" not in rows:
        raise InputError(f"{arguments.claims}: no verdicts in it; give results/claims.parquet")
    for path, text in ((arguments.page, report.page(rows)), (arguments.table, report.markdown(rows))):
        with store.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def fidelity(arguments: argparse.Namespace) -> None:
    """Write docs/fidelity.md from the experiments."""
    from krum.suite import fidelity as fidelity_page

    with store.replacing(arguments.output) as temporary:
        temporary.write_text(fidelity_page.fidelity(experiment.load_all()), encoding="utf-8")


def gallery(arguments: argparse.Namespace) -> None:
    """Write docs/ and the README's scorecard from a full run."""
    from krum.suite import report

    rows, _ = store.read(arguments.results / "claims.parquet")
    captions = arguments.results / "captions.json"
    try:
        texts = json.loads(captions.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{captions}: cannot be read ({error}); build it with snakemake") from None
    chosen = {name: spec for name, spec in experiment.load_all().items() if spec.part != "review"}
    report.gallery(chosen, rows, texts, arguments.figures, experiment.EXPERIMENTS.parent)


def review(arguments: argparse.Namespace) -> None:
    """Write docs/review.md, with its figures, from the results of `make review`."""
    from krum.suite import report

    root = experiment.EXPERIMENTS.parent
    rows, _ = store.read(arguments.results / "review.parquet")
    experiments = experiment.load_all()
    faults, _ = store.read(arguments.results / "applications.parquet")
    tables = {
        "survival": report.survival(faults),
        "survives": report.number(report.SURVIVES),
        "memory": report.memory(experiments["data-size"], arguments.results, 10_000, 10_000_000),
    }
    text = report.answers((root / "docs" / "review.in.md").read_text(encoding="utf-8"), rows, tables)
    for name, spec in experiments.items():
        if spec.part == "review":
            report.copy_figure(name, arguments.figures, root, "make review")
    with store.replacing(root / "docs" / "review.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def figure(arguments: argparse.Namespace) -> None:
    """Draw an experiment's figure, from its results alone."""
    from krum.suite.figures import drawing as plots

    rows, metadata = store.read(arguments.results)
    if "experiment" not in metadata:
        raise InputError(f"{arguments.results}: a single curve; give results/<experiment>.parquet")
    for path in plots.save(
        plots.draw(rows, metadata["experiment"]), arguments.output, store.file_digest(arguments.results)
    ):
        print(path)


def verify(arguments: argparse.Namespace) -> None:
    """Check that data, results and figures belong to each other and to today's code and experiments."""
    if not arguments.results.is_dir():
        raise InputError(f"{arguments.results}: is no folder; give the one in which the results are")
    count, wrong = 0, 0
    for path, problem in verification.verify(arguments.results, arguments.figures):
        count += 1
        if problem is not None:
            wrong += 1
            print(f"{path}: {problem}")
    if wrong:
        raise InputError(f"verify: {wrong} of {count} files are not current; snakemake builds what is missing or stale")
    print(f"verify: {count} files, all current")


def cells(arguments: argparse.Namespace) -> None:
    """Check an experiment and print its training runs and probes, one JSON text a line."""
    spec = experiment.load(arguments.experiment)
    for text in [cell.to_json() for cell in spec.cells] + [probe.to_json() for probe in spec.probes]:
        print(text)


def _progress(cell: experiment.Cell):
    from tqdm import tqdm

    bar = tqdm(total=cell.rounds, desc=cell.slug, unit="round", mininterval=5)
    return lambda round_: bar.update(round_ - bar.n)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m krum", description="Steps of the workflow; `snakemake` runs them.")
    commands = result.add_subparsers(required=True, metavar="command")

    def command(function) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        added.set_defaults(function=function)
        return added

    one = command(data)
    one.add_argument("name", help="the data set")
    one.add_argument("--output", type=Path, help="where to note the checksums")
    one = command(curve)
    one.add_argument("--cell", required=True, help="the cell as JSON text, see `cells`")
    one.add_argument("--output", type=Path, required=True, help="the parquet file")
    device = os.environ.get(experiment.DEVICE, "auto")
    one.add_argument("--device", default=device, help=f"auto, cpu or cuda (default {device})")
    one = command(collect)
    one.add_argument("experiment", type=Path, help="experiments/<name>.yaml")
    one.add_argument("curves", type=Path, nargs="+", help="the curves' and probes' parquet files, in order")
    one.add_argument("--output", type=Path, required=True, help="the parquet file")
    one.add_argument("--overrides", default="{}", help="parameters that won over the YAML's, as JSON text")
    one = command(probe)
    one.add_argument("--probe", required=True, help="the probe as JSON text, see `cells`")
    one.add_argument("--output", type=Path, required=True, help="the parquet file")
    one = command(claims)
    one.add_argument("results", type=Path, nargs="+", help="results/<name>.parquet of every experiment")
    one.add_argument("--output", type=Path, required=True, help="the parquet file")
    one.add_argument("--captions", type=Path, required=True, help="the figures' captions, a JSON file")
    one = command(scorecard)
    one.add_argument("claims", type=Path, help="results/claims.parquet")
    one.add_argument("--page", type=Path, required=True, help="the HTML page")
    one.add_argument("--table", type=Path, required=True, help="the Markdown file")
    one = command(fidelity)
    one.add_argument("--output", type=Path, default=Path("docs/fidelity.md"), help="default docs/fidelity.md")
    one = command(gallery)
    one.add_argument("--results", type=Path, default=Path("results"), help="default results")
    one.add_argument("--figures", type=Path, default=Path("figures"), help="default figures")
    one = command(review)
    one.add_argument("--results", type=Path, default=Path("results"), help="default results")
    one.add_argument("--figures", type=Path, default=Path("figures"), help="default figures")
    one = command(figure)
    one.add_argument("results", type=Path, help="results/<name>.parquet")
    one.add_argument("--output", type=Path, required=True, help="the figure's path without .png or .pdf")
    one = command(verify)
    one.add_argument("--results", type=Path, default=Path("results"), help="default results")
    one.add_argument("--figures", type=Path, default=Path("figures"), help="default figures")
    one = command(cells)
    one.add_argument("experiment", type=Path, help="experiments/<name>.yaml")
    return result


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        for path in (getattr(arguments, name, None) for name in WRITTEN):
            if path is not None:
                store.check_place(path)
        arguments.function(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
