"""Krum instead of the mean in `torch.nn.parallel.DistributedDataParallel`, around any model.

    model = DistributedDataParallel(model)
    krum.ddp.aggregate_with(model, "krum", f=1)

Each rank is a worker with its own mini-batches. Its gradient goes out in N equal parts, one to each rank, so that
every rank holds 1/N of the coordinates of all N gradients; there it takes part in the choice (`krum.sharded`),
combines its part, and gives the result to all. A rank sends `2 (N - 1) / N` times its gradient, as many bytes as a
ring all-reduce, plus 8 N^2 for the distances, and not N times its gradient, as if it sent it to everyone.

The code of all ranks is trusted: each computes a part of every aggregate. Their gradients are not: whatever up to f
of them hold, the aggregate is what the rule makes of it. Against machines that do not run this code as it stands, a
separate server, or several that compare their results, is needed.
"""

from dataclasses import dataclass, field
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
        model.register_comm_hook(_Hook(aggregator, f, options, group), _Hook.receive)
    except RuntimeError as error:
        raise InputError(f"model: has a communication hook already ({error}); wrap it anew") from None


@torch.no_grad()
def aggregate_(
    flat: Tensor,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    previous: Tensor | None = None,
    received: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Tensor:
    """Turn every rank's flat gradient `[d]`, in place, into their aggregate by any rule of `krum.AGGREGATORS`.

    Arguments and errors as in `krum.aggregate`, with n the number of ranks; `previous` is the last aggregate `[d]`.
    `received` is memory for this rank's part of everyone's gradients, `receive_buffer(flat)`, made anew by default.
    """
    if not isinstance(flat, Tensor) or flat.ndim != 1 or not flat.is_contiguous() or not flat.is_floating_point():
        found = f"{tuple(flat.shape)} of {flat.dtype}" if isinstance(flat, Tensor) else type(flat).__name__
        raise InputError(f"flat: found {found}; give a contiguous floating tensor [d]")
    checked(aggregator, _count_ranks(group), f, options)  # before anything is sent
    received = receive_buffer(flat, group) if received is None else received
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

    aggregator: str
    f: int | None
    options: dict[str, Any]
    group: dist.ProcessGroup | None
    buffers: dict[int, Tensor] = field(default_factory=dict)  # by bucket, kept from step to step
    waiting: list[tuple[Tensor, Tensor, dist.Work, Future[Tensor]]] = field(default_factory=list)

    def receive(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Send one bucket's gradients; with the last bucket, aggregate all of them."""
        flat, received = bucket.buffer(), self.buffers.get(bucket.index())
        if received is None or received.shape[1] != len(cut(flat, self.group)[dist.get_rank(self.group)]):
            received = receive_buffer(flat, self.group)  # at first, and when DDP cuts its buckets anew
            self.buffers[bucket.index()] = received
        future: Future[Tensor] = Future() if flat.device.type == "cpu" else Future(devices=[flat.device])
        self.waiting.append((flat, received, scatter(flat, received, self.group), future))
        if bucket.is_last():
            self._aggregate()
        return future

    def _aggregate(self) -> None:
        buckets, self.waiting = self.waiting, []
        for _, _, work, _ in buckets:
            work.wait()
        parts = [received for _, received, _, _ in buckets]
        combined = sharded.aggregate(parts, self.aggregator, self.f, group=self.group, **self.options)
        for part, (flat, _, _, future) in zip(combined, buckets, strict=True):
            gather(part, flat, self.group)
            future.set_result(flat)
