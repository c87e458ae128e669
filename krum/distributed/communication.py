"""What a round costs on the wire and on the clock: averaging, Krum on everyone's whole gradients, and Krum in parts.

Each rank holds one random gradient `[d]`, float32. Bytes are what the operating system counted on the loopback
interface, beside what the formula says.
"""

import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from krum.distributed import parts, sharded
from krum.rules.aggregation import aggregate

INTERFACES = Path("/proc/net/dev")
FLOAT32 = 4  # bytes


def averaging(gradient: Tensor, received: Tensor) -> None:
    """The mean, by one all-reduce, in place."""
    dist.all_reduce(gradient)
    gradient.div_(dist.get_world_size())


def gathered(gradient: Tensor, received: Tensor) -> None:
    """Krum where everyone sends everyone everything, and all compute the same."""
    _all_gather(received.view(-1), gradient)
    aggregate(received, _rule(), f=0)


def in_parts(gradient: Tensor, received: Tensor) -> None:
    """Krum as `krum.ddp` does it, in place."""
    parts.scatter(gradient, received)
    parts.gather(sharded.aggregate(received, _rule(), f=0), gradient)


def _rule() -> str:
    """Krum; of two vectors, for which it is not defined, the medoid, which sees the same distances."""
    return "krum" if dist.get_world_size() > 2 else "medoid"


_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name before torch 2.13
METHODS = {"averaging": averaging, "gathered": gathered, "in-parts": in_parts}


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
    lines = INTERFACES.read_text(encoding="ascii").splitlines() if INTERFACES.exists() else []
    return next((float(line.split()[9]) for line in lines if line.strip().startswith("lo: ")), float("nan"))


def measure(dimension: int, rounds: int = 7) -> list[dict[str, float | str]]:
    """One row per method, on every rank: medians over the rounds, in which the methods take turns.

    A round takes as long as its slowest rank.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    drawn = torch.randn(dimension, generator=torch.Generator().manual_seed(rank))
    gradient = drawn.clone()  # averaging, and Krum in parts, leave their result in it
    everyones = {"gathered": drawn.new_zeros(ranks, dimension), "in-parts": parts.receive_buffer(drawn)}
    seconds, sent = defaultdict(list), defaultdict(list)
    for turn in range(rounds + 1):
        for name, method in METHODS.items():
            gradient.copy_(drawn)
            dist.barrier()
            before, start = bytes_counted(), time.perf_counter()
            method(gradient, everyones.get(name, drawn))
            elapsed = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            dist.barrier()
            after = bytes_counted()
            dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
            if turn:  # the first one warms up
                sent[name].append(after - before)
                seconds[name].append(elapsed.item())
    return [
        {
            "method": name,
            "seconds": statistics.median(seconds[name]),
            "fastest": min(seconds[name]),
            "bytes": statistics.median(sent[name]),
            "formula": bytes_sent(name, ranks, dimension),
        }
        for name in METHODS
    ]
