"""One cell to curves: `simulate`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.datasets import Samples
from krum.simulation.parameters import Cell
from krum.simulation.recording import COLUMNS, Recorder
from krum.simulation.round import start, step

NUMBERS_AT_ONCE = 2**22  # of the mini-batches of seeds that run side by side: more waste memory and save no calls


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, since their number decides the rounding of long sums; more jobs keep the cores busy.

    In it, results below the least normal number (1e-38) are 0: many processors compute a hundred times slower with
    them, and the derivatives of saturated softmaxes are full of them.
    """
    before = torch.get_num_threads()
    least = torch.tensor(torch.finfo(torch.float32).tiny)
    flushed = not bool(least / 2)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(before)


@one_thread()
def simulate(
    cell: Cell,
    samples: Samples | None = None,
    *,
    device: str = "auto",
    seeds: Iterable[int] | None = None,
    progress: Callable[[int], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, np.ndarray]:
    """Run one cell and return its curves as columns (see `krum.simulation.recording.COLUMNS`), by seed, then round.

    `seeds` is a subset of the cell's, all of them by default; `progress` is told how many rounds are done, on average
    over the seeds. On a CPU, the same call gives the same bytes, at any number of torch's threads.
    """
    place = pick_device(device)
    seeds = list(range(cell.seeds)) if seeds is None else list(seeds)
    samples = datasets.load(cell.dataset) if samples is None else samples
    drawn = cell.workers * cell.batch_size * samples.features.shape[1]
    at_once = len(seeds) if place.type == "cuda" else max(1, NUMBERS_AT_ONCE // drawn)
    records: list[dict[str, list]] = []
    for first in range(0, len(seeds), at_once):
        state = start(cell, samples, seeds=seeds[first : first + at_once], device=place, dtype=dtype)
        recorder = Recorder(state)
        recorded = [recorder.record()]
        for round_ in range(1, cell.rounds + 1):
            recorder.add(step(state))
            if round_ % cell.evaluate_every == 0 or round_ == cell.rounds:
                recorded.append(recorder.record())
                if progress is not None:
                    progress((cell.rounds * first + round_ * len(state.seeds)) // len(seeds))
        records += [{c: r[c][k] for c in COLUMNS} for k in range(len(state.seeds)) for r in recorded]
    return {column: np.array([record[column] for record in records]) for column in COLUMNS}


def pick_device(name: str) -> torch.device:
    """The device to compute on; "auto" is CUDA where there is one. Raises InputError for "cuda" without CUDA."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: found {name!r}; give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch finds no CUDA device; give auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
