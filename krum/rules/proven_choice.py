"""Which vectors a selection rule chooses, proven from float32 products in half of the time that float64 takes.

Every squared distance lies in an interval (`krum.rules.distances`), so every score, which does not fall when a
distance grows, lies in another. Where m intervals end below all others, the choice is that of exact arithmetic. Where
a few overlap, these vectors' distances are computed again in float64. Where that does not decide it either, nothing is
claimed: `proven_weights` returns None, and the caller computes all distances exactly.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from krum.rules import distances
from krum.rules.distances import RowBlock
from krum.rules.registration import Aggregator


def proven_weights(rule: Aggregator, blocks: Sequence[RowBlock], f: int, options: dict[str, Any]) -> Tensor | None:
    """The weights `[n]`, float64, that a selection rule gives to n vectors; None where they are not proven."""
    n = len(blocks[0])
    m = None if rule.selects is None else rule.chosen(n, f, options)
    if m is None or m == n or any(block[0].dtype == torch.float64 for block in blocks):
        return None
    bounds = distances.bounds_from_float32(blocks)
    if bounds is None:
        return None
    low, high = rule.scores(bounds, f, **options).tolist()
    chosen = _first(low, high, m)
    if chosen is None:
        latest, earliest = sorted(high)[m - 1], sorted(low)[m]
        undecided = [i for i in range(n) if low[i] <= latest and high[i] >= earliest]
        if len(undecided) > n / 2:
            return None
        bounds = distances.narrowed(bounds, blocks, torch.tensor(undecided, device=bounds.device))
        low, high = rule.scores(bounds, f, **options).tolist()
        chosen = _first(low, high, m)
    if chosen is None:
        return None
    weights = torch.zeros(n, dtype=torch.float64, device=bounds.device)
    weights[chosen] = 1 / m
    return weights


def _first(low: list[float], high: list[float], m: int) -> list[int] | None:
    """The indices of the m scores whose intervals end first, if they end before all others begin."""
    order = sorted(range(len(high)), key=high.__getitem__)
    return order[:m] if high[order[m - 1]] < min(low[i] for i in order[m:]) else None
