"""What `make` costs: CPU seconds of a tenth of every curve, on one thread.

python -m benchmarks.tenth [--every 10]

Every cell of the paper's figures, its supplement and what goes beyond runs a tenth of its rounds, with all its seeds.
CPU time does not depend on what else the machine does as much as the clock does.
"""

import argparse
import time
from dataclasses import replace

import pandas as pd
from tqdm import tqdm

from benchmarks import measuring
from krum.simulation.run import simulate
from krum.suite import experiment

PARTS = ("paper", "supplement", "beyond")  # of `make`; `make review` adds the rest
GROUP = ["dataset", "model", "batch_size"]


def tenth(cell):
    """The same cell with a tenth of the rounds."""
    rounds = -(-cell.rounds // 10)
    return replace(cell, rounds=rounds, evaluate_every=min(cell.evaluate_every, rounds))


def cells():
    """Every different cell of `make`."""
    different = {cell for spec in experiment.load_all().values() if spec.part in PARTS for cell in spec.cells}
    return sorted(different, key=lambda cell: cell.to_json())


def measure_every(step):
    """One row per so many-th cell: its group and its CPU seconds."""
    rows, warm = [], set()
    for cell in tqdm(cells()[::step], desc="a tenth of every curve"):
        group = tuple(getattr(cell, key) for key in GROUP)
        if group not in warm:
            simulate(replace(cell, rounds=2, evaluate_every=2, seeds=2), device="cpu")
            warm.add(group)
        start = time.process_time()
        simulate(tenth(cell), device="cpu")
        rows.append((*group, time.process_time() - start))
    return pd.DataFrame(rows, columns=[*GROUP, "seconds"])


def measure(device, repeat, quick):
    """Every cell once, on a CPU, or a few of them."""
    return measure_every(20 if quick else 1)


def group_table(rows):
    """A line per data set, model and mini-batch: how many curves, and their CPU seconds; and their sum."""
    groups = rows.groupby(GROUP)["seconds"].agg(["count", "sum"])
    lines = [[*key, count, measuring.number(seconds)] for key, count, seconds in groups.itertuples()]
    lines.append(["all", "", "", len(rows), measuring.number(rows["seconds"].sum())])
    return measuring.table(["data set", "model", "batch", "curves", "CPU seconds of a tenth"], lines, words=2)


def section(rows, repeat):
    return SECTION.format(minutes=measuring.number(10 * rows["seconds"].sum() / 60), table=group_table(rows))


SECTION = """## The experiments

A tenth of the rounds of every curve of `make`, all seeds, on one thread (`python -m benchmarks.tenth`); the whole takes
about ten times as much, {minutes} minutes, shared by the processor's cores. Snakemake and drawing come on top.

{table}
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenth", description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="only every so many-th curve (default: 1)")
    print(group_table(measure_every(parser.parse_args().every)))
