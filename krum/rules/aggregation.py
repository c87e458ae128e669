"""`krum.aggregate` and `krum.weights`: any rule on the caller's own gradients or inner products."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from krum.errors import InputError
from krum.registry import lookup
from krum.rules import distances, proven_choice
from krum.rules import vectors as forms
from krum.rules.aggregators import AGGREGATORS, Aggregator
from krum.rules.distances import RowBlock
from krum.rules.vectors import Vectors

Array = TypeVar("Array", Tensor, np.ndarray)


@torch.no_grad()
def aggregate(
    vectors: Any, aggregator: str = "krum", f: int | None = None, *, return_weights: bool = False, **options: Any
) -> Any:
    """Aggregate n vectors by a rule of `krum.AGGREGATORS`.

    Args:
        vectors: `[n, d]`, one gradient per row, as a torch tensor or a numpy array of any floating dtype; or a list of
            n tensors or arrays of any one shape; or a list of n models' gradients, each a list or a dict of them.
            They are read in place, neither joined nor changed. A model may also hold integers and booleans, such as
            batch norm's counter: they take no part in distances.
        aggregator: the rule's name, such as "krum", "multi-krum" or "median".
        f: how many of the n vectors may be Byzantine; Krum and Multi-Krum need `2f + 2 < n` (Blanchard et al., 2017,
            Proposition 1). Rules that do not use it take it for the check of their guarantee.
        options: the rule's own, such as `m` for "multi-krum"; "1-p-krum" needs `round` (from 1) and `coin` (a number
            drawn from [0, 1) in each round); "centred-clipping" takes `previous`, the last round's aggregate, in the
            form of the result (by default 0).
        return_weights: also return whom the rule chose.

    Returns:
        The aggregate: a row `[d]`, or what one element of the list is; of the same kind, dtype and device, in memory
        of its own, detached from autograd. It is that of float64 arithmetic, whatever the dtype (see
        `krum.rules.proven_choice`), and beside the result no memory grows with d. Integers and booleans are those of
        the vector of greatest weight, the first on a tie; under a rule without weights each is the middle one of the
        n values (of two middle ones the lesser), and so between values of honest workers while 2f < n.
        With `return_weights` a pair: the aggregate, and each vector's weight `[n]`, float64, of the same kind and on
        the same device; None for rules that have no weights ("median", ...).

    Raises:
        TypeError: `vectors` holds what is not a floating-point tensor or array.
        InputError (a ValueError): unknown rule or option, wrong shape, too few vectors for f, or more than f
            vectors with a NaN or an infinity. Up to f of them count as infinitely far away; a rule that would give
            them weight all the same, such as "average", is refused.

    >>> import numpy as np
    >>> honest = np.array([[1.0, 2.0], [1.1, 2.0], [1.0, 2.1], [0.9, 2.0]])
    >>> aggregate(np.vstack([honest, [[1e9, np.nan]]]), "krum", f=1)
    array([1., 2.])
    """
    given = forms.read(vectors)
    result, chosen = aggregate_read(given, aggregator, f, options)
    if not return_weights:
        return result
    return result, chosen.numpy() if given.in_numpy and chosen is not None else chosen


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
    tensor = forms.as_tensor(gram, "gram")
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2] or tensor.shape[-1] == 0:
        raise InputError(f"gram: found shape {tuple(tensor.shape)}; give [..., n, n], the inner products of n vectors")
    n = tensor.shape[-1]
    rule, f, options = checked(aggregator, n, f, options)
    _refuse_without_weights(rule)
    _check_gram(tensor)
    if rule.previous:  # it begins at zero, whose inner products are zero
        tensor = torch.nn.functional.pad(tensor, (0, 1, 0, 1))
    squared = distances.from_gram(tensor)
    infinite = ~squared.diagonal(dim1=-2, dim2=-1).isfinite()
    _refuse_too_many(infinite, f)
    result = rule(squared, f, **options).to(tensor.dtype)
    _refuse_weighted(rule, infinite, result)
    result = result[..., :n]
    return result.numpy() if isinstance(gram, np.ndarray) else result


def _check_gram(gram: Tensor) -> None:
    """Raise InputError for matrices that cannot hold inner products, but for rounding: distances, for example."""
    gram = gram.double()
    squares = gram.diagonal(dim1=-2, dim2=-1)
    finite = squares.isfinite()
    both = finite[..., :, None] & finite[..., None, :]
    lengths = squares.where(finite, 0.0).clamp(min=0).sqrt()
    slack = 0.01 * lengths.square().amax(-1)[..., None, None]
    if bool((both & ~((gram - gram.mT).abs() <= slack)).any()):
        raise InputError("gram: found a matrix that is not symmetric; give the inner products of n vectors")
    if bool((both & ~(gram.abs() <= 1.01 * lengths[..., :, None] * lengths[..., None, :] + 1e-3 * slack)).any()):
        raise InputError("gram: found numbers beyond |V_i| |V_j|, as among distances; give inner products of n vectors")


def checked(aggregator: str, n: int, f: int | None, options: dict[str, Any]) -> tuple[Aggregator, int, dict[str, Any]]:
    """The rule for n vectors, f, and what it is called with beside it. Raises InputError."""
    rule = lookup(AGGREGATORS, aggregator, "aggregator")
    context, own_options = rule.split(options)
    rule.check(n, f, own_options)
    return rule, f or 0, {**context, **own_options}


def aggregate_read(
    given: Vectors, aggregator: str, f: int | None, options: dict[str, Any]
) -> tuple[Any, Tensor | None]:
    """`aggregate` of vectors that have been read, in whatever form, of which other processes may hold a part.

    Returns the aggregate in the caller's form, and the weights `[n]`, None for rules that have none.
    """
    n = given.n
    rule, given, f, options = _prepared(given, aggregator, f, options)
    if rule.sees == "distances":
        chosen = _weights(rule, given, f, options)
        result = [combine(chosen, block) for block in given.blocks]
        return given.like_given(result, chosen[:n]), chosen[:n]
    if rule.select is not None:
        squared = _squared_distances(given)
        _refuse_too_many(~squared.diagonal().isfinite(), f)
        options = {**options, "chosen": rule.select(squared, f)}
    result, finite = _by_coordinates(rule, given.blocks, f, options)
    _refuse_too_many(given.over_processes((~finite).int()) > 0, f)
    return given.like_given(result, None), None


def weights_read(given: Vectors, aggregator: str, f: int | None, options: dict[str, Any]) -> Tensor:
    """The weights `[n]`, float64, that a Gram rule gives to vectors that have been read. Raises InputError."""
    n = given.n
    rule, given, f, options = _prepared(given, aggregator, f, options)
    _refuse_without_weights(rule)
    return _weights(rule, given, f, options)[:n]


def _prepared(
    given: Vectors, aggregator: str, f: int | None, options: dict[str, Any]
) -> tuple[Aggregator, Vectors, int, dict[str, Any]]:
    """The rule, the vectors, with the last aggregate where the rule begins there, and what else it is called with."""
    previous = options.pop("previous", None) if lookup(AGGREGATORS, aggregator, "aggregator").previous else None
    rule, f, options = checked(aggregator, given.n, f, options)
    return rule, given.and_last(previous) if rule.previous else given, f, options


def _refuse_without_weights(rule: Aggregator) -> None:
    if rule.sees == "vectors":
        raise InputError(f"{rule.name} needs the vectors' coordinates and has no weights; aggregate vectors with it")


def _weights(rule: Aggregator, given: Vectors, f: int, options: dict[str, Any]) -> Tensor:
    """The weights `[n]` that a Gram rule gives to n vectors."""
    if rule.fixed_weights:
        return _weigh(rule, given.over_processes(distances.only_finiteness(given.blocks)), f, options)
    proven = None if given.is_part else proven_choice.proven_weights(rule, given.blocks, f, options)
    if proven is not None:
        return proven
    return _weigh(rule, _squared_distances(given), f, options)


def _squared_distances(given: Vectors) -> Tensor:
    """Between all vectors, float64 `[n, n]`."""
    squared = distances.of_blocks(given.blocks)
    return distances.keep_ties(given.over_processes(squared)) if given.is_part else squared


def _weigh(rule: Aggregator, squared: Tensor, f: int, options: dict[str, Any]) -> Tensor:
    """The weights `[n]` that a Gram rule gives to n vectors at squared distances `[n, n]`. Raises InputError."""
    infinite = ~squared.diagonal().isfinite()
    if not bool(squared.isinf().any()):
        return rule(squared, f, **options)
    _refuse_too_many(infinite, f)
    if bool(((squared.isinf() & ~infinite[None]).sum(-1) > f)[~infinite].all()):
        raise InputError(
            f"vectors: none has more than {len(squared) - f - 2} others at a distance whose square is a "
            f"float64; scale them all down"
        )
    chosen = rule(squared, f, **options)
    _refuse_weighted(rule, infinite, chosen)
    return chosen


def combine(weights: Tensor, block: RowBlock) -> Tensor:
    """`sum_i weights_i V_i` in float64, [d]; a vector of weight 0 is not touched, so its NaN does no harm.

    Where m vectors have the weight 1/m they are added, then divided by m: a mean is exact where its sum is.
    """
    factors = {row: factor for row, factor in enumerate(weights.tolist()) if factor}
    rows, m = [block[row] for row in factors], len(factors)
    is_mean = all(factor == 1 / m for factor in factors.values())
    if is_mean and m == 1:
        return rows[0].clone()
    result = torch.empty_like(rows[0])
    width = max(1, distances.BLOCK // m)
    terms = torch.tensor(list(factors.values()), dtype=torch.float64, device=result.device)
    for columns, part in zip(distances.columns_of(rows, width, torch.float64), result.split(width), strict=False):
        part.copy_(columns.sum(0).div_(m) if is_mean else terms @ columns)
    return result


def _by_coordinates(
    rule: Aggregator, blocks: Sequence[RowBlock], f: int, options: dict[str, Any]
) -> tuple[list[Tensor], Tensor]:
    """What a vector rule makes of n vectors, some coordinates at a time, and which vectors are finite, [n]."""
    finite = torch.ones(len(blocks[0]), dtype=torch.bool, device=blocks[0][0].device)
    results = [torch.empty_like(block[0]) for block in blocks]
    width = max(1, distances.BLOCK // len(finite))
    for block, result in zip(blocks, results, strict=True):
        for columns, part in zip(distances.columns_of(block, width, torch.float64), result.split(width), strict=False):
            finite &= columns.isfinite().all(-1)
            part.copy_(rule(columns, f, **options))
    return results, finite


def _refuse_weighted(rule: Aggregator, infinite: Tensor, weights: Tensor) -> None:
    """Raise InputError where a rule gives weight to a vector that is not finite."""
    if bool((infinite & (weights != 0)).any()):
        bad = (infinite & (weights != 0)).reshape(-1, infinite.shape[-1]).any(0).nonzero().squeeze(-1).tolist()
        raise InputError(
            f"{rule.name} with these options gives weight to vectors that hold NaN or infinity (rows {bad[:10]}); "
            f"drop them or take a rule that tolerates them, such as krum"
        )


def _refuse_too_many(bad: Tensor, f: int) -> None:
    """Raise InputError where more than f of the vectors, `bad [..., n]`, are not finite."""
    worst = int(bad.sum(-1).max()) if bad.numel() else 0
    if worst > f:
        row = bad.reshape(-1, bad.shape[-1])
        first = row[row.sum(-1).argmax()].nonzero().squeeze(-1).tolist()
        raise InputError(f"{worst} vectors hold NaN or infinity (rows {first[:10]}) but f = {f}; raise f or drop them")
