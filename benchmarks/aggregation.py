"""Speed of aggregation: ours and every peer that is installed, in turn, beside what the machine allows.

Each implementation gets the same float32 vectors, once as a matrix `[n, d]` and once as a list of n tensors, and its
turn in every repetition, so that a busy moment of the machine falls on all alike; a turn is as many calls as fill 20
ms. Every repetition draws new vectors: our time depends on how close the scores are. The limit is the larger of two
times: reading the n d numbers once at the measured bandwidth, and n^2 d multiply-adds at the measured float32 rate;
half of them are enough, so that it can be beaten. One that has taken PATIENCE seconds at a size runs there no more.
"""

import statistics
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import machine, page
from benchmarks.peers import BASELINE, OURS, PEERS, installed, ours

SIZES = [(20, 6_000), (20, 100_000), (20, 10_000_000), (100, 1_000_000), (500, 100_000), (1000, 100_000)]
QUICK = [(20, 6_000), (20, 100_000), (100, 10_000)]
HALVES, QUICK_HALVES = [(20, 100_000), (100, 1_000_000)], [(20, 6_000), (100, 10_000)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RULES, FORMS = ("krum", "multi-krum"), ("matrix", "list")
PATIENCE = 5
STYLES = {  # Okabe and Ito's colours, as in the other figures, and a marker for print
    OURS: ("#D55E00", "s"),
    BASELINE: ("#7F7F7F", "o"),
    "byzfl": ("#0072B2", "^"),
    "torchjd": ("#009E73", "D"),
    "flwr": ("#CC79A7", "v"),
}


def limit(n, d, read, products):
    """Seconds that the arithmetic or the memory takes at least."""
    return max(4 * n * d / read, n * n * d / products)


def most_faults(n):
    """A third of the workers, and few enough for Krum."""
    return (n - 3) // 3


def vectors(n, d, seed, device):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(device)


def measure(device, sizes, repeat):
    """One row per size, rule, form, implementation and repetition: its seconds."""
    rows, peers = [], installed(device)
    for peer in peers.values():  # the first call imports and compiles
        peer(vectors(*SIZES[0], 0, device), most_faults(SIZES[0][0]), None)
    for n, d in tqdm(sizes, desc="aggregation"):
        f = most_faults(n)
        times = {(rule, form, name): [] for rule in RULES for form in FORMS for name in peers}
        for turn in range(repeat + 1):  # the first turn warms up
            matrix = vectors(n, d, turn, device)
            forms = {"matrix": matrix, "list": [row.clone() for row in matrix]}
            for (rule, form, name), own in times.items():
                if sum(own) < PATIENCE:
                    m = None if rule == "krum" else n - f
                    took = machine.call(partial(peers[name], forms[form], f, m), device)
                    if turn or took > PATIENCE:
                        own.append(took)
        for key, own in times.items():
            rows += [(n, d, *key, seconds) for seconds in own]
    return pd.DataFrame(rows, columns=["n", "d", "rule", "form", "implementation", "seconds"])


def with_limits(rows, read, products):
    """The rows, and the least seconds at their sizes."""
    return rows.assign(limit=[limit(n, d, read, products) for n, d in zip(rows["n"], rows["d"], strict=True)])


def speed_table(rows):
    """A line per size: every implementation's milliseconds and times the limit, and the best peer's over ours."""
    names = list(dict.fromkeys(rows["implementation"]))
    lines = []
    for (n, d), here in rows.groupby(["n", "d"], sort=False):
        least = here["limit"].iloc[0]
        own = {name: list(group["seconds"]) for name, group in here.groupby("implementation")}
        medians = {name: statistics.median(seconds) for name, seconds in own.items()}
        cells = [
            f"{page.spread([1e3 * seconds for seconds in own[name]])} {medians[name] / least:.1f}x" for name in names
        ]
        peers = [medians[name] for name in names if name in PEERS]
        best = f"{min(peers) / medians[OURS]:.2f}" if peers else ""
        lines.append([f"{n:,}", f"{d:,}", page.number(1e3 * least), *cells, best])
    return page.table(["n", "d", "limit, ms", *names, "best peer / ours"], lines, words=0)


def draw(rows):
    """A panel per rule and form: by size, everyone's median and range, and the limit as a line."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = figure.subplots(len(RULES), len(FORMS), sharex=True, sharey=True)
    sizes = list(rows[["n", "d"]].drop_duplicates().itertuples(index=False, name=None))
    names = list(dict.fromkeys(rows["implementation"]))
    for axes, (rule, form) in zip(panels.flat, [(rule, form) for rule in RULES for form in FORMS], strict=True):
        here = rows[(rows["rule"] == rule) & (rows["form"] == form)]
        limits = [1e3 * here[(here["n"] == n) & (here["d"] == d)]["limit"].iloc[0] for n, d in sizes]
        places = np.arange(len(sizes))
        axes.hlines(limits, places - 0.45, places + 0.45, color="black", linewidth=1.5, label="limit")
        for number, name in enumerate(names):
            own = here[here["implementation"] == name].groupby(["n", "d"], sort=False)["seconds"]
            middle, least, most = (1e3 * getattr(own, what)().reindex(sizes) for what in ("median", "min", "max"))
            colour, marker = STYLES[name]
            axes.errorbar(places + (number - (len(names) - 1) / 2) * 0.16, middle, [middle - least, most - middle],
                          color=colour, marker=marker, linestyle="none", markersize=6, label=name)  # fmt: skip
        axes.set(yscale="log", title=f"{rule}, {'a matrix' if form == 'matrix' else 'a list of tensors'}")
        axes.set_xticks(places, [f"{n:,}\n{d:,}" for n, d in sizes])
        axes.grid(axis="y", alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("vectors n, dimension d")
    for axes in panels[:, 0]:
        axes.set_ylabel("time, ms")
        page.log_axis(axes.yaxis)
    figure.suptitle("Time of one aggregation of float32 vectors: median, least and most", fontsize=12)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names) + 1)
    return figure


def half_precision(device, sizes, repeat):
    """One row per size, dtype and repetition: our seconds for Krum of a matrix."""
    rows = []
    for n, d in tqdm(sizes, desc="half precision"):
        for turn in range(repeat + 1):
            matrix = vectors(n, d, turn, device)
            for dtype in DTYPES:
                took = machine.call(partial(ours, matrix.to(dtype), most_faults(n), None), device)
                if turn:
                    rows.append((n, d, str(dtype).removeprefix("torch."), took))
    return pd.DataFrame(rows, columns=["n", "d", "dtype", "seconds"])


def half_table(rows):
    """A line per size: the milliseconds in each dtype, and times those of float32."""
    names = list(dict.fromkeys(rows["dtype"]))
    lines = []
    for (n, d), here in rows.groupby(["n", "d"], sort=False):
        own = {name: list(1e3 * group["seconds"]) for name, group in here.groupby("dtype")}
        whole = statistics.median(own["float32"])
        ratios = [f"{statistics.median(own[name]) / whole:.2f}x" for name in names]
        cells = [f"{page.spread(own[name])} {ratio}" for name, ratio in zip(names, ratios, strict=True)]
        lines.append([f"{n:,}", f"{d:,}", *cells])
    return page.table(["n", "d", *names], lines, words=0)


def section(device, repeat, quick):
    """Measure, keep the rows, draw the figure; the section of the page."""
    read, products = machine.bandwidth(device), machine.matrix_rate(device)
    rows = measure(device, QUICK if quick else SIZES, repeat)
    read, products = max(read, machine.bandwidth(device)), max(products, machine.matrix_rate(device))
    rows = with_limits(rows, read, products)
    halves = half_precision(device, QUICK_HALVES if quick else HALVES, repeat)
    page.keep(rows, "aggregation")
    page.keep(halves, "half-precision")
    tables = [
        f"### {rule}, {'a matrix' if form == 'matrix' else 'a list of tensors'}\n\n{speed_table(here)}"
        for (rule, form), here in rows.groupby(["rule", "form"], sort=False)
    ]
    missing = [name for name in PEERS if name not in installed(device)]
    return SECTION.format(
        repeat=repeat,
        read=page.number(read / 1e9),
        products=page.number(products / 1e9),
        missing=f"\nNot measured here, not installed or for the CPU only: {', '.join(missing)}.\n" if missing else "",
        figure=page.save(draw(rows), "speed-aggregation"),
        tables="\n\n".join(tables),
        halves=half_table(halves),
    )


SECTION = """## Aggregation

Krum and Multi-Krum of float32 vectors: milliseconds, median (least - most) of {repeat} repetitions, each with new
vectors that are the same for everyone, and with as many calls as fill 20 ms; and how many times the limit the median
is. The limit is reading the vectors once at {read} GB/s, or the n^2 d multiply-adds of a matrix product at {products}
G/s, whichever takes longer; both rates are measured here. The matrix is symmetric and half of it is enough, so that
many vectors can take less than 1x. The last column is the median of the fastest other package over ours.
{missing}
{figure}

{tables}

"ten lines" is Krum by `X @ X.T` in float32, as anyone would write it. It and torchjd subtract float32 inner products,
which loses the choice where vectors have a large common part. Ours is the choice of exact arithmetic: proven from
float32 products, and computed in float64 where these cannot tell ([how](../krum/selection.py)). We and flwr take a list
as it is; the others copy it into a matrix first. What they compute differs: byzfl's Krum counts one neighbour more,
torchjd's does not square. byzpy 0.1.4 wants torch before 2.6 and does not install beside it; PyPI's krum wants Python
3.12, and this package's name.

### Half precision

Our Krum of a matrix, milliseconds, and times float32's:

{halves}
"""
