"""What each rule costs in the experiments: Snakemake's own measurements of the longest curves, where there are any.

Rule `long_curve` of the Snakefile leaves one file per curve below results/benchmarks/, named after the curve.
"""

import pandas as pd

from benchmarks import page
from krum import experiment
from krum.planning import work
from krum.report import TITLES

MEASURED = page.ROOT / "results" / "benchmarks"


def measured():
    """One row per curve of today's experiments that has been measured: data set, rule, seconds, multiply-adds, MB."""
    rows = []
    for cell in {cell.slug: cell for spec in experiment.load_all().values() for cell in spec.cells}.values():
        path = MEASURED / f"{cell.slug}.tsv"
        if path.is_file():
            took = pd.read_csv(path, sep="\t").iloc[0]
            rows.append((cell.dataset, cell.aggregator, took["s"], work(cell), took["max_rss"]))
    return pd.DataFrame(rows, columns=["dataset", "aggregator", "seconds", "multiply_adds", "megabytes"])


def section():
    """The section of the page; None where no curve has been measured."""
    rows = measured()
    if rows.empty:
        return None
    lines = []
    for (dataset, aggregator), here in rows.groupby(["dataset", "aggregator"]):
        each = (here["seconds"] / here["multiply_adds"] * 1e9).median()
        lines.append(
            [TITLES[dataset], aggregator, len(here), page.number(here["seconds"].median()), page.number(each),
             page.number(here["megabytes"].max())]
        )  # fmt: skip
    head = ["data set", "rule", "curves", "median, s", "s per 10^9 multiply-adds", "most memory, MB"]
    return SECTION.format(table=page.table(head, lines, words=2))


SECTION = """## What each rule costs in the experiments

As Snakemake measured the longest curves, one thread each and all seeds of a curve together, others running beside them.
Multiply-adds are those of the honest workers' gradients and of samples that the attack draws.

{table}
"""
