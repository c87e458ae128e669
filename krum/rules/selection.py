"""Which vectors a selection rule takes, proven from float32 products, in half of the time that float64 takes.

Squared distances from float32 products carry an error that is bounded (`krum.kernels.distance_bounds`). So every
distance lies in an interval, every score, which does not fall when a distance grows, in another, and where the
intervals of those that are taken end below all others, the choice is that of exact arithmetic. Where a few overlap,
these vectors' distances are computed again in float64. Where that does not decide it either, nothing is claimed:
`proven_weights` returns None, and the caller takes the long way.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krum.rules.aggregators import Aggregator
from krum.rules.distances import Part


def proven_weights(rule: Aggregator, parts: Sequence[Part], f: int, options: dict[str, Any]) -> Tensor | None:
    """The weights `[n]`, float64, that a selection rule gives to n vectors in parts; None where they are not proven."""
    from krum.rules import kernels

    n = len(parts[0])
    m = None if rule.selects is None else rule.chosen(n, f, options)
    short = all(part[0].dtype in (torch.float32, torch.float16, torch.bfloat16) for part in parts)
    if m is None or m == n or not short or not kernels.fit(parts):
        return None
    bounds = kernels.distance_bounds(parts)
    if bounds is None:
        return None
    low, high = rule.scores(bounds, f, **options).numpy()
    weights = _decided(low, high, m)
    if weights is not None:
        return weights
    rows = ((low <= np.sort(high)[m - 1]) & (high >= np.sort(low)[m])).nonzero()[0].tolist()
    if len(rows) > n / 3:
        return None
    exact = kernels.squared_differences(parts, rows)
    for ends, factor in zip(bounds, (1 - kernels.ROUNDING, 1 + kernels.ROUNDING), strict=True):
        ends[rows] = exact * factor
        ends[:, rows] = exact.mT * factor
    low, high = rule.scores(bounds, f, **options).numpy()
    return _decided(low, high, m)


def _decided(low: np.ndarray, high: np.ndarray, m: int) -> Tensor | None:
    """The weights, if m vectors' scores, between `low` and `high`, certainly are below all others'."""
    taken, others = high.argsort()[:m], low.copy()
    others[taken] = np.inf
    if not high[taken[-1]] < others.min():
        return None
    weights = np.zeros(len(high))
    weights[taken] = 1 / m
    return torch.from_numpy(weights)
