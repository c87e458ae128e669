"""Krum instead of the mean in `torch.nn.parallel.DistributedDataParallel`, around any model.

    model = DistributedDataParallel(model)
    krum.parallel.aggregate_with(model, "krum", f=1)

Each rank is a worker with its own mini-batches. Its gradient goes out in N equal parts, one to each rank, so that
every rank holds 1/N of the coordinates of all N gradients; there it takes part in the choice (`krum.sharded`),
combines its part, and gives the result to all. A rank sends `2 (N - 1) / N` times its gradient, as many bytes as a
ring all-reduce, plus 8 N^2 for the distances, and not N times its gradient, as if it sent it to everyone.

The code of all ranks is trusted: each computes a part of every aggregate. Their gradients are not: whatever up to f
of them hold, the aggregate is what the rule makes of it. Against machines that do not run this code as it stands, a
server of its own, or several that compare their results, is needed.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from krum import sharded
from krum.aggregation import checked
from krum.errors import InputError


def aggregate_with(
    model: DistributedDataParallel,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> None:
    """Let `model` aggregate its ranks' gradients by a rule of `krum.AGGREGATORS` from now on.

    Args:
        model: the wrapped model, before its first backward pass. All its gradients together count as one vector,
            however many buckets they travel in.
        aggregator, f, options: as in `krum.aggregate`, with n the number of ranks.
        group: the ranks of `model`, where they are not all.

    Raises:
        InputError: unknown rule or option, too few ranks for f, or a rule that needs what a step does not give
            (`round`, `coin`, `previous`). During training: more than f gradients with a NaN or an infinity.
    """
    rule, *_ = checked(aggregator, dist.get_world_size(group), f, options)
    if rule.previous:
        raise InputError(f"{rule.name} needs the last aggregate, which is not kept here; give another rule")
    model.register_comm_hook(_Step(aggregator, f, options, group), _hook)


@torch.no_grad()
def aggregate(
    flat: Tensor,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    previous: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Tensor:
    """The aggregate `[d]` of all ranks' flat gradients `[d]`, by any rule of `krum.AGGREGATORS`; every rank has it.

    Arguments and errors as in `krum.aggregate`, with n the number of ranks; `previous` is the last aggregate `[d]`.
    """
    received, work = parts(flat, group)
    work.wait()
    if previous is not None:
        options["previous"] = cut(previous, group)[dist.get_rank(group)]
    return whole(sharded.aggregate(received, aggregator, f, group=group, **options), len(flat), group)


def cut(flat: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """A flat vector `[d]` in N equal parts, `[N, ceil(d / N)]`; the last one is filled up with zeros."""
    ranks = dist.get_world_size(group)
    size = -(-len(flat) // ranks)
    return torch.nn.functional.pad(flat, (0, ranks * size - len(flat))).view(ranks, size)


def parts(flat: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, dist.Work]:
    """Send a flat vector `[d]` to all ranks, 1/N of it to each: `[N, ceil(d / N)]`, there when the work has ended.

    Row i is rank i's vector in this rank's part of the coordinates.
    """
    sent = cut(flat, group)
    received = torch.empty_like(sent)
    return received, dist.all_to_all_single(received, sent, group=group, async_op=True)


def whole(part: Tensor, length: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """The flat vector `[length]` of which each rank has a part, as `parts` cuts it."""
    gathered = part.new_empty(len(part) * dist.get_world_size(group))
    all_gather(gathered, part, group=group)
    return gathered[:length]


all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name before torch 2.13


@dataclass
class _Step:
    """The buckets of one backward pass: the choice is among whole gradients, so all wait for the last one."""

    aggregator: str
    f: int | None
    options: dict[str, Any]
    group: dist.ProcessGroup | None
    waiting: list[tuple[Tensor, dist.Work, Tensor, Future[Tensor]]] = field(default_factory=list)


def _hook(step: _Step, bucket: dist.GradBucket) -> Future[Tensor]:
    flat = bucket.buffer()
    future: Future[Tensor] = Future() if flat.device.type == "cpu" else Future(devices=[flat.device])
    step.waiting.append((*parts(flat, step.group), flat, future))
    if bucket.is_last():
        waiting, step.waiting = step.waiting, []
        for _, work, _, _ in waiting:
            work.wait()
        received = [part for part, *_ in waiting]
        combined = sharded.aggregate(received, step.aggregator, step.f, group=step.group, **step.options)
        for part, (_, _, sent, made) in zip(combined, waiting, strict=True):
            made.set_result(whole(part, len(sent), step.group))
    return future
