"""Speed of the simulation: replica-rounds per second, beside byzfl's client and server loop on the same work.

A replica-round is one synchronous round of one seed: every worker's forward and backward pass, the attack, the rule
and the step. byzfl runs one replica at a time, ours any number. All are measured in turn, for the same time in each
repetition, so that a busy moment of the machine falls on all alike. With evaluation, the held-out fold is evaluated
after every 10 rounds, as in the experiments. The limit is the multiply-adds of one forward and backward pass of the
honest workers' samples at the matrix rate that this machine reaches on a square product.
"""

import importlib.util
import itertools
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks import machine, page
from krum.simulation import datasets
from krum.simulation.engine import Simulation
from krum.suite import experiment
from krum.suite.report import TITLES

HIDDEN = {"spambase": [100, 100], "mnist": [100]}
BATCHES, QUICK_BATCHES = (3, 20), (3,)
EVALUATED_EVERY = 10
SECONDS, QUICK_SECONDS = 1.0, 0.05  # of a measurement
PROFILED, QUICK_PROFILED = 200, 20  # rounds
OPERATIONS = 8


@dataclass(frozen=True)
class Work:
    """What 20 workers, of which 6 attack unless nobody does, compute in a round, and for how many replicas."""

    dataset: str
    batch_size: int
    replicas: int
    package: str = "krum"
    aggregator: str = "krum"
    attack: str = "gaussian"

    def cell(self):
        return experiment.one_cell(
            {
                "dataset": self.dataset,
                "model": {"name": "mlp", "hidden": HIDDEN[self.dataset]},
                "aggregator": self.aggregator,
                "attack": self.attack,
                "byzantine_fraction": 0 if self.attack == "none" else 0.3,
                "declared_f": 6,
                "batch_size": self.batch_size,
            }
        )


@cache
def load(dataset):
    return datasets.load(dataset)


@cache
def split(dataset):
    """The first replica's folds, standardised as ours are."""
    from benchmarks.byzfl_loop import Split

    samples = load(dataset)
    training, held_out = datasets.folds(samples.labels, 10, 0)[0]
    features, labels = torch.from_numpy(samples.as_floats()), torch.from_numpy(samples.labels)
    if datasets.DATASETS[dataset].standardise:
        deviation, mean = torch.std_mean(features[training], 0)
        features = (features - mean) / deviation
    return Split(features[training], labels[training], features[held_out], labels[held_out])


@cache
def running(work, device):
    """A simulation, or byzfl's loop, that keeps its state between measurements."""
    if work.package == "krum":
        return Simulation(work.cell(), load(work.dataset), device=device, seeds=range(work.replicas))
    from benchmarks.byzfl_loop import Loop

    return Loop(work.cell(), split(work.dataset), device)


def rate(work, device, seconds, evaluate):
    """Replica-rounds per second over at least so many seconds."""
    simulation, rounds = running(work, device), 0
    machine.wait(torch.device(device))
    start = time.perf_counter()
    while not rounds or time.perf_counter() < start + seconds:
        for _ in range(EVALUATED_EVERY):
            simulation.step()
        if evaluate:
            simulation.record()
        machine.wait(torch.device(device))
        rounds += EVALUATED_EVERY
    return rounds * simulation.replicas / (time.perf_counter() - start)


def measure(works, device, threads, processes, repeat, seconds):
    """One row per work, place (threads or processes), evaluation and repetition: replica-rounds per second.

    A place in two processes, each with one thread, has the sum of their rates.
    """
    several = threads if threads > 1 else None
    places = [place for place in ("1 thread", several and f"{several} threads", processes and "2 processes") if place]
    rows = []
    with ExitStack() as stack:
        pools = [stack.enter_context(_pool()) for _ in range(2 if processes else 0)]
        for turn in tqdm(range(repeat + 1), desc="simulation"):  # the first turn warms up
            for work, place, evaluate in itertools.product(works, places, (False, True)):
                task = (work, device, seconds if turn else 0, evaluate)
                if place == "2 processes":
                    found = sum(each.result() for each in [pool.submit(rate, *task) for pool in pools])
                else:
                    torch.set_num_threads(int(place.split()[0]))
                    found = rate(*task)
                if turn:
                    rows.append({**vars(work), "place": place, "evaluation": evaluate, "rate": found})
    torch.set_num_threads(threads)
    return pd.DataFrame(rows)


def _pool():
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))


def matrix_rates(device):
    """Multiply-adds per second of a square product with one thread and with all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = machine.matrix_rate(device)
    torch.set_num_threads(threads)
    return {"1 thread": one, "all": machine.matrix_rate(device)}


def multiply_adds(work, device):
    """Of a replica-round: one forward and backward pass, 3 products per layer, 2 for the first."""
    simulation = running(work, device)
    samples = simulation.honest * simulation.cell.batch_size
    return samples * sum((3 if i else 2) * n * m for i, (n, m) in enumerate(simulation.model.layers))


def peer_table(rows, works, device, peaks):
    """A line per data set, batch and place: replica-rounds per second of everyone, times byzfl's, and of the limit."""
    peer = "byzfl" in set(rows["package"])
    columns = [("byzfl", 1)] * peer + [("krum", 1), ("krum", 10)]
    lines = []
    for (dataset, batch, place), here in rows.groupby(["dataset", "batch_size", "place"], sort=False):
        ours = next(work for work in works if (work.dataset, work.batch_size, work.package) == (dataset, batch, "krum"))
        most = peaks["1 thread" if place == "1 thread" else "all"] / multiply_adds(ours, device)
        rates = {key: list(own["rate"]) for key, own in here.groupby(["package", "replicas"])}
        line = [TITLES[dataset], batch, place, *[page.spread(rates[key]) for key in columns]]
        medians = {key: statistics.median(rates[key]) for key in columns}
        if peer:
            line += [f"{medians['krum', replicas] / medians['byzfl', 1]:.1f}x" for replicas in (1, 10)]
        lines.append([*line, f"{medians['krum', 10] / most:.0%}"])
    head = ["data set", "batch", "place", *(["byzfl"] * peer), "ours, R = 1", "ours, R = 10"]
    head += ["R = 1 / byzfl", "R = 10 / byzfl"] * peer
    return page.table([*head, "R = 10, of the limit"], lines, words=3)


def rules_table(rows, works, device, peaks):
    """A line per data set, rule and attack: our replica-rounds per second without and with evaluation."""
    lines = []
    for work in works:
        here = rows[(rows[list(vars(work))] == pd.Series(vars(work))).all(axis=1)]
        for place, own in here.groupby("place", sort=False):
            plain, evaluated = (list(own[own["evaluation"] == evaluate]["rate"]) for evaluate in (False, True))
            share = (
                statistics.median(plain)
                * multiply_adds(work, device)
                / peaks["1 thread" if place == "1 thread" else "all"]
            )
            what = [TITLES[work.dataset], work.aggregator, work.attack, place]
            lines.append([*what, page.spread(plain), f"{share:.0%}", page.spread(evaluated)])
    head = ["data set", "rule", "attack", "place", "without evaluation", "of the limit", "with evaluation"]
    return page.table(head, lines, words=4)


def where_time_goes(work, device, rounds):
    """Markdown: the operations of torch that take most of a round's time on one thread, and what is left."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    simulation = running(work, device)
    simulation.step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(rounds):
            simulation.step()
        took = time.perf_counter() - start
    torch.set_num_threads(threads)
    own = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    first = sorted(own, key=own.get, reverse=True)[:OPERATIONS]
    others = sum(own.values()) - sum(own[name] for name in first)
    shares = [(f"`{name}`", own[name]) for name in first]
    shares += [("other operations", others), ("outside torch: Python, numpy, `krum.kernels`", took - sum(own.values()))]
    return page.table(["operation", "of a round's time"], [[name, f"{part / took:.1%}"] for name, part in shares])


def section(device, repeat, quick, processes):
    """Measure, keep the rows; the section of the page."""
    name, threads, seconds = str(device), torch.get_num_threads(), QUICK_SECONDS if quick else SECONDS
    before = matrix_rates(device)
    peer = importlib.util.find_spec("byzfl") is not None
    beside = [
        Work(dataset, batch, replicas, package)
        for dataset, batch in itertools.product(HIDDEN, QUICK_BATCHES if quick else BATCHES)
        for package, replicas in [("byzfl", 1)] * peer + [("krum", 1), ("krum", 10)]
    ]
    rules = [
        Work(dataset, 3, 10, aggregator=aggregator, attack=attack)
        for dataset, aggregator, attack in itertools.product(HIDDEN, ("average", "krum"), ("none", "gaussian"))
    ]
    rows = measure(beside, name, threads, processes, repeat, seconds)
    alone = measure(rules, name, threads, False, repeat, seconds)
    peaks = {what: max(rate, before[what]) for what, rate in matrix_rates(device).items()}
    page.keep(rows, "simulation")
    page.keep(alone, "simulation-rules")
    return SECTION.format(
        repeat=repeat,
        seconds=seconds,
        rates=f"{2e-9 * peaks['1 thread']:.0f} GFLOP/s with 1 thread and {2e-9 * peaks['all']:.0f} with {threads}",
        missing="" if peer else "\nbyzfl is not installed here and was not measured.\n",
        plain=peer_table(rows[~rows["evaluation"]], beside, name, peaks),
        evaluated=peer_table(rows[rows["evaluation"]], beside, name, peaks),
        rules=rules_table(alone, rules, name, peaks),
        operations=where_time_goes(Work("mnist", 3, 10), name, QUICK_PROFILED if quick else PROFILED),
    )


SECTION = """## Simulation

Replica-rounds (one synchronous round of one seed) per second: median (least - most) of {repeat} repetitions of
{seconds:g} s. 20 workers, Krum with f = 6, 6 Gaussian attackers, learning rate 0.1; MNIST with 784-100-10, Spambase
with 57-100-100-2. R replicas run as one batch; byzfl's loop runs one. Two processes have one thread each; their rates
are added up. The limit is the arithmetic of the honest workers' dense forward and backward passes at the rate of a
square matrix product: {rates}, measured here. Four fifths of MNIST's pixels are zeros, which our products leave out.
{missing}
### Without evaluation

{plain}

### With an evaluation of the held-out tenth every 10 rounds

{evaluated}

byzfl's loop is put together from its own classes ([how](../benchmarks/byzfl_loop.py)) on tensors in memory, without
the image transforms that its own benchmark applies. Its six attackers all send the same vector, ours six different
ones; its clients shuffle shards of their own, ours draw from the whole training fold; its evaluation counts errors,
ours computes the loss, too.

### By rule and attack

Batch 3, R = 10:

{rules}

### Where a round's time goes

MNIST, Krum, 6 Gaussian attackers, batch 3, R = 10, one thread, under torch's profiler:

{operations}
"""
