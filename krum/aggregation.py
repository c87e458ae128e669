"""`krum.aggregate` and `krum.weights`: any rule on the caller's own gradients or inner products."""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from krum import distances, selection
from krum.aggregators import AGGREGATORS, Aggregator
from krum.errors import InputError
from krum.registry import lookup

COMBINED = 2**18  # coordinates that are combined at a time, in float64; a cache holds them
Array = TypeVar("Array", Tensor, np.ndarray)


@torch.no_grad()
def aggregate(vectors: Array, aggregator: str = "krum", f: int | None = None, **options: Any) -> Array:
    """Aggregate n vectors by a rule of `krum.AGGREGATORS`.

    Args:
        vectors: `[n, d]`, one gradient per row; a torch tensor or a numpy array of any floating dtype. Never changed.
        aggregator: the rule's name, such as "krum", "multi-krum" or "median".
        f: how many of the n vectors may be Byzantine; Krum and Multi-Krum need `2f + 2 < n` (Blanchard et al., 2017,
            Proposition 1). Rules that do not use it take it for the check of their guarantee.
        options: the rule's own, such as `m` for "multi-krum"; "1-p-krum" needs `round` (from 1) and `coin` (a number
            drawn from [0, 1) in each round); "centred-clipping" takes `previous`, the last round's aggregate [d] (by
            default 0), and copies the vectors.

    Returns:
        The aggregate `[d]`, of the same kind, dtype and device, in memory of its own, detached from autograd. It is
        that of float64 arithmetic, whatever the dtype (`krum.selection`), and extra memory does not grow with d.

    Raises:
        TypeError: `vectors` is not a floating-point tensor or array.
        InputError (a ValueError): unknown rule or option, wrong shape, too few vectors for f, or more than f
            vectors with a NaN or an infinity. Up to f of them count as infinitely far away; a rule that would give
            them weight all the same, such as "average", is refused.

    >>> import numpy as np
    >>> honest = np.array([[1.0, 2.0], [1.1, 2.0], [1.0, 2.1], [0.9, 2.0]])
    >>> aggregate(np.vstack([honest, [[1e9, np.nan]]]), "krum", f=1)
    array([1., 2.])
    """
    tensor = _as_tensor(vectors, "vectors")
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise InputError(f"vectors: found shape {tuple(tensor.shape)}; give [n, d], one vector a row")
    previous = options.pop("previous", None) if lookup(AGGREGATORS, aggregator, "aggregator").previous else None
    rule, context, options, f = checked(aggregator, len(tensor), f, options)
    if rule.previous:
        tensor = torch.cat([tensor, _previous(previous, tensor)])
    if rule.sees == "vectors":
        if rule.select is not None:
            squared = distances.squared_distances(tensor)
            refuse_too_many(~squared.diagonal().isfinite(), f)
            context = {**context, "chosen": rule.select(squared, f)}
        result = by_coordinates(rule, tensor, f, {**context, **options})
    else:
        result = combine(_weights(rule, tensor, f, {**context, **options}), tensor)
    return result.numpy() if isinstance(vectors, np.ndarray) else result


@torch.no_grad()
def weights(gram: Array, aggregator: str = "krum", f: int | None = None, **options: Any) -> Array:
    """The weight that a Gram rule gives to each of n vectors, from their inner products alone.

    Args:
        gram: `[..., n, n]` inner products `<V_i, V_j>`, symmetric; leading dimensions are independent problems. Centre
            the vectors first if they share a large common part: that changes no distance and saves the digits.
        aggregator, f, options: as in `aggregate`; rules that need coordinates ("median", ...) have no weights.

    Returns:
        `[..., n]`, of the same kind, dtype and device. The aggregate is `weights @ vectors`.

    Raises:
        TypeError, InputError: as in `aggregate`.

    >>> import numpy as np
    >>> vectors = np.array([[0.0], [0.1], [0.3], [0.6], [9.0]])
    >>> weights(vectors @ vectors.T, "krum", f=1)
    array([0., 1., 0., 0., 0.])
    """
    tensor = _as_tensor(gram, "gram")
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2] or tensor.shape[-1] == 0:
        raise InputError(f"gram: found shape {tuple(tensor.shape)}; give [..., n, n], the inner products of n vectors")
    rule = lookup(AGGREGATORS, aggregator, "aggregator")
    if rule.sees == "vectors":
        raise InputError(f"{rule.name} needs the vectors' coordinates and has no weights; call krum.aggregate")
    rule, context, options, f = checked(aggregator, tensor.shape[-1], f, options)
    scale = tensor.diagonal(dim1=-2, dim2=-1).abs().nan_to_num(0.0, 0.0, 0.0).amax() if tensor.numel() else 0
    if bool(((tensor - tensor.mT).abs() > 0.01 * scale).any()):
        raise InputError("gram: found a matrix that is not symmetric; give the inner products of n vectors")
    given = tensor.shape[-1]
    if rule.previous:  # it begins at zero, whose inner products are zero
        tensor = torch.nn.functional.pad(tensor, (0, 1, 0, 1))
    squared = distances.from_gram(tensor)
    infinite = ~squared.diagonal(dim1=-2, dim2=-1).isfinite()
    refuse_too_many(infinite, f)
    if bool((squared.isinf() & ~infinite[..., :, None] & ~infinite[..., None, :]).any()):
        raise InputError("gram: found NaN or infinity between vectors of finite length; give their inner products")
    result = rule(squared, f, **context, **options).to(tensor.dtype)
    refuse_weighted(rule, infinite, result)
    result = result[..., :given]
    return result.numpy() if isinstance(gram, np.ndarray) else result


def _weights(rule: Aggregator, vectors: Tensor, f: int, options: dict[str, Any]) -> Tensor:
    """The weights `[n]` that a Gram rule gives to `vectors [n, d]`."""
    proven = selection.proven_weights(rule, vectors, f, options)
    if proven is not None:
        return proven
    return weigh(rule, distances.squared_distances(vectors), f, options)


def weigh(rule: Aggregator, squared: Tensor, f: int, options: dict[str, Any]) -> Tensor:
    """The weights `[n]` that a Gram rule gives to n vectors at squared distances `[n, n]`. Raises InputError."""
    infinite = ~squared.diagonal().isfinite()
    refuse_too_many(infinite, f)
    chosen = rule(squared, f, **options)
    refuse_weighted(rule, infinite, chosen)
    return chosen


def checked(
    aggregator: str, n: int, f: int | None, options: dict[str, Any]
) -> tuple[Aggregator, dict[str, Any], dict[str, Any], int]:
    """The rule for n vectors, the round and coin that it needs, its options, and f. Raises InputError."""
    rule = lookup(AGGREGATORS, aggregator, "aggregator")
    context, options = rule.split(options)
    rule.check(n, f, options)
    return rule, context, options, 0 if f is None else f


def combine(weights: Tensor, vectors: Tensor) -> Tensor:
    """`sum_i weights_i V_i` over `vectors [n, d]`; a vector of weight 0 is not touched, so its NaN does no harm."""
    used = weights.nonzero().squeeze(-1).tolist()
    if len(used) == 1 and weights[used[0]] == 1:
        return vectors[used[0]].clone()
    result, factors = torch.empty_like(vectors[0]), weights.tolist()
    columns = max(1, min(COMBINED, len(result)))
    total = torch.empty(columns, dtype=torch.float64, device=vectors.device)
    one = torch.empty_like(total)
    for start in range(0, len(result), columns):
        total, one = total[: len(result) - start].zero_(), one[: len(result) - start]
        for row in used:
            total.add_(one.copy_(vectors[row, start : start + columns]), alpha=factors[row])
        result[start : start + columns] = total
    return result


def by_coordinates(rule: Aggregator, vectors: Tensor, f: int, options: dict[str, Any]) -> Tensor:
    """What a vector rule makes of `vectors [n, d]`, a block of coordinates at a time."""
    finite = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)
    result = torch.empty_like(vectors[0])
    columns = max(1, distances.BLOCK // len(vectors))
    for start in range(0, vectors.shape[1], columns):
        block = vectors[:, start : start + columns].double()
        finite &= block.isfinite().all(-1)
        result[start : start + columns] = rule(block, f, **options)
    refuse_too_many(~finite, f)
    return result


def _previous(given: Any, vectors: Tensor) -> Tensor:
    """The last round's aggregate as a row, zero where there is none."""
    if given is None:
        return vectors.new_zeros((1, vectors.shape[1]))
    previous = _as_tensor(given, "previous")
    if previous.shape != vectors.shape[1:] or not bool(previous.isfinite().all()):
        raise InputError(f"previous: found shape {tuple(previous.shape)}; give the last aggregate, [d] finite numbers")
    return previous[None].to(vectors)


def _as_tensor(array: Tensor | np.ndarray, what: str) -> Tensor:
    if isinstance(array, np.ndarray):
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"{what}: found a numpy array of {array.dtype}; give float16, float32 or float64")
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch cannot share such memory
        return torch.from_numpy(array)
    if not isinstance(array, Tensor):
        raise TypeError(f"{what}: found {type(array).__name__}; give a torch tensor or a numpy array")
    if not array.is_floating_point():
        raise TypeError(f"{what}: found a tensor of {array.dtype}; give a floating dtype")
    return array.detach()


def refuse_weighted(rule: Aggregator, infinite: Tensor, weights: Tensor) -> None:
    """Raise InputError where a rule gives weight to a vector that is not finite."""
    if bool((infinite & (weights != 0)).any()):
        bad = (infinite & (weights != 0)).reshape(-1, infinite.shape[-1]).any(0).nonzero().squeeze(-1).tolist()
        raise InputError(
            f"{rule.name} with these options gives weight to vectors that hold NaN or infinity (rows {bad[:10]}); "
            f"drop them or take a rule that tolerates them, such as krum"
        )


def refuse_too_many(bad: Tensor, f: int) -> None:
    """Raise InputError where more than f of the vectors, `bad [..., n]`, are not finite."""
    worst = int(bad.sum(-1).max()) if bad.numel() else 0
    if worst > f:
        row = bad.reshape(-1, bad.shape[-1])
        first = row[row.sum(-1).argmax()].nonzero().squeeze(-1).tolist()
        raise InputError(f"{worst} vectors hold NaN or infinity (rows {first[:10]}) but f = {f}; raise f or drop them")
