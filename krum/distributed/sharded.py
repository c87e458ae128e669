"""Krum on gradients whose coordinates are spread over processes: the same choice as in one place, exactly.

Krum sees n vectors only through their inner products, and an inner product is a sum over parameters. So every process
sums over the parameters that it holds, n^2 numbers are added up over all processes, and each takes the same weights
and combines its own slice: the summation form of Chu et al., "Map-Reduce for Machine Learning on Multicore" (NIPS 19,
2006). It does not matter how the parameters are cut: by layers, by neurons, or into equal parts of a flat vector.

Every rank of a `torch.distributed` process group calls the same function with its own slices of all n vectors. Slices
are a tensor `[n, ...]`, or a list, a tuple or a dict of them; ranks may hold different numbers of parameters, or none.
DTensors stand for their local parts, which must be cut along parameters and not along workers, nor be replicated.

The processes that aggregate are trusted: each sees a part of every gradient and computes as it should. The gradients
are not trusted. As everywhere in this package, a vector with a NaN or an infinity, in whichever slice, is infinitely
far.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from krum.errors import InputError
from krum.rules import aggregation, distances
from krum.rules import vectors as forms
from krum.rules.aggregators import Aggregator

Slices = Any  # Tensor [n, ...], or a list, a tuple or a dict of them


@torch.no_grad()
def aggregate(
    slices: Slices,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Slices:
    """This rank's slices of the aggregate of n vectors, by any rule of `krum.AGGREGATORS`.

    Args:
        slices: what this rank holds of the n vectors, `[n, ...]` each.
        aggregator, f, options: as in `krum.aggregate`, and the same on every rank; `previous`, where a rule takes it,
            has the form of the result.
        group: the ranks that hold the other slices; by default all of them.

    Returns:
        Slices of the form of `slices`, without the leading n.

    Raises:
        TypeError, InputError: as in `krum.aggregate`; what concerns whole vectors is raised on every rank.
    """
    local = _local(slices)
    rule, context, options, f, previous = _checked(local, aggregator, f, options)
    if rule.sees == "vectors":
        if rule.select is None:
            bad = sum(
                ((~_by_vector(part).isfinite()).any(-1) for part in local),
                torch.zeros(len(local[0]), device=local[0].device),
            )
            aggregation.refuse_too_many(_summed(bad.double(), group) > 0, f)
        else:
            squared = _summed(_own_distances(local), group)
            aggregation.refuse_too_many(~squared.diagonal().isfinite(), f)
            context = {**context, "chosen": rule.select(squared, f)}
        parts = aggregation.by_coordinates(rule, [_by_vector(part) for part in local], f, {**context, **options})
    else:
        rows = local if previous is None else _with_previous(local, previous)
        chosen = _weights(rule, rows, f, {**context, **options}, group)
        parts = [aggregation.combine(chosen, _by_vector(part)) for part in rows]
    return _like(slices, [whole.view(part.shape[1:]) for whole, part in zip(parts, local, strict=True)])


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
    local = _local(slices)
    rule, context, options, f, previous = _checked(local, aggregator, f, options)
    if rule.sees == "vectors":
        raise InputError(f"{rule.name} needs the vectors' coordinates and has no weights; call krum.sharded.aggregate")
    rows = local if previous is None else _with_previous(local, previous)
    return _weights(rule, rows, f, {**context, **options}, group)[: len(local[0])]


@torch.no_grad()
def squared_distances(slices: Slices, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """All `||V_i - V_j||^2` of vectors whose coordinates all ranks hold together, float64 `[n, n]`.

    Each rank sums over its own coordinates as `krum.distances.squared_distances` does, and the sums are added up:
    8 n^2 bytes go round. Identical vectors keep identical rows, and a vector that is not finite in any slice is at
    distance `inf` from every vector.
    """
    return _summed(_own_distances(_local(slices)), group)


def _by_vector(part: Tensor) -> Tensor:
    """`[n, ...]` -> `[n, d]`."""
    return part.flatten(1) if part.ndim > 1 else part[:, None]


def _own_distances(local: list[Tensor]) -> Tensor:
    held = [_by_vector(part) for part in local if part.numel()]
    if not held:
        n = len(local[0])
        return torch.zeros(n, n, dtype=torch.float64, device=local[0].device)
    return distances.of_blocks(held)


def _weights(
    rule: Aggregator, rows: list[Tensor], f: int, options: dict[str, Any], group: dist.ProcessGroup | None
) -> Tensor:
    return aggregation.weigh(rule, _summed(_own_distances(rows), group), f, options)


def _summed(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over all ranks; each element has the same bits on every rank."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(own, group=group)
    return own


def _checked(
    local: list[Tensor], aggregator: str, f: int | None, options: dict[str, Any]
) -> tuple[Aggregator, dict[str, Any], dict[str, Any], int, list[Tensor] | None]:
    """The rule, the round and coin that it needs, its options, f, and the last aggregate's slices."""
    options = dict(options)
    given = options.pop("previous", None)
    rule, context, options, f = aggregation.checked(aggregator, len(local[0]), f, options)
    if not rule.previous:
        if given is not None:
            raise InputError(f"{rule.name} takes no previous; leave it out")
        return rule, context, options, f, None
    if given is None:
        return rule, context, options, f, [part.new_zeros(part.shape[1:]) for part in local]
    previous = [forms.as_tensor(part, "previous") for part in _parts(given)]
    if [part.shape for part in previous] != [part.shape[1:] for part in local]:
        raise InputError("previous: its shapes are not those of the slices without their n; give the last aggregate")
    return rule, context, options, f, previous


def _with_previous(local: list[Tensor], previous: list[Tensor]) -> list[Tensor]:
    return [torch.cat([part, last[None].to(part)]) for part, last in zip(local, previous, strict=True)]


def _parts(slices: Slices) -> list[Any]:
    if isinstance(slices, Mapping):
        return list(slices.values())
    return list(slices) if isinstance(slices, list | tuple) else [slices]


def _local(slices: Slices) -> list[Tensor]:
    """The tensors `[n, ...]` that lie here. Raises TypeError, InputError."""
    parts = _parts(slices)
    if not parts:
        raise InputError("slices: found none; a rank without parameters gives an empty tensor, [n, 0]")
    local = []
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"slices: found {type(part).__name__}; give tensors [n, ...], or a list or dict of them")
        if isinstance(part, DTensor):
            for placement in part.placements:
                if not isinstance(placement, Shard) or placement.dim == 0:
                    raise InputError(
                        f"slices: found a DTensor placed {placement}; give one that is sharded along a parameter's "
                        f"dimension, from 1 on, so that each rank holds other coordinates of all n vectors"
                    )
            part = part.to_local()
        if part.ndim == 0:
            raise InputError("slices: found a number; give tensors [n, ...]")
        local.append(forms.as_tensor(part.detach(), "slices"))
    counts = {len(part) for part in local}
    if len(counts) > 1 or counts == {0}:
        raise InputError(f"slices: found {sorted(counts)} vectors; give the same n > 0 in each tensor")
    return local


def _like(slices: Slices, parts: list[Tensor]) -> Slices:
    wrapped = [_placed_like(before, part) for before, part in zip(_parts(slices), parts, strict=True)]
    if isinstance(slices, Mapping):
        return dict(zip(slices, wrapped, strict=True))
    if isinstance(slices, list | tuple):
        return type(slices)(*wrapped) if hasattr(slices, "_fields") else type(slices)(wrapped)
    return wrapped[0]


def _placed_like(before: Tensor, part: Tensor) -> Tensor:
    if not isinstance(before, DTensor):
        return part
    placements = [Shard(placement.dim - 1) for placement in before.placements if isinstance(placement, Shard)]
    shape, stride = before.shape[1:], before.stride()[1:]
    return DTensor.from_local(part, before.device_mesh, placements, shape=shape, stride=stride)
