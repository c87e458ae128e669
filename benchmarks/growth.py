"""How the cost of a round grows: of the aggregation with workers and parameters, of the simulation with seeds."""

from functools import partial

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.aggregation import most_faults, vectors
from benchmarks.peers import ours
from benchmarks.training import round_of_ours

WORKERS = (50, 100, 200, 500, 1000)
PARAMETERS = (10**4, 10**5, 10**6, 10**7)
SEEDS = (1, 2, 5, 10, 20, 50)


def measure(device, repeat, quick):
    """One row per growth, point and repetition: its seconds."""

    def aggregation(n, d, turn):
        return measuring.seconds(partial(ours, vectors(n, d, turn, device), most_faults(n)))

    growths = {
        "workers n (d = 100,000)": (WORKERS, lambda n, turn: aggregation(n, 100_000, turn)),
        "parameters d (n = 20)": (PARAMETERS, lambda d, turn: aggregation(20, d, turn)),
        "seeds (MNIST, batch 3)": (SEEDS, lambda seeds, _: round_of_ours("mnist", 3, seeds, device)),
    }
    rows = [
        (over, x, measured(x, turn))
        for over, (points, measured) in growths.items()
        for turn in tqdm(range(repeat), desc=over)
        for x in (points[:2] if quick else points)
    ]
    return pd.DataFrame(rows, columns=["over", "x", "seconds"])


def exponent(x, seconds):
    """The slope of least squares on logarithms, over the upper half of the range."""
    half = (len(x) - 1) // 2
    return float(np.polyfit(np.log(x[half:]), np.log(seconds[half:]), 1)[0])


def section(rows, repeat):
    lines = []
    for over, group in rows.groupby("over", sort=False):
        medians = group.groupby("x")["seconds"].median()
        points = ", ".join(f"{x:,}: {measuring.number(1e3 * seconds)}" for x, seconds in medians.items())
        lines.append([over, points, f"{exponent(medians.index.to_numpy(), medians.to_numpy()):.2f}"])
    return SECTION.format(repeat=repeat, table=measuring.table(["over", "ms", "exponent"], lines, words=2))


SECTION = """## How the cost grows

Krum's aggregation with workers and parameters; and a round of the simulation with seeds, all of them together (20
workers, Krum, 6 Gaussian attackers, an evaluation after every 10 rounds). Medians of {repeat} repetitions; exponents
are fitted over the upper half of each range. By the arithmetic they are 2 for n, 1 for d, and 1 for seeds; what is
below 1 is saved by sharing a batch.

{table}

With N workers in real processes, each sends about the bytes of an ordinary all-reduce and N^2 distances: see [the
review's fifth objection](review.md).
"""
