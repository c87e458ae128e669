"""The rules that work coordinate by coordinate.

To add one, write one function here and decorate it (`krum.rules.registration` says what a rule is given and returns).
"""

import torch
from torch import Tensor

from krum.rules.registration import BULYAN, MAJORITY, infinite_vectors, sum_of_nearest, vector_rule


@vector_rule(guarantee=MAJORITY)
def median(vectors: Tensor) -> Tensor:
    """The coordinate-wise median, for even n the mean of the two middle values (Yin et al., 2018). NaN is +inf."""
    return _middle(_sorted(vectors))


@vector_rule(guarantee=MAJORITY)
def trimmed_mean(vectors: Tensor, f: int) -> Tensor:
    """The coordinate-wise mean without the f least and the f greatest values (Yin et al., 2018). NaN is +inf."""
    return _sorted(vectors)[..., f : vectors.shape[-2] - f, :].mean(-2)


def bulyan_selection(squared_distances: Tensor, f: int) -> Tensor:
    """Bulyan's first step, [..., n]: n - 2f times, Krum chooses one of the vectors that are left (1 if chosen)."""
    n = squared_distances.shape[-1]
    infinite = infinite_vectors(squared_distances)
    left, chosen = squared_distances.clone(), squared_distances.new_zeros(infinite.shape)
    for count in range(n, 2 * f, -1):
        scores = sum_of_nearest(left, max(1, count - f - 2)).masked_fill(infinite, torch.inf)
        scores = scores.masked_fill(chosen > 0, torch.nan)  # sorts after infinity
        winner = scores.sort(dim=-1, stable=True).indices[..., :1]
        chosen.scatter_(-1, winner, 1.0)
        gone = chosen > 0
        left.masked_fill_(gone[..., :, None] | gone[..., None, :], torch.inf)
    return chosen


@vector_rule(guarantee=BULYAN, select=bulyan_selection)
def bulyan(vectors: Tensor, f: int, chosen: Tensor) -> Tensor:
    """Bulyan of Krum (El Mhamdi et al., 2018): of n - 2f vectors, by coordinate, the mean of the n - 4f nearest to
    their median.

    Krum chooses the n - 2f vectors one after the other, each among those left (`bulyan_selection`). Of two values
    equally near the median, the smaller comes first.
    """
    n, d = vectors.shape[-2:]
    kept = _sorted(vectors.reshape(-1, d)[chosen.flatten() > 0].reshape(*chosen.shape[:-1], n - 2 * f, d))
    centre, count = _middle(kept), n - 4 * f
    # The nearest values stand side by side: they begin after every value that the one `count` places on is nearer than.
    after = (kept[..., count:, :] - centre[..., None, :]) < (centre[..., None, :] - kept[..., : 2 * f, :])
    first, total = after.sum(-2), centre
    for begin in range(2 * f + 1):
        total = kept[..., begin : begin + count, :].sum(-2).where(first == begin, total)
    return total / count


def _sorted(vectors: Tensor) -> Tensor:
    """Every coordinate's values in ascending order, NaN as +inf."""
    return vectors.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).sort(-2).values


def _middle(ordered: Tensor) -> Tensor:
    """The median of ordered values, for even n the mean of the two middle ones."""
    n = ordered.shape[-2]
    return ordered[..., (n - 1) // 2, :] / 2 + ordered[..., n // 2, :] / 2
