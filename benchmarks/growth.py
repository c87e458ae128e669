"""How the cost grows: of an aggregation with n and d, of a replica-round with replicas, data and rounds, and on paper.

Exponents are least squares on logarithms of the medians over the upper half of each range, where a call's own overhead
is small; their intervals come from a bootstrap of whole repetitions. What no single machine can run is computed from
the constants measured here, with the formula beside it.
"""

import statistics
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import machine, page
from benchmarks.aggregation import most_faults, vectors
from benchmarks.peers import ours
from benchmarks.simulation import Work, load
from krum.distributed.exchange import bytes_sent
from krum.simulation.datasets import Samples
from krum.simulation.engine import Simulation

WORKERS, QUICK_WORKERS = (20, 50, 100, 200, 500, 1000), (20, 50, 100, 200)
AT_DIMENSION, QUICK_AT_DIMENSION = 100_000, 10_000
DIMENSIONS, QUICK_DIMENSIONS, LARGEST = (10**4, 10**5, 10**6, 10**7), (10**4, 10**5, 10**6), 10**8
AT_WORKERS = 20
REPLICAS, QUICK_REPLICAS = (1, 2, 5, 10, 20, 50), (1, 2, 5, 10)
POINTS, QUICK_POINTS = (1_000, 2_000, 5_000, 10_000, 20_000, 60_000), (1_000, 2_000, 5_000, 10_000)
BLOCKS = 3  # of rounds
ROUNDS, QUICK_ROUNDS = 200, 20  # in a block, and in a measurement
RESAMPLES = 2000

MACHINES, PARAMETERS, TOKENS = 10_000, 10**11, 10**4  # on paper
ACCELERATOR = 4e14  # FLOP/s
NETWORKS = (100, 10)  # Gbit/s


@dataclass(frozen=True)
class Growth:
    """Seconds [repetitions, points] at points x."""

    over: str
    unit: str
    x: tuple[int, ...]
    seconds: np.ndarray
    first: int  # point of the fit

    def exponent(self):
        """The fitted exponent, and its 95 % bootstrap interval over repetitions."""
        rng = np.random.default_rng(0)
        drawn = rng.integers(len(self.seconds), size=(RESAMPLES, len(self.seconds)))
        low, high = np.percentile([self._slope(self.seconds[rows]) for rows in drawn], [2.5, 97.5])
        return self._slope(self.seconds), low, high

    def _slope(self, seconds):
        x, middle = np.log(self.x[self.first :]), np.log(np.median(seconds, 0)[self.first :])
        return float(np.polyfit(x, middle, 1)[0])


def measured(over, unit, x, repeat, seconds, first=None):
    """Call `seconds(x, turn)` for every point in turn; the first turn warms up."""
    turns = [[seconds(point, turn) for point in x] for turn in tqdm(range(repeat + 1), desc=f"growth with {over}")]
    return Growth(over, unit, x, np.array(turns[1:]), len(x) // 2 if first is None else first)


def aggregation(n, d, seed, device):
    """Seconds of Krum of new vectors."""
    return machine.call(partial(ours, vectors(n, d, seed, device), most_faults(n), None), device)


def replica_round(simulation, rounds):
    """Seconds of a replica-round."""

    def run():
        for _ in range(rounds):
            simulation.step()

    return machine.timed(run, simulation.device) / rounds / simulation.replicas


def over_rounds(work, device, rounds, repeat):
    """Seconds of a replica-round in blocks of rounds one after the other, from new seeds in every repetition."""
    times = []
    for turn in tqdm(range(repeat + 1), desc="growth with rounds"):
        seeds = range(turn * work.replicas, (turn + 1) * work.replicas)
        simulation = Simulation(work.cell(), load(work.dataset), device=str(device), seeds=seeds)
        times.append([replica_round(simulation, rounds) for _ in range(BLOCKS)])
    ends = tuple(rounds * (block + 1) for block in range(BLOCKS))
    return Growth("rounds", "replica-round", ends, np.array(times[1:]), 0)


def measure(device, repeat, quick, largest):
    """The five growths."""
    d = QUICK_AT_DIMENSION if quick else AT_DIMENSION
    dimensions = (QUICK_DIMENSIONS if quick else DIMENSIONS) + ((LARGEST,) if largest else ())
    rounds, work = QUICK_ROUNDS if quick else ROUNDS, Work("mnist", 3, 10)
    samples = load(work.dataset)

    def simulation(replicas, points):
        some = Samples(samples.features[:points], samples.labels[:points])
        return Simulation(work.cell(), some, device=str(device), seeds=range(replicas))

    by_replicas = {replicas: simulation(replicas, None) for replicas in (QUICK_REPLICAS if quick else REPLICAS)}
    by_points = {points: simulation(work.replicas, points) for points in (QUICK_POINTS if quick else POINTS)}
    return [
        measured(
            f"workers n (d = {d:,})", "aggregation", QUICK_WORKERS if quick else WORKERS, repeat,
            lambda n, turn: aggregation(n, d, turn, device),
        ),
        measured(
            f"dimension d (n = {AT_WORKERS})", "aggregation", dimensions, repeat,
            lambda d, turn: aggregation(AT_WORKERS, d, turn, device),
        ),
        measured(
            "replicas R", "replica-round", tuple(by_replicas), repeat,
            lambda replicas, turn: replica_round(by_replicas[replicas], rounds),
        ),
        measured(
            "samples", "replica-round", tuple(by_points), repeat,
            lambda points, turn: replica_round(by_points[points], rounds),
        ),
        over_rounds(work, device, rounds, repeat),
    ]  # fmt: skip


def draw(growths):
    """A panel per growth, the fitted exponent in its title."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    *panels, empty = figure.subplots(2, 3).flat
    empty.set_axis_off()
    for axes, growth in zip(panels, growths, strict=True):
        milliseconds, x = 1e3 * growth.seconds, np.array(growth.x, float)
        middle = np.median(milliseconds, 0)
        axes.plot(x, middle, color="#D55E00", marker="s", markersize=4, label="median, least to most")
        axes.fill_between(x, milliseconds.min(0), milliseconds.max(0), color="#D55E00", alpha=0.25, linewidth=0)
        exponent, low, high = growth.exponent()
        upper = x[growth.first :]
        level = np.exp(np.mean(np.log(middle[growth.first :]) - exponent * np.log(upper)))
        axes.plot(upper, level * upper**exponent, color="#444444", linestyle=":", label="fit")
        axes.set(xscale="log", yscale="log", xlabel=growth.over, ylabel=f"ms per {growth.unit}")
        axes.set_title(f"exponent {exponent:.2f} [{low:.2f}, {high:.2f}]", fontsize=10)
        axes.set_xticks(x, [f"$10^{np.log10(point):.0f}$" if point >= 1e6 else f"{point:,.0f}" for point in x])
        axes.tick_params(axis="x", rotation=30)
        axes.set_xticks([], minor=True)
        if middle.max() < 3 * middle.min():
            axes.set_ylim(middle.min() / 3, 3 * middle.max())
        page.log_axis(axes.yaxis)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower right")
    figure.suptitle("How the cost grows: Krum's aggregation, and a replica-round of the simulation", fontsize=12)
    return figure


def growth_table(growths):
    """A line per growth: the fitted exponent and its interval, and the time at both ends of the range."""
    lines = []
    for growth in growths:
        exponent, low, high = growth.exponent()
        ends = [page.spread(1e3 * growth.seconds[:, point]) for point in (0, -1)]
        fitted = f"{growth.x[growth.first]:,} to {growth.x[-1]:,}"
        lines.append([growth.over, growth.unit, *ends, fitted, f"{exponent:.2f} [{low:.2f}, {high:.2f}]"])
    return page.table(["over", "ms per", "at the least", "at the most", "fitted over", "exponent"], lines, words=2)


def duration(seconds):
    """In the unit that suits it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{page.number(seconds / length)} {unit}"
    return f"{page.number(seconds)} s"


def on_paper(per_product, read):
    """What a round of Krum costs with MACHINES workers and PARAMETERS parameters: computed, not measured."""
    products = MACHINES * (MACHINES + 1) / 2 * PARAMETERS
    sent = bytes_sent("in-parts", MACHINES, PARAMETERS) / MACHINES
    averaging = bytes_sent("averaging", MACHINES, PARAMETERS) / MACHINES
    gradient = 6 * PARAMETERS * TOKENS / ACCELERATOR
    distances = 2 * products / MACHINES / ACCELERATOR
    wires = {speed: 8 * sent / (speed * 1e9) for speed in NETWORKS}
    fast = max(NETWORKS)
    whole = (gradient + wires[fast] + distances) / (gradient + 8 * averaging / (fast * 1e9))
    lines = [
        ["multiply-adds of all inner products", "N (N + 1) / 2 d", f"{products:.2e}"],
        ["... on one machine like this", "N (N + 1) / 2 d s", duration(products * per_product)],
        ["... 1/N of them, on each of N machines like this", "(N + 1) / 2 d s",
         duration(products / MACHINES * per_product)],
        ["... 1/N of them, on each of N accelerators", "(N + 1) d / A", duration(distances)],
        ["reading its pieces of all gradients from memory like this", "4 d / M", duration(4 * PARAMETERS / read)],
        ["bytes that a worker sends, and receives", "2 (N - 1) / N (4 d + 8 N^2)", f"{sent / 1e9:,.1f} GB"],
        *([f"... at {speed} Gbit/s", f"8 bits x bytes / {speed} Gbit/s", duration(wires[speed])] for speed in wires),
        ["bytes with averaging", "2 (N - 1) / N 4 d", f"{averaging / 1e9:,.1f} GB"],
        [f"computing one gradient, {TOKENS:,} tokens a worker", f"6 d {TOKENS:,} / A", duration(gradient)],
        [f"all of it with accelerators at {fast} Gbit/s, over averaging",
         "(gradient + sending + distances) / (gradient + sending)", f"{whole:.2f}x"],
    ]  # fmt: skip
    return page.table(["in a round", "formula", "value"], lines, words=2)


def section(device, repeat, quick, largest):
    """Measure, keep the rows, draw the figure; the section of the page."""
    growths = measure(device, repeat, quick, largest)
    rows = [
        (growth.over, point, turn, growth.unit, seconds)
        for growth in growths
        for turn, own in enumerate(growth.seconds)
        for point, seconds in zip(growth.x, own, strict=True)
    ]
    page.keep(pd.DataFrame(rows, columns=["over", "x", "repetition", "unit", "seconds"]), "growth")
    n, d = growths[0].x[-1], QUICK_AT_DIMENSION if quick else AT_DIMENSION
    read = machine.bandwidth(device)
    per_product = statistics.median(growths[0].seconds[:, -1]) / (n * (n + 1) / 2 * d)
    return SECTION.format(
        repeat=repeat,
        rounds=QUICK_ROUNDS if quick else ROUNDS,
        figure=page.save(draw(growths), "growth"),
        table=growth_table(growths),
        machines=f"{MACHINES:,}",
        accelerator=f"{ACCELERATOR:.0e}",
        n=f"{n:,}",
        s=f"{per_product:.2e}",
        memory=page.number(read / 1e9),
        paper=on_paper(per_product, read),
    )


SECTION = """## How the cost grows

Krum of float32 vectors, new ones in each of {repeat} repetitions; and the simulation of MNIST with 784-100-10, Krum, 6
Gaussian attackers of 20, batch 3, without evaluation, R = 10 where R does not vary, {rounds} rounds a measurement; over
rounds, each block of {rounds} after the one before. Median (least - most). Exponents are fitted over the upper half of
each range, over all blocks of rounds, with a 95 % bootstrap interval over repetitions. By the arithmetic they are 2 for
n, 1 for d, and 0 for samples and rounds; for R, what is below 0 is saved by sharing a batch.

{figure}

{table}

### On paper

**Computed, not measured**: a round with N = {machines} workers and d = 10^11 float32 parameters. s = {s} seconds is
what a multiply-add takes the aggregation here at n = {n}, M = {memory} GB/s is this machine's memory, and A =
{accelerator} FLOP/s an accelerator. Links send and receive at once. The bytes are
[`krum/exchange.py`](../krum/exchange.py)'s formula, which [the review's fifth objection](review.md) compares with bytes
counted: Krum in parts sends what an ordinary all-reduce does, and N^2 distances.

{paper}
"""
