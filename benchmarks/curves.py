"""What the experiments cost: the arithmetic of dense products, and what Snakemake measured of the longest curves.

Rule `long_curve` of the Snakefile leaves one file per curve below results/benchmarks/, named after the curve.
"""

import pandas as pd

from benchmarks import machine, page
from krum.simulation import datasets, models
from krum.simulation.datasets import DATASETS
from krum.suite import experiment
from krum.suite.planning import CATEGORIES, work
from krum.suite.report import TITLES

MEASURED = page.ROOT / "results" / "benchmarks"


def arithmetic(cell, samples):
    """Multiply-adds of a curve on a data set of so many samples: training, an estimating attacker's, evaluation.

    Of a sample: one product per layer forward, and two more backward except the first layer's, which needs one.
    """
    data = DATASETS[cell.dataset]
    model = models.build(cell.model, dict(cell.model_options), data.features, data.classes)
    positions = [side**2 for side in getattr(model, "sides", [])[1:]]
    positions += [1] * (len(model.layers) - len(positions))
    layers = [count * fan_in * fan_out for count, (fan_in, fan_out) in zip(positions, model.layers, strict=True)]
    forward, both = sum(layers), 3 * sum(layers) - layers[0]
    drawn = (cell.workers - cell.byzantine) * cell.batch_size + dict(cell.attack_options).get("samples", 0)
    evaluations = -(-cell.rounds // cell.evaluate_every) + 1
    return cell.seeds * (cell.rounds * drawn * both + evaluations * samples / cell.folds * forward)


def whole(device):
    """A line per part of `make`: its curves, and the minutes that their arithmetic takes at this machine's rate."""
    rate, counts = machine.matrix_rate(device), {name: len(datasets.load(name).labels) for name in DATASETS}
    seen, lines = set(), []
    for part, title in CATEGORIES.items():
        cells = {cell for spec in experiment.load_all().values() if spec.part == part for cell in spec.cells} - seen
        seen |= cells
        products = sum(arithmetic(cell, counts[cell.dataset]) for cell in cells)
        lines.append([title.partition(" ")[2], len(cells), f"{products:.2e}", page.number(products / rate / 60)])
    return page.table(["part", "curves", "multiply-adds", "minutes at this machine's matrix rate"], lines)


def measured():
    """One row per curve of today's experiments that has been measured: data set, rule, seconds, multiply-adds, MB."""
    rows = []
    for cell in {cell.slug: cell for spec in experiment.load_all().values() for cell in spec.cells}.values():
        path = MEASURED / f"{cell.slug}.tsv"
        if path.is_file():
            took = pd.read_csv(path, sep="\t").iloc[0]
            rows.append((cell.dataset, cell.aggregator, took["s"], work(cell), took["max_rss"]))
    return pd.DataFrame(rows, columns=["dataset", "aggregator", "seconds", "multiply_adds", "megabytes"])


def section(device):
    """The section of the page."""
    rows = measured()
    return WHOLE.format(table=whole(device)) + ("" if rows.empty else MEASURED_CURVES.format(table=rules_table(rows)))


def rules_table(rows):
    """A line per data set and rule."""
    lines = []
    for (dataset, aggregator), here in rows.groupby(["dataset", "aggregator"]):
        each = (here["seconds"] / here["multiply_adds"] * 1e9).median()
        lines.append(
            [TITLES[dataset], aggregator, len(here), page.number(here["seconds"].median()), page.number(each),
             page.number(here["megabytes"].max())]
        )  # fmt: skip
    head = ["data set", "rule", "curves", "median, s", "s per 10^9 multiply-adds", "most memory, MB"]
    return page.table(head, lines, words=2)


WHOLE = """## The experiments

What `make` (the first three parts) and `make review` would take at least if no zero were left out: the multiply-adds
of dense forward and backward passes of honest workers' samples and of those that an attacker draws to estimate a
gradient, and of evaluation. In MNIST's first layer, which is nearly all of its arithmetic, a fifth of them remains.
Inner products, everything that is no matrix product, Snakemake and drawing come on top.

{table}
"""
MEASURED_CURVES = """
### What each rule costs

As Snakemake measured the longest curves, one thread each and all seeds of a curve together, others running beside them.
Multiply-adds are those of the honest workers' gradients and of samples that the attack draws.

{table}
"""
