"""Krum on gradients whose coordinates are spread over processes: the same choice as in one place, exactly.

Krum sees n vectors only through their distances, and a squared distance is a sum over parameters. So every process
sums over the parameters that it holds, n^2 numbers are added up over all processes, and each takes the same weights
and combines its own slice: the summation form of Chu et al., "Map-Reduce for Machine Learning on Multicore" (NIPS 19,
2006). Parameters may be cut by layers, by neurons, or into equal parts of a flat vector.

Every rank of a process group calls the same function with its own slices of all n vectors: a tensor `[n, ...]`, or a
list or a dict of them; ranks may hold different numbers of parameters, or none.
DTensors stand for their local parts, which must be cut along parameters and not along workers, nor be replicated.

The ranks are trusted, the gradients are not: one with a NaN or an infinity, in whichever slice, is infinitely far.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from krum.errors import InputError
from krum.rules import aggregation, vectors

Slices = Any  # Tensor [n, ...], or a list or a dict of them


@torch.no_grad()
def aggregate(
    slices: Slices,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    return_weights: bool = False,
    **options: Any,
) -> Any:
    """This rank's slices of the aggregate of n vectors, by any rule of `krum.AGGREGATORS`.

    Args:
        slices: what this rank holds of the n vectors, `[n, ...]` each.
        aggregator, f, options: as in `krum.aggregate`, and the same on every rank; `previous`, where a rule takes it,
            has the form of the result.
        group: the ranks that hold the other slices; by default all of them.
        return_weights: also return whom the rule chose.

    Returns:
        Slices of the form of `slices`, without the leading n; with `return_weights` a pair of them and each vector's
        weight `[n]`, float64, the same on every rank, or None for rules that have no weights ("median", ...).

    Raises:
        TypeError, InputError: as in `krum.aggregate`; what concerns whole vectors is raised on every rank.
    """
    result, chosen = aggregation.aggregate_read(_read(slices, group), aggregator, f, options)
    result = vectors.each(_placed, slices, result)
    return (result, chosen) if return_weights else result


@torch.no_grad()
def weights(
    slices: Slices,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Tensor:
    """The weight `[n]`, float64, that a Gram rule gives to each of the n vectors; the same on every rank.

    Arguments and errors as in `aggregate`; rules that need coordinates ("median", ...) have no weights.
    """
    return aggregation.weights_read(_read(slices, group), aggregator, f, options)


def _read(slices: Slices, group: dist.ProcessGroup | None) -> vectors.Vectors:
    """What this rank holds of the vectors, and how to add up over ranks: each sum has the same bits on every rank."""

    def sum_over_ranks(numbers: Tensor) -> Tensor:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(numbers, group=group)
        return numbers

    return vectors.read_slices(vectors.each(_local, slices), sum_over_ranks)


def _local(part: Any) -> Any:
    """What this rank holds of a DTensor; all else as it is. Raises InputError."""
    if not _is_dtensor(part):
        return part
    for placement in part.placements:
        if not placement.is_shard() or placement.dim == 0:
            raise InputError(
                f"slices: found a DTensor placed {placement}; give one that is sharded along a parameter's "
                f"dimension, from 1 on, so that each rank holds other coordinates of all n vectors"
            )
    return part.to_local()


def _is_dtensor(part: Any) -> bool:
    """By what it has: to import its class takes as long as to import torch."""
    return hasattr(part, "placements")


def _placed(before: Any, part: Tensor) -> Tensor:
    """This rank's part of a result as a DTensor without n where the slice was one."""
    if not _is_dtensor(before):
        return part
    placements = [type(placement)(placement.dim - 1) for placement in before.placements]
    shape, stride = before.shape[1:], before.stride()[1:]
    return type(before).from_local(part, before.device_mesh, placements, shape=shape, stride=stride)
