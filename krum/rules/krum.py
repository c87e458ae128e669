"""Krum and Multi-Krum, the paper's rules, with averaging, what mixes them, and what other libraries call Krum.

To add a rule, write one function and decorate it (`krum.rules.registration` says what a rule is given and returns).
"""

import torch
from torch import Tensor

from krum.rules import distances
from krum.rules.registration import KRUM, gram_rule, infinite_vectors, least, selection_rule, sum_of_nearest


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


@gram_rule(fixed_weights=True)
def average(squared_distances: Tensor) -> Tensor:
    """The mean, `1/n sum_i V_i`. Tolerates no Byzantine worker (Lemma 1 of Blanchard et al., 2017)."""
    n = squared_distances.shape[-1]
    return squared_distances.new_full(squared_distances.shape[:-1], 1 / n)


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
