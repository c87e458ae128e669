"""Speed of `krum.aggregate` beside every other package that is installed.

Everyone gets the same float32 vectors, new ones in every repetition, once as a matrix `[n, d]` and once as a list of n
tensors, and a turn in every repetition, so that a busy moment of the machine falls on all alike. A package that has
taken PATIENCE seconds at a size runs there no more.
"""

from functools import partial

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import measuring
from benchmarks.peers import OURS, PEERS, installed

SIZES = [(20, 6_000), (20, 100_000), (20, 10_000_000), (100, 1_000_000), (500, 100_000), (1000, 100_000)]
FORMS = {"matrix": "a matrix", "list": "a list of tensors"}
PATIENCE = 5


def most_faults(n):
    """A third of the workers, and few enough for Krum."""
    return (n - 3) // 3


def vectors(n, d, seed, device):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(device)


def measure(device, repeat, quick):
    """One row per size, form, implementation and repetition: its seconds."""
    rows, implementations = [], installed(device)
    for implementation in implementations.values():  # the first call imports
        implementation(vectors(*SIZES[0], 0, device), most_faults(SIZES[0][0]))
    for n, d in tqdm(SIZES[:2] if quick else SIZES, desc="aggregation"):
        times = {(form, name): [] for form in FORMS for name in implementations}
        for turn in range(repeat + 1):  # the first turn warms up
            matrix = vectors(n, d, turn, device)
            forms = {"matrix": matrix, "list": [row.clone() for row in matrix]}
            for (form, name), measured in times.items():
                if sum(measured) < PATIENCE:
                    elapsed = measuring.seconds(partial(implementations[name], forms[form], most_faults(n)))
                    if turn or elapsed > PATIENCE:
                        measured.append(elapsed)
        rows += [(n, d, *key, each) for key, measured in times.items() for each in measured]
    return pd.DataFrame(rows, columns=["n", "d", "form", "implementation", "seconds"])


def speed_table(rows):
    """A line per size: everyone's milliseconds, and the fastest other package's over ours."""
    names, lines = list(rows["implementation"].unique()), []
    for (n, d), at_size in rows.groupby(["n", "d"], sort=False):
        milliseconds = 1e3 * at_size.set_index("implementation")["seconds"]
        medians = milliseconds.groupby(level=0).median()
        others = medians.drop([name for name in names if name not in PEERS])
        ratio = f"{others.min() / medians[OURS]:.2f}" if len(others) else ""
        lines.append([f"{n:,}", f"{d:,}", *(measuring.spread(milliseconds[[name]]) for name in names), ratio])
    return measuring.table(["n", "d", *names, "fastest other package / ours"], lines, words=0)


def section(rows, repeat):
    tables = [f"### {words.capitalize()}\n\n{speed_table(rows[rows['form'] == form])}" for form, words in FORMS.items()]
    missing = ", ".join(name for name in PEERS if name not in set(rows["implementation"]))
    note = f"\nNot measured, since not installed or for the CPU only: {missing}.\n" if missing else ""
    return SECTION.format(repeat=repeat, missing=note, tables="\n\n".join(tables))


SECTION = """## Aggregation

Krum of n float32 vectors of d numbers: milliseconds, median (least - most) of {repeat} repetitions.
{missing}
{tables}

"ten lines" is Krum by `X @ X.T` in float32, as anyone would write it. It and torchjd subtract float32 inner products,
which loses the choice where vectors have a large common part; ours is the choice of exact arithmetic
([how](../krum/rules/proven_choice.py)). We and flwr take a list as it is; the others copy it into a matrix first. What
they compute differs: byzfl's Krum counts one neighbour more, torchjd's does not square. byzpy 0.1.4 wants torch before
2.6 and does not install beside it; PyPI's krum wants Python 3.12, and this package's name.
"""
