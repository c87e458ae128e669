"""Speed of aggregation: ours and every peer that is installed, in turn, beside what the machine allows.

    python -m benchmarks.aggregation [--device cpu] [--repeat 7] [--quick]

Each implementation gets the same float32 matrix `[n, d]` and its turn in every repetition, so that a busy moment of the
machine falls on all alike. The limit is the larger of two times: reading the n d numbers once at the measured
bandwidth, and n^2 d multiply-adds at the measured float32 rate. One that has taken `--patience` seconds at a size runs
there no more.
"""

import argparse
import importlib.util
import statistics
from functools import partial

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import machine
from benchmarks.peers import CPU_ONLY, PEERS
from krum.simulation import pick_device

SIZES = [(20, 6_000), (20, 100_000), (20, 10_000_000), (100, 1_000_000), (500, 100_000), (1000, 100_000)]
QUICK = [(20, 6_000), (20, 100_000), (100, 10_000)]


def limit(n, d, read, products):
    """Seconds that the arithmetic or the memory takes at least."""
    return max(4 * n * d / read, n * n * d / products)


def installed():
    """The peers that can be imported."""
    here = {name for name in PEERS if name in ("krum (ours)", "ten lines") or importlib.util.find_spec(name)}
    return {name: function for name, function in PEERS.items() if name in here}


def measure(device, sizes, repeat, patience):
    """One row per size, rule and implementation: the median seconds, and the limit."""
    read, products = machine.bandwidth(device), machine.matrix_rate(device)
    peers = {k: v for k, v in installed().items() if device.type == "cpu" or k not in CPU_ONLY}
    rows = []
    for n, d in tqdm(sizes, desc="aggregation"):
        f = (n - 3) // 3
        matrix = torch.randn(n, d, generator=torch.Generator().manual_seed(n)).to(device)
        for rule in ("krum", "multi-krum"):
            m = None if rule == "krum" else n - f
            times = {name: [] for name in peers}
            for turn in range(repeat + 1):  # the first turn warms up
                for name, own in times.items():
                    if sum(own) > patience:
                        continue
                    took = machine.timed(partial(peers[name], matrix, f, m), device)
                    if turn or took > patience:
                        own.append(took)
            for name, own in times.items():
                median, least = statistics.median(own), limit(n, d, read, products)
                rows.append({"n": n, "d": d, "rule": rule, "implementation": name, "seconds": median, "limit": least})
    return pd.DataFrame(rows), read, products


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--patience", type=float, default=10, help="seconds (default: 10)")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    rows, read, products = measure(device, QUICK if arguments.quick else SIZES, arguments.repeat, arguments.patience)
    print(PAGE.format(machine=machine.describe(device, ("byzfl", "torchjd", "flwr")), read=read / 1e9,
                      products=products / 1e9, table="\n".join(table(rows)), repeat=arguments.repeat))  # fmt: skip


def table(rows):
    """Markdown: a line per rule and size, a column per implementation with its milliseconds and share of the limit."""
    names = list(dict.fromkeys(rows["implementation"]))
    lines = [f"| rule | n | d | limit, ms | {' | '.join(names)} |", "|---|" + "---:|" * (len(names) + 3)]
    for (rule, n, d), here in rows.groupby(["rule", "n", "d"], sort=False):
        own = here.set_index("implementation")
        cells = [
            f"{1e3 * own['seconds'][name]:.3g} ({own['seconds'][name] / own['limit'][name]:.1f}x)" for name in names
        ]
        lines.append(f"| {rule} | {n:,} | {d:,} | {1e3 * own['limit'].iloc[0]:.3g} | {' | '.join(cells)} |")
    return lines


PAGE = """# Speed of aggregation

Krum and Multi-Krum of a float32 matrix, median of {repeat} runs in milliseconds, and how many times the limit that is:
reading the matrix once, or n^2 d multiply-adds, whichever takes longer. This page is what `python -m
benchmarks.aggregation` prints; `make bench` installs the peers and runs it.

{machine}. {read:.0f} GB/s, {products:.0f} G multiply-adds/s.

{table}

"ten lines" is Krum by `X @ X.T` in float32, as anyone would write it. It and torchjd subtract float32 inner products,
which loses the choice where vectors have a large common part. Ours is the choice of exact arithmetic: proven from
float32 products, and computed in float64 where these cannot tell ([how](../krum/selection.py)). Small inputs pay for
that with some hundreds of microseconds, large ones where two scores nearly tie. byzpy 0.1.4 wants torch before 2.6 and
does not install beside it; PyPI's krum wants Python 3.12, and this package's name.
"""


if __name__ == "__main__":
    main()
