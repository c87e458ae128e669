"""The rules that see n vectors through their squared distances, and give each of them a weight.

To add one, write one function here and decorate it (`krum.rules.registration` says what a rule is given and returns).
"""

import torch
from torch import Tensor

from krum.rules import distances
from krum.rules.registration import (
    KRUM,
    MAJORITY,
    gram_rule,
    infinite_vectors,
    least,
    selection_rule,
    sum_of_nearest,
    without_infinite_vectors,
)


@gram_rule(fixed_weights=True)
def average(squared_distances: Tensor) -> Tensor:
    """The mean, `1/n sum_i V_i`. Tolerates no Byzantine worker (Lemma 1 of Blanchard et al., 2017)."""
    n = squared_distances.shape[-1]
    return squared_distances.new_full(squared_distances.shape[:-1], 1 / n)


@selection_rule(guarantee=KRUM)
def krum(squared_distances: Tensor, f: int) -> Tensor:
    """Krum: the vector with the least score, the smallest index on a tie.

    `s(i) = sum over i -> j of ||V_i - V_j||^2`, where `i -> j` holds for the n - f - 2 vectors V_j, j != i, closest
    to V_i (Blanchard et al., 2017, section 4). O(n^2 d) with the distances.
    """
    n = squared_distances.shape[-1]
    return sum_of_nearest(squared_distances, n - f - 2)


@selection_rule(guarantee=KRUM, selects=lambda n, f: n - f)
def multi_krum(squared_distances: Tensor, f: int, *, m: int | None = None) -> Tensor:
    """Multi-Krum: the mean of the m vectors of least Krum score (Blanchard et al., 2017, section 7).

    m = 1 is Krum, m = n is averaging; the default is the paper's m = n - f. Ties go to the smallest index.
    """
    return krum(squared_distances, f)


@gram_rule(guarantee=KRUM, name="1-p-krum")
def one_minus_p_krum(
    squared_distances: Tensor, f: int, round: int, coin: Tensor, *, horizon: int = 500, power: float = 1.0
) -> Tensor:
    """1-p Krum: averaging with probability `p_t`, Krum otherwise (Blanchard et al., 2017, supplement).

    `p_t` must rise from 0 to 1; here `p_t = min(1, (t / horizon)^power)` in round t.
    """
    averaging = (squared_distances.new_zeros(()) + coin) < min(1.0, round / horizon) ** power
    chosen = least(krum(squared_distances, f), 1, squared_distances)
    return chosen.where(~averaging[..., None], average(squared_distances))


@selection_rule()
def medoid(squared_distances: Tensor) -> Tensor:
    """The vector with the least sum of distances (not squared) to the others, the smallest index on a tie.

    A variant in the supplement of Blanchard et al. (2017).
    """
    return without_infinite_vectors(squared_distances).sqrt().sum(-1)


@selection_rule()
def nearest_to_barycentre(squared_distances: Tensor) -> Tensor:
    """The vector with the least sum of squared distances to all others, the smallest index on a tie.

    It is the vector nearest the barycentre, since `sum_j ||V_i - V_j||^2 = n ||V_i - mean||^2 + constant`. Two
    colluding workers defeat it (Figure 2 of Blanchard et al., 2017).
    """
    return without_infinite_vectors(squared_distances).sum(-1)


@gram_rule()
def geometric_median(squared_distances: Tensor, *, iterations: int = 1000, tolerance: float = 1e-9) -> Tensor:
    """The point z with the least `sum_i ||z - V_i||`, by Weiszfeld's iteration on its weights.

    With `z = sum_i w_i V_i`, `sum_i w_i = 1` and D the squared distances: `||z - V_i||^2 = (D w)_i - 1/2 w^T D w`, and
    the iteration is `w_i <- 1/||z - V_i||`, normalised (Weiszfeld, 1937). Where z lies on vectors, e of them, the step
    towards the others' T is `z <- (1 - s) T + s z` with `s = min(1, e / ||sum_i (V_i - z)/||V_i - z|| ||)` (Vardi and
    Zhang, 2000). It ends when no weight moves by more than `tolerance`. A vector more than 1e7 times as far away as
    the typical one gets weight 0: float64 no longer holds its direction.
    """
    to_centre = without_infinite_vectors(squared_distances).sqrt().sum(-1).argmin(-1)[..., None, None]
    from_centre = squared_distances.take_along_dim(to_centre, -2).squeeze(-2)
    finite = ~infinite_vectors(squared_distances)
    typical = from_centre.masked_fill(~finite, torch.nan).nanmedian(-1, keepdim=True).values
    present = finite & (from_centre <= 1e14 * typical)
    between = squared_distances.where(present[..., :, None] & present[..., None, :], 0.0)

    def times_distances(weights: Tensor) -> Tensor:
        return (between @ weights[..., None]).squeeze(-1)

    weights = present / present.sum(-1, keepdim=True).double()
    for _ in range(iterations):
        to_vectors = times_distances(weights)
        squared = to_vectors - (weights * to_vectors).sum(-1, keepdim=True) / 2
        noise = 1e-12 * typical + 1e-15 * to_vectors.amax(-1, keepdim=True)
        lies_on = present & (squared <= noise)
        pull = (present & ~lies_on) * squared.clamp(min=1e-300).rsqrt()
        total = pull.sum(-1, keepdim=True).clamp(min=1e-300)
        towards = pull / total
        step = towards - weights
        length = (-(step * times_distances(step)).sum(-1, keepdim=True) / 2).clamp(min=0).sqrt()
        stay = (lies_on.sum(-1, keepdim=True) / (total * length).clamp(min=1e-300)).clamp(max=1)
        updated = towards + stay * (weights - towards)
        moved = (updated - weights).abs()
        weights = updated
        if not bool((moved > tolerance).any()):  # whatever is NaN does not move
            break
    return weights


# ------------------------------------------------------------------------------------------- what came after Krum


@gram_rule(guarantee=KRUM)
def nnm_krum(squared_distances: Tensor, f: int) -> Tensor:
    """Krum after nearest-neighbour mixing (Allouah et al., 2023, algorithm 2).

    Every vector gives way to the mean of the n - f vectors nearest to it, itself included, then Krum chooses one of
    these means. With mixing weights M (rows sum to 1) and `K = M D M^T`, their squared distances are
    `K_ij - (K_ii + K_jj) / 2`, those of vectors with the Gram matrix `-K / 2`.
    """
    n = squared_distances.shape[-1]
    infinite = infinite_vectors(squared_distances)
    nearest = squared_distances.clone()
    nearest.diagonal(dim1=-2, dim2=-1).fill_(-1.0)
    chosen = nearest.sort(dim=-1, stable=True).indices[..., : n - f]
    mixing = nearest.new_zeros(nearest.shape).scatter_(-1, chosen, 1 / (n - f))
    mixed = mixing @ squared_distances.masked_fill(~squared_distances.isfinite(), 0.0) @ mixing.mT
    # Vectors with the same neighbours have the same mean: the first of them stands for all, or rounding would tell
    # them apart and decide ties.
    chooses = mixing.sign()
    twin = (chooses @ chooses.mT == n - f).byte().argmax(-1)
    mixed = mixed.take_along_dim(twin[..., None], -2).take_along_dim(twin[..., None, :], -1)
    between = distances.from_gram(mixed.masked_fill(infinite[..., None], torch.inf) / -2)
    winner = least(krum(between, f), 1, between)
    return (winner[..., None] * mixing).sum(-2)


@gram_rule(guarantee=MAJORITY, previous=True)
def centred_clipping(squared_distances: Tensor, *, radius: float = 1.0, iterations: int = 3) -> Tensor:
    """Centred clipping, from the last round's aggregate v (Karimireddy et al., 2021, algorithm 2).

    `v <- v + 1/n sum_i (V_i - v) min(1, radius / ||V_i - v||)`, `iterations` times. A vector that is not finite moves
    nothing, nor does one more than 1e7 radii away: float64 no longer holds its direction. In the first round, v is 0.
    """
    n = squared_distances.shape[-1] - 1
    present = ~infinite_vectors(squared_distances) & (squared_distances[..., -1, :] <= 1e14 * radius**2)
    between = squared_distances.where(present[..., :, None] & present[..., None, :], 0.0)
    weights = squared_distances.new_zeros(present.shape)
    weights[..., -1] = 1
    for _ in range(iterations):
        to_vectors = (between @ weights[..., None]).squeeze(-1)
        squared = to_vectors - (weights * to_vectors).sum(-1, keepdim=True) / 2
        clipped = (radius * squared.clamp(min=1e-300).rsqrt()).clamp(max=1) * present
        clipped[..., -1] = 0
        weights = weights * (1 - clipped.sum(-1, keepdim=True) / n) + clipped / n
    return weights


# ----------------------------------------------------------------------- what libraries compute and call Krum
#
# Read in their sources, in the versions named; the formulas are transcribed in our notation.


@selection_rule(guarantee=KRUM)
def krum_n_f_1(squared_distances: Tensor, f: int) -> Tensor:
    """One neighbour more than the paper: the n - f - 1 least squared distances (byzfl 0.0.11, byzpy 0.1.4)."""
    n = squared_distances.shape[-1]
    return sum_of_nearest(squared_distances, n - f - 1)


@selection_rule(guarantee=KRUM)
def krum_n_f_1_unsquared(squared_distances: Tensor, f: int) -> Tensor:
    """The n - f - 1 least distances, not squared (calicarpa's krum 0.1.0, ByzantineMomentum, Garfield)."""
    n = squared_distances.shape[-1]
    return sum_of_nearest(squared_distances.sqrt(), n - f - 1)


@selection_rule(guarantee=KRUM)
def krum_unsquared(squared_distances: Tensor, f: int) -> Tensor:
    """The n - f - 2 least distances, not squared (torchjd 0.18)."""
    n = squared_distances.shape[-1]
    return sum_of_nearest(squared_distances.sqrt(), n - f - 2)


@selection_rule(guarantee=KRUM)
def krum_fourth_power(squared_distances: Tensor, f: int) -> Tensor:
    """The n - f - 2 least squared distances, squared again (Blades 0.1, epfml's byzantine-robust-optimizer)."""
    n = squared_distances.shape[-1]
    return sum_of_nearest(squared_distances.square(), n - f - 2)
