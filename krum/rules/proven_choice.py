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
    low, high = rule.scores(bounds, f, **options)
    chosen = _first(low, high, m)
    if chosen is None:
        undecided = ((low <= high.sort().values[m - 1]) & (high >= low.sort().values[m])).nonzero().squeeze(-1)
        if len(undecided) > n / 2:
            return None
        low, high = rule.scores(distances.narrowed(bounds, blocks, undecided), f, **options)
        chosen = _first(low, high, m)
    return None if chosen is None else torch.zeros_like(high).index_fill_(0, chosen, 1 / m)


def _first(low: Tensor, high: Tensor, m: int) -> Tensor | None:
    """The indices of the m scores whose intervals end first, if they end before all others begin."""
    order = high.argsort()
    return order[:m] if bool(high[order[m - 1]] < low[order[m:]].min()) else None
