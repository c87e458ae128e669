"""What follows from formulas alone: Proposition 1 of Blanchard et al. (2017), and what a round costs."""

import math

import pandas as pd

from krum.rules.aggregators import AGGREGATORS


def eta(n: int, f: int) -> float:
    """`eta(n, f) = sqrt(2 (n - f + (f (n - f - 2) + f^2 (n - f - 1)) / (n - 2 f - 2)))`; inf where 2f + 2 >= n.

    If `eta sqrt(d) sigma < ||g||`, where g is the true gradient and `E ||G - g||^2 = d sigma^2` for an honest worker's
    estimate G, then `<E Krum, g> >= (1 - sin alpha) ||g||^2 > 0` with `sin alpha = eta sqrt(d) sigma / ||g||`.

    >>> round(eta(20, 6), 2)
    14.42
    >>> eta(20, 9)
    inf
    """
    if 2 * f + 2 >= n:
        return math.inf
    return math.sqrt(2 * (n - f + (f * (n - f - 2) + f**2 * (n - f - 1)) / (n - 2 * f - 2)))


def condition(rows: pd.DataFrame) -> pd.Series:
    """`eta sqrt(d) sigma / ||g||` of training rows with measured gradients; the proposition needs it below 1."""
    etas = [eta(n, f) for n, f in zip(rows["workers"], rows["declared_f"], strict=True)]
    return etas * rows["gradient_noise"] / rows["gradient_norm"]


def arithmetic(rows: pd.DataFrame) -> pd.Series:
    """Operations of one round per parameter, of all n workers and the server.

    A sample's gradient takes three multiply-adds per parameter (forward, and twice backward); the server's n additions
    average, `n (n + 1) / 2` multiply-adds make a Gram matrix, to which a rule that weighs adds the n of its sum, and
    `n log2 n` comparisons sort the values of a coordinate.
    """
    rules = rows["aggregator"].map(AGGREGATORS)
    n = rows["workers"].astype(float)
    server = n.where(rules.map(lambda rule: rule.fixed_weights), n + n * (n + 1) / 2)
    sees_vectors = rules.map(lambda rule: rule.sees == "vectors")
    server = server.where(~sees_vectors, n * n.clip(lower=2).map(math.log2))
    return 3 * n * rows["batch_size"] + server
