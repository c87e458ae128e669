"""Speed of a round of the simulation, beside byzfl's client and server loop on the same work.

A round is one synchronous round of one seed: every worker's forward and backward pass, the attack, the rule and the
step, and after every 10 rounds an evaluation of the held-out fold. byzfl runs one seed at a time, ours any number; both
use one thread. A round's time is the difference of two runs, one RUN rounds longer than the other, so that setting up
does not count.
"""

import importlib.util

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.byzfl_loop import Loop
from krum.simulation.parameters import make_cell
from krum.simulation.run import simulate

RUN = 200  # rounds
EVALUATED_EVERY = 10
TITLES = {"spambase": "Spambase, 57-100-100-2", "mnist": "MNIST, 784-100-10"}
BATCHES = (3, 20)
SEEDS = (1, 10)


def cell(dataset, batch_size, seeds, rounds):
    """20 workers with Krum, of which 6 are Gaussian attackers."""
    return make_cell(
        {
            "dataset": dataset,
            "aggregator": "krum",
            "attack": "gaussian",
            "byzantine_fraction": 0.3,
            "batch_size": batch_size,
            "rounds": rounds,
            "evaluate_every": EVALUATED_EVERY,
            "seeds": seeds,
        }
    )


def round_of_ours(dataset, batch_size, seeds, device="cpu"):
    """Seconds of a round, all seeds together."""
    short, long = (cell(dataset, batch_size, seeds, EVALUATED_EVERY + more) for more in (0, RUN))
    runs = {
        each.rounds: measuring.seconds(lambda each=each: simulate(each, device=str(device))) for each in (short, long)
    }
    return (runs[long.rounds] - runs[short.rounds]) / RUN


def measure(device, repeat, quick):
    """One row per data set, batch, package and repetition: rounds of one seed per second, on a CPU as byzfl's."""
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    settings = [(dataset, batch) for dataset in TITLES for batch in (BATCHES[:1] if quick else BATCHES)]
    loops = {}
    if importlib.util.find_spec("byzfl"):
        loops = {setting: Loop(cell(*setting, 1, EVALUATED_EVERY)) for setting in settings}
    for turn in tqdm(range(repeat + 1), desc="training"):  # the first turn warms up
        for setting in settings:
            rates = {}
            if loops:
                rates["byzfl"] = EVALUATED_EVERY / measuring.seconds(
                    lambda loop=loops[setting]: loop.run(EVALUATED_EVERY)
                )
            rates |= {f"ours, {seeds} at once": seeds / round_of_ours(*setting, seeds) for seeds in SEEDS}
            rows += [(*setting, name, rate) for name, rate in rates.items() if turn]
    torch.set_num_threads(threads)
    return pd.DataFrame(rows, columns=["dataset", "batch_size", "package", "rate"])


def rate_table(rows):
    """A line per data set and batch: everyone's rate, and ours over byzfl's."""
    names, lines = list(rows["package"].unique()), []
    ours = [name for name in names if name != "byzfl"] if "byzfl" in names else []
    for (dataset, batch), group in rows.groupby(["dataset", "batch_size"], sort=False):
        rates = group.set_index("package")["rate"]
        medians = rates.groupby(level=0).median()
        ratios = [f"{medians[name] / medians['byzfl']:.1f}x" for name in ours]
        lines.append([TITLES[dataset], batch, *(measuring.spread(rates[[name]]) for name in names), *ratios])
    return measuring.table(["data set", "batch", *names, *(f"{name} / byzfl" for name in ours)], lines, words=2)


def section(rows, repeat):
    missing = "" if "byzfl" in set(rows["package"]) else "\nbyzfl is not installed and was not measured.\n"
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
