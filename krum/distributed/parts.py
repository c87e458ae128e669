"""Every rank's flat vector, cut into one part per rank: how parts go round and come back together."""

import torch.distributed as dist
from torch import Tensor


def cut(flat: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, ...]:
    """Each rank's part of a flat vector `[d]`, a view: equal lengths, but for one number where N does not divide d."""
    return flat.tensor_split(dist.get_world_size(group))


def receive_buffer(flat: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Memory for this rank's part of everyone's vectors, `[N, about d / N]`."""
    return flat.new_empty(dist.get_world_size(group), len(cut(flat, group)[dist.get_rank(group)]))


def scatter(flat: Tensor, received: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Send every rank its part of this one's vector `[d]`, and fill `received`, this rank's part of everyone's."""
    ranks, length = received.shape
    sizes = [len(part) for part in cut(flat, group)]
    dist.all_to_all_single(received.view(-1), flat, [length] * ranks, sizes, group=group)
    return received


def gather(part: Tensor, flat: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Put all ranks' parts of a vector together in `flat` `[d]`, on every rank.

    One broadcast per rank, straight to its place: the bytes of an all-gather, without gloo's copies of all of them.
    """
    parts = cut(flat, group)
    parts[dist.get_rank(group)].copy_(part)
    sent = [dist.broadcast(one, group=group, group_src=rank, async_op=True) for rank, one in enumerate(parts)]
    for work in sent:
        work.wait()
