"""What a round costs on the wire and on the clock: averaging, Krum on everyone's whole gradients, and Krum in parts.

Each process of a group holds one random gradient `[d]`, float32. Times are medians over several rounds, and bytes what
the operating system counted on the loopback interface, beside what the formula says.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from krum.distributed import ddp
from krum.rules.aggregation import aggregate

INTERFACES = Path("/proc/net/dev")
FLOAT32 = 4  # bytes


def averaging(gradient: Tensor, received: Tensor) -> None:
    """The mean, by one all-reduce, in place."""
    dist.all_reduce(gradient)
    gradient.div_(dist.get_world_size())


def gathered(gradient: Tensor, received: Tensor) -> None:
    """Krum where everyone sends everyone everything, and all compute the same."""
    everyone = received.view(-1, len(gradient))
    _all_gather(received, gradient)
    aggregate(everyone, _rule(len(everyone)), f=0)


def in_parts(gradient: Tensor, received: Tensor) -> None:
    """Krum as `krum.ddp` does it, in place."""
    ddp.aggregate_(gradient, _rule(len(received)), f=0, received=received)


def _rule(ranks: int) -> str:
    """Krum; of two vectors, for which it is not defined, the medoid, which sees the same distances."""
    return "krum" if ranks > 2 else "medoid"


_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name before torch 2.13
METHODS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "averaging": averaging,
    "gathered": gathered,
    "in-parts": in_parts,
}


def bytes_sent(method: str, ranks: int, dimension: int) -> float:
    """The bytes that all N ranks together send in a round, by formula; d float32 numbers each.

    A ring all-reduce passes every number on 2 (N - 1) times. Gathering sends every gradient to N - 1 others. In
    parts, a gradient goes out once but for the part that stays, the aggregate's parts go to N - 1 others, and N^2
    float64 distances are all-reduced.
    """
    if method == "gathered":
        return float(FLOAT32 * ranks * (ranks - 1) * dimension)
    around = 2.0 * (ranks - 1) * FLOAT32 * dimension
    return around if method == "averaging" else around + 2.0 * (ranks - 1) * 8 * ranks**2


def bytes_counted() -> float:
    """Bytes that the loopback interface has sent so far; NaN where the system does not tell."""
    try:
        lines = INTERFACES.read_text(encoding="ascii").splitlines()
    except OSError:
        return float("nan")
    numbers = [line.partition(":")[2].split() for line in lines if line.strip().startswith("lo:")]
    return float(numbers[0][8]) if numbers else float("nan")


def measure(dimension: int, rounds: int = 7) -> list[dict[str, float | str | int]]:
    """One row per method, on every rank; the methods take turns, and times are those of the slowest rank."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    drawn = torch.randn(dimension, generator=torch.Generator().manual_seed(rank))
    gradient = drawn.clone()  # averaging, and Krum in parts, leave their result in it
    received = {name: ddp.receive_buffer(drawn) for name in METHODS} | {"gathered": drawn.new_zeros(ranks * dimension)}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    sent: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(rounds + 1):
        for name, method in METHODS.items():
            gradient.copy_(drawn)
            dist.barrier()
            before, start = bytes_counted(), time.perf_counter()
            method(gradient, received[name])
            elapsed = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
            dist.barrier()
            sent[name].append(bytes_counted() - before)
            dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
            seconds[name].append(elapsed.item())
    return [
        {
            "method": name,
            "ranks": ranks,
            "dimension": dimension,
            "seconds": statistics.median(seconds[name][1:]),  # the first round warms up
            "fastest": min(seconds[name][1:]),
            "bytes": statistics.median(sent[name][1:]),
            "formula": bytes_sent(name, ranks, dimension),
        }
        for name in METHODS
    ]
