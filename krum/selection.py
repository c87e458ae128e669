"""Which vectors a selection rule takes, proven from float32 products, in a fraction of the time that float64 takes.

Squared distances from float32 products carry an error that is bounded: a sum of products, in whatever order, in which
no product passes through more than c additions is wrong by at most `c u / (1 - c u) sum_k |x_k y_k|`, u = 2^-24
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Sums over short chunks of coordinates keep
c at some hundreds however many coordinates there are. So every distance lies in an interval, every score, which does
not fall when a distance grows, in another, and where the intervals of those that are taken end below all others, the
choice is that of exact arithmetic. Where a few overlap, these vectors' distances are computed again in float64. Where
that does not decide it either, nothing is claimed: `proven_weights` returns None, and the caller takes the long way.
"""

import math
from typing import Any

import torch
from torch import Tensor

from krum import distances
from krum.aggregators import Aggregator

UNIT = 2.0**-24  # of float32: half the distance from 1 to the next number
WORTH = 2**18  # numbers: below, float64 is as fast
SUMS = 2**21  # numbers in the partial sums, which a cache holds
LENGTH = 2**17  # of a chunk, times the square root of d
SMALL, LARGE = 2.0**-96, 2.0**96  # a squared length between them, by coordinate: no product that counts is lost
ROUNDING = 1e-11  # of float64, relative, and to spare


def proven_weights(rule: Aggregator, vectors: Tensor, f: int, options: dict[str, Any]) -> Tensor | None:
    """The weights `[n]`, float64, that a selection rule gives to `vectors [n, d]`; None where they are not proven."""
    n, m = len(vectors), None if rule.selects is None else rule.chosen(len(vectors), f, options)
    fits = vectors.dtype in (torch.float32, torch.float16, torch.bfloat16) and vectors.numel() >= WORTH
    if m is None or m == n or not fits or not _products_are_float32():
        return None
    bounds = distance_bounds(vectors)
    if bounds is None:
        return None
    lower, upper = bounds
    low, high = rule.scores(lower, f, **options), rule.scores(upper, f, **options)
    weights = _decided(low, high, m)
    if weights is not None:
        return weights
    doubtful = (low <= high.sort().values[m - 1]) & (high >= low.sort().values[m])
    rows = doubtful.nonzero().squeeze(-1)
    if len(rows) > n / 3:
        return None
    exact = distances.rows_of_squared_distances(vectors, rows)
    for ends, factor in ((lower, 1 - ROUNDING), (upper, 1 + ROUNDING)):
        ends[rows] = exact * factor
        ends[:, rows] = exact.mT * factor
    return _decided(rule.scores(lower, f, **options), rule.scores(upper, f, **options), m)


def _products_are_float32() -> bool:
    """torch has not been told to round float32 further in matrix products, to TF32 or bfloat16."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # told so by backend, which one precision does not describe
        return False


def _decided(low: Tensor, high: Tensor, m: int) -> Tensor | None:
    """The weights, if m vectors' scores, between `low` and `high`, certainly are below all others'."""
    taken = high.sort().indices[:m]
    others = torch.ones(len(low), dtype=torch.bool, device=low.device).index_fill_(0, taken, False)
    if not bool(high[taken].max() < low[others].min()):
        return None
    return torch.zeros_like(low).index_fill_(0, taken, 1 / m)


def distance_bounds(vectors: Tensor) -> tuple[Tensor, Tensor] | None:
    """Below and above all `||V_i - V_j||^2` of `vectors [n, d]`, float64 `[n, n]`; None where float32 cannot tell."""
    n, d = vectors.shape
    reference = distances.central_row(vectors)
    centred = _share_a_large_part(vectors, reference)
    chunk, slots, rounds = _cut(n, d)
    step = chunk * slots
    sums = torch.zeros(slots, n, n, device=vectors.device)
    copied = torch.empty(slots, n, chunk, device=vectors.device) if centred or vectors.dtype != torch.float32 else None
    for start in range(0, step * rounds, step):
        block = vectors[:, start : start + step].unflatten(1, (slots, chunk)).transpose(0, 1)
        if copied is not None:
            block = copied.copy_(block)
            if centred:
                block -= block[:, reference, None].clone()
        sums.baddbmm_(block, block.mT)
    gram = sums.double().sum(0)
    rest = vectors[:, step * rounds :].double()
    rest = rest - rest[reference] if centred else rest
    gram.addmm_(rest, rest.mT)

    norms = gram.diagonal().clone()
    zero = norms == 0
    for row in zero.nonzero().squeeze(-1).tolist():
        twin = vectors[reference] if centred else torch.zeros_like(vectors[row])
        if not torch.equal(vectors[row], twin):
            return None
    if not bool((zero | ((norms > SMALL * d) & (norms < LARGE))).all()):
        return None
    passed = (chunk + rounds + 3) * UNIT  # additions, the subtraction of a reference, and the product itself
    error = (passed / (1 - 2 * passed) + ROUNDING) * (norms.sqrt()[:, None] + norms.sqrt()[None, :]).square_()
    middle = norms[:, None] + norms[None, :] - 2 * gram
    lower, upper = (middle - error).clamp_(min=0), middle + error
    return lower.fill_diagonal_(0), upper.fill_diagonal_(0)


def _cut(n: int, d: int) -> tuple[int, int, int]:
    """The length of a chunk, how many are summed side by side, and how often.

    The more coordinates, the closer scores of independent vectors lie together, by `1 / sqrt(d)`: shorter chunks tell
    them apart, longer ones are faster.
    """
    least = 1024 if n > 300 else 64
    chunk = min(d, max(least, min(1024, 2 ** int(math.log2(LENGTH / d**0.5)))))
    side_by_side = max(4, min(4096, SUMS // n**2))
    rounds = -(-d // (side_by_side * chunk))
    if chunk**2 * rounds > d:  # few long chunks: cut all alike, or much would be left over
        slots = -(-d // (chunk * rounds))
        return d // (slots * rounds), slots, rounds
    return chunk, d // (chunk * rounds), rounds


def _share_a_large_part(vectors: Tensor, reference: Tensor) -> bool:
    """The vectors are longer than they are apart, by a sample of coordinates; a wrong guess costs time only."""
    sample = vectors[:, :: max(1, vectors.shape[1] // 64)].double()
    apart = (sample - sample[reference]).square().sum(-1).median()
    return bool(sample[reference].square().sum() > apart)
