"""Speed of the simulation: replica-rounds per second, without and with evaluation. Prints a table.

    python -m benchmarks.simulation [--threads 2] [--device cpu] [--repeat 5]

A replica-round is one synchronous round of one seed: every worker's forward and backward pass, the attack, the rule
and the step. Cells are measured in turn, `--repeat` times over, and the median is printed, so that a busy moment of
the machine falls on all alike. "with evaluation" adds one evaluation on the held-out fold every 10 rounds, as in the
experiments. The limit is the multiply-adds of one forward and backward pass of the honest workers' samples at the
matrix rate that this machine reaches on a square product.
"""

import argparse
import itertools
import statistics
import time
from dataclasses import replace

import torch

from benchmarks.machine import describe, matrix_rate, wait
from krum import datasets, experiment
from krum.simulation import Simulation, pick_device


def rate(simulation, rounds, evaluate):
    """Replica-rounds per second over `rounds` more rounds."""
    wait(simulation.device)
    start = time.perf_counter()
    for round_ in range(rounds):
        simulation.step()
        if evaluate and round_ % 10 == 9:
            simulation.record()
    wait(simulation.device)
    return rounds * simulation.replicas / (time.perf_counter() - start)


def multiply_adds(simulation):
    """Of one forward and backward pass over the honest workers' samples: 3 products per layer, 2 for the first."""
    samples = simulation.honest * simulation.cell.batch_size
    return samples * sum((3 if i else 2) * n * m for i, (n, m) in enumerate(simulation.model.layers))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    peak = matrix_rate(device)
    print(f"{describe(device)}, {2 * peak / 1e9:.0f} GFLOP/s")
    print(f"median (least - most) of {arguments.repeat} x {arguments.rounds} rounds, 20 workers, batch 3\n")
    cells = [cell for spec in experiment.load_all().values() for cell in spec.cells]
    simulations = {}
    for dataset, aggregator, attack, replicas in itertools.product(
        ("spambase", "mnist"), ("average", "krum"), ("none", "gaussian"), (1, 10)
    ):
        cell = next(c for c in cells if (c.dataset, c.aggregator, c.attack) == (dataset, aggregator, attack))
        cell = replace(cell, declared_f=6)
        simulations[dataset, aggregator, attack, replicas] = Simulation(
            cell, datasets.load(dataset), device=arguments.device, seeds=range(replicas)
        )
    measured = {key: ([], []) for key in simulations}
    for _ in range(arguments.repeat):
        for key, simulation in simulations.items():
            rate(simulation, 10, evaluate=True)
            for evaluate in (False, True):
                measured[key][evaluate].append(rate(simulation, arguments.rounds, evaluate))
    print(
        f"{'data set':9} {'rule':8} {'attack':9} {'R':>3}  {'replica-rounds/s':>22}  {'of limit':>8}  with evaluation"
    )
    for key, (plain, evaluated) in measured.items():
        dataset, aggregator, attack, replicas = key
        middle = statistics.median(plain)
        share = middle * multiply_adds(simulations[key]) / peak
        spread = f"{middle:7,.0f} ({min(plain):6,.0f} - {max(plain):6,.0f})"
        what = f"{dataset:9} {aggregator:8} {attack:9} {replicas:3}"
        print(f"{what}  {spread}  {share:8.0%}  {statistics.median(evaluated):15,.0f}")


if __name__ == "__main__":
    main()
