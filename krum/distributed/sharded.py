"""Krum on gradients whose coordinates are spread over processes: the same choice as in one place, exactly.

Krum sees n vectors only through their distances, and a squared distance is a sum over parameters. So every process
sums over the parameters that it holds, n^2 numbers are added up over all processes, and each takes the same weights
and combines its own slice: the summation form of Chu et al., "Map-Reduce for Machine Learning on Multicore" (NIPS 19,
2006). Parameters may be cut by layers, by neurons, or into equal parts of a flat vector.

Every rank of a process group calls the same function with its own slices of all n vectors: a tensor `[n, ...]`, or a
list, a tuple or a dict of them; ranks may hold different numbers of parameters, or none.
DTensors stand for their local parts, which must be cut along parameters and not along workers, nor be replicated.

The ranks are trusted, the gradients are not: one with a NaN or an infinity, in whichever slice, is infinitely far.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from krum.errors import InputError
from krum.registry import lookup
from krum.rules import aggregation, distances
from krum.rules.aggregators import AGGREGATORS, Aggregator
from krum.rules.vectors import as_tensor

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
    rule, rows, f, options = _read(slices, aggregator, f, options)
    if rule.sees == "distances":
        chosen = aggregation.weigh(rule, squared_distances(rows, group=group), f, options)
        return _like(slices, [aggregation.combine(chosen, part) for part in rows])
    not_finite = torch.stack([(~part.isfinite()).any(-1) for part in rows]).sum(0)
    aggregation.refuse_too_many(_sum_over_ranks(not_finite, group) > 0, f)
    if rule.select is not None:
        options["chosen"] = rule.select(squared_distances(rows, group=group), f)
    return _like(slices, aggregation.by_coordinates(rule, rows, f, options))


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
    rule, rows, f, options = _read(slices, aggregator, f, options)
    if rule.sees == "vectors":
        raise InputError(f"{rule.name} needs the vectors' coordinates and has no weights; call krum.sharded.aggregate")
    chosen = aggregation.weigh(rule, squared_distances(rows, group=group), f, options)
    return chosen[:-1] if rule.previous else chosen


@torch.no_grad()
def squared_distances(slices: Slices, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """All `||V_i - V_j||^2` of vectors whose coordinates all ranks hold together, float64 `[n, n]`.

    Identical vectors keep identical rows, and a vector that is not finite in any slice is at distance `inf` from every
    vector. 8 n^2 bytes go round.
    """
    rows = [_flat(part) for part in _local_parts(slices)]
    return _sum_over_ranks(distances.of_blocks(rows), group)


def _sum_over_ranks(numbers: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """In place; each sum has the same bits on every rank."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(numbers, group=group)
    return numbers


def _read(
    slices: Slices, aggregator: str, f: int | None, options: dict[str, Any]
) -> tuple[Aggregator, list[Tensor], int, dict[str, Any]]:
    """The rule, the flat local slices `[n, d]`, f, and what the rule is called with. Raises TypeError, InputError.

    Where the rule takes the last aggregate, that is one more row of the slices.
    """
    local = _local_parts(slices)
    rows = [_flat(part) for part in local]
    takes_previous = lookup(AGGREGATORS, aggregator, "aggregator").previous
    previous = options.pop("previous", None) if takes_previous else None
    rule, context, options, f = aggregation.checked(aggregator, len(local[0]), f, options)
    if takes_previous:
        last = [part.new_zeros(part.shape[1:]) for part in local]
        if previous is not None:
            last = [as_tensor(_local(part), "previous") for part in _listed(previous)]
        if [part.shape for part in last] != [part.shape[1:] for part in local]:
            raise InputError("previous: its shapes are not those of the slices without n; give the last aggregate")
        rows = [torch.cat([part, row.reshape(1, -1).to(part)]) for part, row in zip(rows, last, strict=True)]
    return rule, rows, f, {**context, **options}


def _local_parts(slices: Slices) -> list[Tensor]:
    """The tensors `[n, ...]` that this rank holds. Raises TypeError, InputError."""
    parts = _listed(slices)
    if not parts:
        raise InputError("slices: found none; a rank without parameters gives an empty tensor, [n, 0]")
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"slices: found {type(part).__name__}; give tensors [n, ...], or a list or dict of them")
        if part.ndim == 0:
            raise InputError("slices: found a number; give tensors [n, ...]")
        for placement in getattr(part, "placements", ()):  # of a DTensor
            if not placement.is_shard() or placement.dim == 0:
                raise InputError(
                    f"slices: found a DTensor placed {placement}; give one that is sharded along a parameter's "
                    f"dimension, from 1 on, so that each rank holds other coordinates of all n vectors"
                )
    counts = {len(part) for part in parts}
    if len(counts) > 1 or counts == {0}:
        raise InputError(f"slices: found {sorted(counts)} vectors; give the same n > 0 in each tensor")
    return [as_tensor(_local(part), "slices") for part in parts]


def _listed(slices: Slices) -> list[Any]:
    if isinstance(slices, Mapping):
        return list(slices.values())
    return list(slices) if isinstance(slices, list | tuple) else [slices]


def _local(part: Any) -> Any:
    return part.to_local() if _is_dtensor(part) else part


def _is_dtensor(part: Any) -> bool:
    """By what it has: to import its class takes as long as to import torch."""
    return hasattr(part, "placements")


def _flat(part: Tensor) -> Tensor:
    """`[n, ...]` -> `[n, d]`."""
    return part[:, None].flatten(1)


def _like(slices: Slices, parts: list[Tensor]) -> Slices:
    """Flat parts in the form of the slices, without n."""
    shaped = [_shaped(part, before) for part, before in zip(parts, _listed(slices), strict=True)]
    if isinstance(slices, Mapping):
        return dict(zip(slices, shaped, strict=True))
    if isinstance(slices, list | tuple):
        return type(slices)(*shaped) if hasattr(slices, "_fields") else type(slices)(shaped)
    return shaped[0]


def _shaped(part: Tensor, before: Any) -> Tensor:
    part = part.view(_local(before).shape[1:])
    if not _is_dtensor(before):
        return part
    placements = [type(placement)(placement.dim - 1) for placement in before.placements]
    shape, stride = before.shape[1:], before.stride()[1:]
    return type(before).from_local(part, before.device_mesh, placements, shape=shape, stride=stride)
