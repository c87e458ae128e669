"""Other rules that see n vectors through their squared distances, and give each of them a weight.

To add one, write one function here and decorate it (`krum.rules.registration` says what a rule is given and returns).
"""

import torch
from torch import Tensor

from krum.rules.registration import (
    MAJORITY,
    gram_rule,
    infinite_vectors,
    selection_rule,
    without_infinite_vectors,
)


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
