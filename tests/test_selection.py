"""What float32 products prove: bounds that hold, and choices that are those of float64, or none at all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import krum
from krum.rules import aggregation, distances, kernels, selection
from krum.rules.aggregators import AGGREGATORS

SELECTION = [name for name, rule in AGGREGATORS.items() if rule.selects is not None]
F = 2


def gaussian(n=11, d=30_000, seed=0, offset=0.0, scale=1.0):
    drawn = np.random.default_rng([seed, n, d]).normal(size=(n, d))
    return torch.from_numpy((scale * (drawn + offset)).astype(np.float32))


def exactly(vectors):
    """All squared distances from float64 differences."""
    v = vectors.double().numpy()
    return torch.from_numpy(np.stack([np.square(row - v).sum(-1) for row in v]))


def hostile():
    """Gradients that spoil float32: a common part, outliers, scales, zeros, copies, parts that cancel."""
    rng = np.random.default_rng(5)
    cases = {"plain": gaussian(), "far from zero": gaussian(offset=1e3), "tiny": gaussian(scale=1e-12)}
    cases["huge"] = gaussian(scale=1e9)
    cases["outlier"] = gaussian()
    cases["outlier"][4] *= 1e6
    cases["zeros"] = gaussian()
    cases["zeros"][7:9] = 0
    cases["copies"] = gaussian(offset=3)
    cases["copies"][5] = cases["copies"][2]
    cases["one coordinate"] = torch.zeros(11, 30_000)
    cases["one coordinate"][:, 17] = torch.arange(11.0) ** 2
    signs = torch.from_numpy(np.where(rng.random(30_000) < 0.5, 1.0, -1.0).astype(np.float32))
    cases["same length"] = signs + 1e-3 * gaussian(seed=3)
    cases["beyond float32 when squared"] = gaussian(scale=1e25)
    cases["rising"] = gaussian() * torch.logspace(-6, 6, 30_000)
    return cases


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", hostile())
def test_bounds_hold(case, dtype):
    vectors = hostile()[case].to(dtype)
    if not bool(vectors.isfinite().all()):
        pytest.skip("beyond the dtype")
    bounds = kernels.distance_bounds([vectors])
    if bounds is None:
        assert case in ("beyond float32 when squared", "far from zero", "same length"), "float32 should tell"
        return
    exact = exactly(vectors)
    assert bool((bounds[0] <= exact * (1 + 1e-12)).all()) and bool((bounds[1] >= exact * (1 - 1e-12)).all())


@pytest.mark.parametrize("name", SELECTION)
@pytest.mark.parametrize("case", hostile())
def test_a_proven_choice_is_float64s(case, name):
    vectors, rule = hostile()[case], AGGREGATORS[name]
    proven = selection.proven_weights(rule, [vectors], F, {})
    expected = rule(distances.squared_distances(vectors), F)
    if proven is not None:
        assert torch.equal(proven, expected)
    assert torch.equal(krum.aggregate(vectors, name, f=F), aggregation.combine(expected, vectors))
    if case == "plain" and name in ("krum", "multi-krum"):
        assert proven is not None, "the usual case should be proven"


@settings(max_examples=60, deadline=None)
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
    honest = rng.normal(size=30_000) + offset
    drawn = honest + 10**exponent * rng.normal(size=(n, 1)) * rng.normal(size=30_000)
    drawn[rng.integers(n)] *= 1 + 10**exponent
    vectors, rule = torch.from_numpy(drawn.astype(np.float32)), AGGREGATORS[name]
    proven = selection.proven_weights(rule, [vectors], f, {})
    if proven is not None:
        assert torch.equal(proven, rule(exactly(vectors), f))


def test_few_that_overlap_are_computed_again():
    """Two vectors whose scores float32 cannot tell apart, and float64 can."""
    vectors = gaussian(d=200_000)
    vectors[6] = vectors[3]
    vectors[6, :50] *= 1 + 1e-5
    rule = AGGREGATORS["medoid"]
    vectors[[3, 6]] *= 0.9  # the two most central
    scores = rule.scores(exactly(vectors))
    assert set(scores.argsort()[:2].tolist()) == {3, 6}
    lower, upper = (rule.scores(bound) for bound in kernels.distance_bounds([vectors]))
    assert upper[3] > lower[6] and upper[6] > lower[3]
    assert torch.equal(selection.proven_weights(rule, [vectors], 0, {}), rule(exactly(vectors)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_claimed_of_what_is_not_finite_or_of_ties(bad):
    rule, vectors = AGGREGATORS["krum"], gaussian()
    vectors[3, 100] = bad
    assert selection.proven_weights(rule, [vectors], F, {}) is None
    chosen = krum.aggregate(vectors, "krum", f=F)
    assert bool(chosen.isfinite().all())
    vectors = gaussian()
    vectors[1:] = vectors[0]
    assert selection.proven_weights(rule, [vectors], F, {}) is None
