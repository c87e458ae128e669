"""Krum instead of the mean in `torch.nn.parallel.DistributedDataParallel`, around any model.

    model = DistributedDataParallel(model)
    krum.ddp.aggregate_with(model, "krum", f=1)

Each rank is a worker with its own mini-batches. It sends every other rank one of N equal parts of its gradient, takes
part in the choice with its part of all gradients (`krum.sharded`), combines that, and gives the result to all: as many
bytes as in a ring all-reduce, `2 (N - 1) / N` times its gradient, and 8 N^2 for the distances.

The gradients are not trusted, whatever up to f of them hold. The code of all ranks is: each computes a part of every
aggregate. Against machines that run other code, a separate server, or several that compare results, is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from krum.distributed import sharded
from krum.errors import InputError
from krum.rules.aggregation import checked


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
    if not isinstance(model, DistributedDataParallel):
        raise InputError(f"model: found {type(model).__name__}; wrap it in torch.nn.parallel.DistributedDataParallel")
    rule, *_ = checked(aggregator, _count_ranks(group), f, options)
    if rule.previous:
        raise InputError(f"{rule.name} needs the last aggregate, which the hook does not keep; give another rule")
    try:
        combine = partial(sharded.aggregate, aggregator=aggregator, f=f, group=group, **options)
        model.register_comm_hook(_Hook(combine, group), _Hook.receive)
    except RuntimeError as error:
        raise InputError(f"model: has a communication hook already ({error}); wrap it anew") from None


@torch.no_grad()
def aggregate_(
    flat: Tensor,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    previous: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Tensor:
    """Turn every rank's flat gradient `[d]`, in place, into their aggregate by any rule of `krum.AGGREGATORS`.

    Arguments and errors as in `krum.aggregate`, with n the number of ranks; `previous` is the last aggregate `[d]`.
    """
    if not isinstance(flat, Tensor):
        raise InputError(f"flat: found {type(flat).__name__}; give a contiguous floating tensor [d]")
    if flat.ndim != 1 or not flat.is_contiguous() or not flat.is_floating_point():
        raise InputError(f"flat: found {tuple(flat.shape)} of {flat.dtype}; give a contiguous floating tensor [d]")
    checked(aggregator, _count_ranks(group), f, options)  # before anything is sent
    received = receive_buffer(flat, group)
    scatter(flat, received, group).wait()
    if previous is not None:
        options["previous"] = cut(previous, group)[dist.get_rank(group)]
    gather(sharded.aggregate(received, aggregator, f, group=group, **options), flat, group)
    return flat


def _count_ranks(group: dist.ProcessGroup | None) -> int:
    if not dist.is_initialized():
        raise InputError("there is no process group; call torch.distributed.init_process_group first, on every rank")
    return dist.get_world_size(group)


def cut(flat: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, ...]:
    """Each rank's part of a flat vector `[d]`, a view: equal lengths, but for one number where N does not divide d."""
    return flat.tensor_split(dist.get_world_size(group))


def receive_buffer(flat: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Memory for this rank's part of everyone's vectors, `[N, about d / N]`."""
    return flat.new_empty(dist.get_world_size(group), len(cut(flat, group)[dist.get_rank(group)]))


def scatter(flat: Tensor, received: Tensor, group: dist.ProcessGroup | None = None) -> dist.Work:
    """Send every rank its part of this one's vector `[d]`, and fill `received` with this rank's part of everyone's."""
    ranks, length = received.shape
    sizes = [len(part) for part in cut(flat, group)]
    return dist.all_to_all_single(received.view(-1), flat, [length] * ranks, sizes, group=group, async_op=True)


def gather(part: Tensor, flat: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Put all ranks' parts of a vector together in `flat` `[d]`, on every rank.

    One broadcast per rank, straight to its place: the bytes of an all-gather, without gloo's copies of all of them.
    """
    parts = cut(flat, group)
    parts[dist.get_rank(group)].copy_(part)
    sent = [dist.broadcast(one, group=group, group_src=rank, async_op=True) for rank, one in enumerate(parts)]
    for work in sent:
        work.wait()


@dataclass
class _Hook:
    """The buckets of one backward pass: the choice is among whole gradients, so all wait for the last one."""

    combine: Callable[[list[Tensor]], list[Tensor]]  # this rank's parts of everyone's buckets -> of the aggregate
    group: dist.ProcessGroup | None
    waiting: list[tuple[Tensor, Tensor, dist.Work, Future[Tensor]]] = field(default_factory=list)

    def receive(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Send one bucket's gradients; with the last bucket, aggregate all of them."""
        flat = bucket.buffer()
        received = receive_buffer(flat, self.group)
        future: Future[Tensor] = Future() if flat.device.type == "cpu" else Future(devices=[flat.device])
        self.waiting.append((flat, received, scatter(flat, received, self.group), future))
        if bucket.is_last():
            self._aggregate()
        return future

    def _aggregate(self) -> None:
        buckets, self.waiting = self.waiting, []
        for _, _, work, _ in buckets:
            work.wait()
        combined = self.combine([received for _, received, _, _ in buckets])
        for part, (flat, _, _, future) in zip(combined, buckets, strict=True):
            gather(part, flat, self.group)
            future.set_result(flat)
