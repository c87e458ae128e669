"""Speed of a round of the simulation, beside byzfl's client and server loop on the same work.

A round is one synchronous round of one seed: every worker's forward and backward pass, the attack, the rule and the
step, and after every 10 rounds an evaluation of the held-out fold. byzfl runs one seed at a time, ours any number; both
use one thread. A round's time is the difference of two runs, one RUN rounds longer than the other, so that setting up
does not count.
"""

import importlib.util
import statistics
from functools import cache

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import measuring
from krum.simulation import datasets
from krum.simulation.cell import make_cell
from krum.simulation.datasets import DATASETS
from krum.simulation.run import simulate

RUN, QUICK_RUN = 200, 100  # rounds
EVALUATED_EVERY = 10
TITLES = {"spambase": "Spambase, 57-100-100-2", "mnist": "MNIST, 784-100-10"}
BATCHES, QUICK_BATCHES = (3, 20), (3,)
SEEDS = (1, 10)


def cell(dataset, batch_size, seeds, rounds):
    """20 workers with Krum, of which 6 are Gaussian attackers."""
    return make_cell(
        {
            "dataset": dataset,
            "aggregator": "krum",
            "attack": "gaussian",
            "byzantine_fraction": 0.3,
            "declared_f": 6,
            "batch_size": batch_size,
            "rounds": rounds,
            "evaluate_every": EVALUATED_EVERY,
            "seeds": seeds,
        }
    )


def round_of_ours(dataset, batch_size, seeds, rounds, device="cpu"):
    """Seconds of a round, all seeds together."""
    samples = datasets.load(dataset)
    short, long = (cell(dataset, batch_size, seeds, count) for count in (EVALUATED_EVERY, EVALUATED_EVERY + rounds))
    taken = [
        measuring.seconds(lambda one=one: simulate(one, samples, device=str(device)), device) for one in (short, long)
    ]
    return (taken[1] - taken[0]) / rounds


@cache
def byzfl_loop(dataset, batch_size):
    """byzfl's loop on the first seed's folds, standardised as ours are; it keeps its state between measurements."""
    from benchmarks.byzfl_loop import Fold, Loop

    samples = datasets.load(dataset)
    training, held_out = datasets.folds(samples.labels, 10, 0)[0]
    features, labels = torch.from_numpy(samples.features), torch.from_numpy(samples.labels)
    if DATASETS[dataset].standardise:
        deviation, mean = torch.std_mean(features[training], 0)
        features = (features - mean) / deviation
    fold = Fold(features[training], labels[training], features[held_out], labels[held_out])
    return Loop(cell(dataset, batch_size, 1, EVALUATED_EVERY), fold)


def round_of_byzfl(dataset, batch_size):
    """Seconds of a round."""
    loop = byzfl_loop(dataset, batch_size)

    def ten_rounds():
        for _ in range(EVALUATED_EVERY):
            loop.step()
        loop.record()

    return measuring.seconds(ten_rounds) / EVALUATED_EVERY


def measure(batches, rounds, repeat, with_byzfl):
    """One row per data set, batch, package and repetition: rounds of one seed per second."""
    rows = []
    for turn in tqdm(range(repeat + 1), desc="training"):  # the first turn warms up
        for dataset, batch in [(dataset, batch) for dataset in TITLES for batch in batches]:
            rates = {f"ours, {seeds} at once": seeds / round_of_ours(dataset, batch, seeds, rounds) for seeds in SEEDS}
            if with_byzfl:
                rates = {"byzfl": 1 / round_of_byzfl(dataset, batch)} | rates
            if turn:
                rows += [(dataset, batch, name, rate) for name, rate in rates.items()]
    return pd.DataFrame(rows, columns=["dataset", "batch_size", "package", "rate"])


def rate_table(rows):
    """A line per data set and batch: everyone's rate, and ours over byzfl's."""
    names, lines = list(dict.fromkeys(rows["package"])), []
    for (dataset, batch), group in rows.groupby(["dataset", "batch_size"], sort=False):
        rates = {name: list(one["rate"]) for name, one in group.groupby("package")}
        line = [TITLES[dataset], batch, *(measuring.spread(rates[name]) for name in names)]
        if "byzfl" in rates:
            line += [f"{statistics.median(rates[n]) / statistics.median(rates['byzfl']):.1f}x" for n in names[1:]]
        lines.append(line)
    ratios = [f"{name} / byzfl" for name in names[1:]] if "byzfl" in names else []
    return measuring.table(["data set", "batch", *names, *ratios], lines, words=2)


def section(device, repeat, quick):
    """Measure, on a CPU as byzfl does, and keep the rows; the section of the page."""
    threads, with_byzfl = torch.get_num_threads(), importlib.util.find_spec("byzfl") is not None
    torch.set_num_threads(1)
    rows = measure(QUICK_BATCHES if quick else BATCHES, QUICK_RUN if quick else RUN, repeat, with_byzfl)
    torch.set_num_threads(threads)
    measuring.keep(rows, "training")
    missing = "" if with_byzfl else "\nbyzfl is not installed and was not measured.\n"
    return SECTION.format(repeat=repeat, missing=missing, table=rate_table(rows))


SECTION = """## Training

Rounds of one seed per second, on one thread of the processor: median (least - most) of {repeat} repetitions. 20
workers, Krum with f = 6, 6 Gaussian attackers, learning rate 0.1, an evaluation of the held-out tenth after every 10
rounds. Ours runs any number of seeds at once, byzfl's loop one.
{missing}
{table}

byzfl's loop is put together from its own classes ([how](../benchmarks/byzfl_loop.py)) on tensors in memory, without
the image transforms that its own benchmark applies. Its six attackers all send the same vector, ours six different
ones; its clients shuffle shards of their own, ours draw from the whole training fold; its evaluation counts errors,
ours computes the loss, too.
"""
