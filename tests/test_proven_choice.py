"""What float32 products prove of a choice: that of float64, or nothing."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_distances import from_differences, gradients

import krum
from krum.rules import aggregation, distances, proven_choice
from krum.rules.aggregators import AGGREGATORS

SELECTION = [name for name, rule in AGGREGATORS.items() if rule.selects is not None]


def test_a_proven_choice_is_that_of_float64():
    for kind, vectors in gradients().items():
        squared = distances.squared_distances(vectors)
        for name in SELECTION:
            rule = AGGREGATORS[name]
            proven, expected = proven_choice.proven_weights(rule, [vectors], 2, {}), rule(squared, 2)
            assert proven is None or torch.equal(proven, expected), (kind, name)
            assert torch.equal(krum.aggregate(vectors, name, f=2), aggregation.combine(expected, vectors)), (kind, name)
            assert proven is not None or kind != "plain", "the usual case should be proven"


@given(
    st.integers(0, 10**6),
    st.floats(-7, -3),
    st.sampled_from([3, 6, 11]),
    st.sampled_from([0.0, 10.0]),
    st.sampled_from(["krum", "multi-krum", "medoid"]),
)
def test_vectors_that_hardly_differ_are_told_apart_or_left_to_float64(seed, exponent, n, offset, name):
    """Scores as close as float32 can just see, or cannot: nothing proven may be wrong."""
    rng, f = np.random.default_rng(seed), (n - 3) // 2
    honest = rng.normal(size=5_000) + offset
    drawn = honest + 10**exponent * rng.normal(size=(n, 1)) * rng.normal(size=5_000)
    drawn[rng.integers(n)] *= 1 + 10**exponent
    vectors, rule = torch.from_numpy(drawn.astype(np.float32)), AGGREGATORS[name]
    proven = proven_choice.proven_weights(rule, [vectors], f, {})
    if proven is not None:
        assert torch.equal(proven, rule(from_differences(vectors), f))


def test_few_vectors_that_float32_cannot_tell_apart_are_decided_in_float64():
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(11, 50_000)).astype(np.float32))
    vectors[6] = vectors[3]
    vectors[6, :50] *= 1 + 1e-3
    vectors[[3, 6]] *= 0.9  # the two most central
    rule = AGGREGATORS["medoid"]
    scores = rule.scores(from_differences(vectors))
    assert set(scores.argsort()[:2].tolist()) == {3, 6}
    low, high = (rule.scores(bound) for bound in distances.bounds_from_float32([vectors]))
    assert high[3] > low[6] and high[6] > low[3]
    assert torch.equal(proven_choice.proven_weights(rule, [vectors], 0, {}), rule(from_differences(vectors)))


def test_ties_go_to_the_smallest_index_and_are_never_proven():
    vectors = gradients()["plain"]
    vectors[1:] = vectors[0].clone()
    assert proven_choice.proven_weights(AGGREGATORS["krum"], [vectors], 2, {}) is None
    rng = np.random.default_rng(0)
    for twin in range(1, 11):
        vectors = torch.from_numpy(rng.normal(size=(11, 5_000)).astype(np.float32))
        vectors[twin] = vectors[0]
        squared = distances.squared_distances(vectors)
        assert torch.equal(squared[0], squared[twin])
        winner = int(AGGREGATORS["krum"](squared, 2).argmax())
        assert winner != twin
        assert torch.equal(krum.aggregate(vectors, "krum", f=2), vectors[winner])


def test_a_list_gives_the_bits_of_a_matrix():
    for kind, vectors in gradients().items():
        for name in ("krum", "multi-krum", "geometric-median", "nnm-krum"):
            from_list = krum.aggregate([row.clone() for row in vectors], name, f=2)
            assert torch.equal(from_list, krum.aggregate(vectors, name, f=2)), (kind, name)
