"""How the cost of a round grows: of the aggregation with workers and parameters, of the simulation with seeds."""

from functools import partial

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.aggregation import most_faults, vectors
from benchmarks.peers import ours
from benchmarks.training import QUICK_RUN, RUN, round_of_ours

WORKERS, QUICK_WORKERS = (50, 100, 200, 500, 1000), (20, 50, 100)  # of 10^5 parameters, 10^4
PARAMETERS, QUICK_PARAMETERS = (10**4, 10**5, 10**6, 10**7), (10**4, 10**5)  # of 20 workers
SEEDS, QUICK_SEEDS = (1, 2, 5, 10, 20, 50), (1, 5)


def exponent(x, seconds):
    """The slope of least squares on logarithms, over the upper half of the range."""
    half = (len(x) - 1) // 2
    return float(np.polyfit(np.log(x[half:]), np.log(seconds[half:]), 1)[0])


def measure(device, repeat, quick):
    """One row per growth, point and repetition: its seconds."""
    rounds, d = (QUICK_RUN, 10_000) if quick else (RUN, 100_000)

    def aggregation(n, d, turn):
        return measuring.seconds(partial(ours, vectors(n, d, turn, device), most_faults(n)), device)

    growths = {
        f"workers n (d = {d:,})": (QUICK_WORKERS if quick else WORKERS, lambda n, turn: aggregation(n, d, turn)),
        "parameters d (n = 20)": (
            QUICK_PARAMETERS if quick else PARAMETERS,
            lambda d, turn: aggregation(20, d, turn),
        ),
        "seeds (MNIST, batch 3)": (
            QUICK_SEEDS if quick else SEEDS,
            lambda seeds, _: round_of_ours("mnist", 3, seeds, rounds, device),
        ),
    }
    rows = [
        (over, x, measured(x, turn))
        for over, (points, measured) in growths.items()
        for turn in tqdm(range(repeat), desc=over)
        for x in points
    ]
    return pd.DataFrame(rows, columns=["over", "x", "seconds"])


def growth_table(rows):
    """A line per growth: the milliseconds at each point, and the fitted exponent."""
    lines = []
    for over, group in rows.groupby("over", sort=False):
        medians = group.groupby("x")["seconds"].median()
        points = ", ".join(f"{x:,}: {measuring.number(1e3 * seconds)}" for x, seconds in medians.items())
        lines.append([over, points, f"{exponent(medians.index.to_numpy(), medians.to_numpy()):.2f}"])
    return measuring.table(["over", "ms", "exponent"], lines, words=2)


def section(device, repeat, quick):
    """Measure, keep the rows; the section of the page."""
    rows = measure(device, repeat, quick)
    measuring.keep(rows, "growth")
    return SECTION.format(repeat=repeat, table=growth_table(rows))


SECTION = """## How the cost grows

Krum's aggregation with workers and parameters; and a round of the simulation with seeds, all of them together (20
workers, Krum, 6 Gaussian attackers, an evaluation after every 10 rounds). Medians of {repeat} repetitions; exponents
are fitted over the upper half of each range. By the arithmetic they are 2 for n, 1 for d, and 1 for seeds; what is
below 1 is saved by sharing a batch.

{table}

With N workers in real processes, each sends about the bytes of an ordinary all-reduce and N^2 distances: see [the
review's fifth objection](review.md).
"""
