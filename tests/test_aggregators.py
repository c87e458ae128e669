"""Every rule against the loop oracle, and the properties that rules promise."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import SCORES, bulyan, centred_clipping, chosen, nnm_krum

import krum
from krum.distributed import ddp as parallel
from krum.distributed import sharded
from krum.rules.aggregators import AGGREGATORS
from krum.rules.distances import squared_distances

CHOOSING = list(SCORES)
ROOTED = ("medoid", "krum-unsquared", "krum-n-f-1-unsquared")
GRAM_RULES = [name for name, rule in AGGREGATORS.items() if rule.sees == "distances"]


def chosen_by(name, vectors, f, **options):
    weights = AGGREGATORS[name](squared_distances(torch.as_tensor(vectors)), f, **options)
    return set(weights.nonzero().squeeze(-1).tolist())


def distances_of(vectors):
    """What is easily taken for inner products."""
    return np.linalg.norm(vectors[:, None] - vectors, axis=-1)


def with_entry(matrix, row, column, value):
    matrix[row, column] = value
    return matrix


def with_entries(matrix, row, column, value):
    return with_entry(with_entry(matrix, row, column, value), column, row, value)


def check_against_oracle(name, vectors, f, m=None):
    """The fast rule chooses what the oracle chooses, and `aggregate` returns just that."""
    options = {} if m is None else {"m": m}
    count = 1 if name != "multi-krum" else (len(vectors) - f if m is None else m)
    expected = chosen(SCORES[name](vectors, f), count)
    assert chosen_by(name, vectors, f, **options) == set(expected)
    result = krum.aggregate(vectors, name, f=f, **options)
    assert result.dtype == vectors.dtype
    if count == 1:
        assert np.array_equal(result, vectors[expected[0]])
    else:
        mean = vectors[sorted(expected)].astype(np.float64).mean(0)
        assert np.allclose(result, mean.astype(vectors.dtype), rtol=1e-6, atol=0)


def context(name):
    """What a rule needs beside f: for 1-p-krum a round in which it does not average."""
    return {"round": 1, "coin": 0.9} if "coin" in AGGREGATORS[name].needs else {}


def normal(n, d, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


def difficult_problems():
    """(vectors, f): common offsets, scales, ties, duplicates, clusters, bad workers, and every n with its largest f."""
    plain = normal(20, 30, dtype=np.float64)
    for seed in range(4):
        for n in (20, 40):
            yield (1e4 + 1e-2 * normal(n, 50, seed, np.float64)).astype(np.float32), 6
    for scale in (1e-20, 1e-3, 1.0, 1e6, 1e15):
        yield (plain * scale).astype(np.float32), 6
    for scale in (1e-70, 1e70):  # float64 holds the fourth powers
        yield plain * scale, 6
    for scale, seed in itertools.product((1.0, 0.1, 1e15), range(5)):
        rng = np.random.default_rng(seed)
        yield (rng.normal(size=(4, 17)) * scale)[rng.integers(4, size=23)], 5
        yield rng.integers(-2, 3, size=(23, 2)).astype(np.float32), 5
    yield np.zeros((9, 3)), 2
    yield np.eye(9, dtype=np.float32), 2
    yield np.where(np.arange(20)[:, None] % 2, 1e6, -1e6) + 1e-3 * plain, 6
    places = [([0],), ([19],), ([0, 3, 4, 9, 18, 19],), (0, 0), (np.arange(6), np.arange(6))]
    for bad, place in itertools.product((np.nan, np.inf, -np.inf, 1e30, -1e30), places):
        vectors = normal(20, 30)
        vectors[place] = bad
        yield vectors, 6
    vectors = normal(20, 30)
    vectors[0], vectors[1], vectors[2, 3], vectors[3] = np.nan, np.inf, 1e30, 1e30
    vectors[4, ::2], vectors[5, 1::2] = -np.inf, np.nan
    yield vectors, 6
    for n in (*range(3, 28), 40, 59, 60):
        yield normal(n, 8, seed=n), (n - 3) // 2  # n = 2f + 3 for odd n
        yield 100 + normal(n, 8, seed=n), 0


def test_choices_on_difficult_vectors_are_the_oracles():
    for vectors, f in difficult_problems():
        for name in CHOOSING:
            check_against_oracle(name, vectors, f)
    for scale in (1e-150, 1e150):
        check_against_oracle("krum", normal(20, 30, dtype=np.float64) * scale, f=6)


@st.composite
def problems(draw):
    n = draw(st.integers(3, 60))
    f = draw(st.integers(0, (n - 3) // 2))
    d = draw(st.sampled_from([1, 2, 3, 7, 33]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["continuous", "lattice", "duplicates"]))
    if kind == "lattice":
        vectors = rng.integers(-3, 4, size=(n, d)) * 2.0 ** draw(st.integers(-30, 30))
    else:
        vectors = rng.normal(size=(n, d)) * 10.0 ** draw(st.integers(-12, 12))
        if kind == "duplicates":
            vectors = vectors[rng.integers(max(1, n // 3), size=n)]
    vectors = vectors + draw(st.sampled_from([0.0, 0.0, 1024.0]))
    bad = rng.choice(n, size=draw(st.integers(0, f)), replace=False)
    exact = kind == "lattice"  # small multiples of one power of two
    for worker in bad:
        value = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
        exact &= value != 1e30
        vectors[worker, slice(None) if draw(st.booleans()) else rng.integers(d)] = value
    return vectors.astype(draw(st.sampled_from([np.float32, np.float64]))), f, exact


@pytest.mark.parametrize("name", CHOOSING)
@given(problem=problems(), data=st.data())
def test_choices_on_drawn_vectors_are_the_oracles(name, problem, data):
    """The same choice; where float64 cannot tell two scores apart (1e-11), one of equal score."""
    vectors, f, exact = problem
    m = data.draw(st.integers(1, len(vectors) - f)) if name == "multi-krum" else 1
    options = {"m": m} if name == "multi-krum" else {}
    scores = SCORES[name](vectors, f)
    expected, found = set(chosen(scores, m)), chosen_by(name, vectors, f, **options)
    assert len(found) == m
    for missed, taken in zip(
        sorted(expected - found, key=scores.__getitem__), sorted(found - expected, key=scores.__getitem__), strict=True
    ):
        assert not exact or name in ROOTED, "sums of integers are exact; only square roots are rounded"
        assert scores[taken] <= scores[missed] * (1 + 1e-11)


def most_bad(name):
    """The f that the tests of properties declare: 3 of 13, or what the rule's guarantee allows."""
    return 3 if AGGREGATORS[name].within_guarantee(13, 3) else 2


def aggregate(vectors, name):
    return krum.aggregate(vectors, name, f=most_bad(name), **context(name))


def test_every_rule_follows_permutation_translation_and_scale():
    vectors, shift = normal(13, 9, dtype=np.float64), 100 * normal(1, 9, 5, np.float64)
    order = np.random.default_rng(1).permutation(13)
    for name, rule in AGGREGATORS.items():
        result = aggregate(vectors, name)
        assert np.allclose(result, aggregate(vectors[order], name), rtol=1e-9, atol=1e-9), name
        if rule.previous:  # it clips at a length of its own, about the last aggregate
            continue
        assert np.allclose(aggregate(vectors + shift, name), result + shift, rtol=1e-7, atol=1e-7), name
        for scale in (1e-15, 1e-3, 7.0, 1e15):
            assert np.allclose(aggregate(vectors * scale, name), result * scale, rtol=1e-7, atol=0), name
        identical = np.tile(normal(1, 9), (13, 1))
        assert np.allclose(aggregate(identical, name), identical[0], rtol=1e-6), name


def test_every_rule_takes_every_dtype_and_leaves_its_input_alone():
    for name in AGGREGATORS:
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            vectors = torch.from_numpy(normal(13, 300)).to(dtype)
            kept = vectors.clone()
            result, expected = aggregate(vectors, name), aggregate(vectors.double(), name)
            assert result.dtype == dtype and result.shape == (300,)
            assert torch.allclose(result.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6), name
            assert torch.equal(vectors, kept), f"{name} changed its input"
            assert result.data_ptr() not in [row.data_ptr() for row in vectors], f"{name} gave a view of its input"
        for dtype in (np.float16, np.float32, np.float64):
            vectors = normal(13, 20).astype(dtype)
            result = aggregate(vectors, name)
            assert isinstance(result, np.ndarray) and result.dtype == dtype
            assert np.array_equal(result, aggregate(torch.from_numpy(vectors), name).numpy())
            read_only = vectors[::-1]
            read_only.flags.writeable = False
            assert np.array_equal(aggregate(read_only, name), aggregate(read_only.copy(), name))


def test_bad_vectors_do_no_harm_to_any_rule_that_looks():
    vectors = normal(13, 20)
    for name, rule in AGGREGATORS.items():
        for bad in (np.nan, np.inf, -np.inf, 1e30):
            if rule.fixed_weights:
                continue
            hostile = vectors.copy()
            hostile[[0, 5, 12][: most_bad(name)]] = bad
            result = aggregate(hostile, name)
            assert np.isfinite(result).all()
            if rule.guarantee.condition or not np.isfinite(bad):
                assert np.abs(result).max() <= np.abs(vectors).max() + 1e-5, name


def test_blocks_of_coordinates_change_nothing(monkeypatch):
    vectors = normal(13, 1000, dtype=np.float64)
    whole = {name: aggregate(vectors, name) for name in AGGREGATORS}
    monkeypatch.setattr("krum.rules.distances.BLOCK", 13 * 64)
    for name, expected in whole.items():
        assert np.allclose(aggregate(vectors, name), expected, rtol=1e-12, atol=1e-12), name


def test_weights_are_those_of_aggregate():
    vectors = normal(3 * 2 * 13, 9, dtype=np.float64).reshape(3, 2, 13, 9)
    gram = vectors @ vectors.swapaxes(-1, -2)
    for name in GRAM_RULES:
        weights = krum.weights(gram, name, f=3, **context(name))
        assert weights.shape == (3, 2, 13)
        if not AGGREGATORS[name].previous:  # whose zero vector has the rest
            assert np.allclose(weights.sum(-1), 1)
        for i, j in np.ndindex(3, 2):
            expected = krum.aggregate(vectors[i, j], name, f=3, **context(name))
            assert np.allclose(weights[i, j] @ vectors[i, j], expected, rtol=1e-6, atol=1e-6), name
        half = krum.weights(torch.from_numpy(gram).float(), name, f=3, **context(name))
        assert half.dtype == torch.float32 and torch.allclose(half.double(), torch.from_numpy(weights), atol=1e-3)


def test_infinite_vectors_have_no_weight():
    vectors = normal(13, 9)
    vectors[2] = np.nan
    vectors[4] = 1e30
    with np.errstate(over="ignore", invalid="ignore"):
        gram = vectors @ vectors.T
    weights = krum.weights(gram, "krum", f=3)
    assert weights[[2, 4]].sum() == 0 and weights.sum() == 1


SELECTING = [name for name, rule in AGGREGATORS.items() if rule.selects is not None]


def test_every_rule_that_chooses_is_a_selection_rule():
    assert set(SCORES) <= set(SELECTING)


@given(seed=st.integers(0, 2**32), n=st.integers(5, 25))
def test_scores_do_not_fall_when_a_distance_grows(seed, n):
    """So bounds on distances are bounds on scores."""
    rng = np.random.default_rng(seed)
    f = int(rng.integers(0, (n - 3) // 2 + 1))
    less = squared_distances(torch.from_numpy(rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-3, 4, size=(n, 1))))
    growth = torch.from_numpy(rng.uniform(0, 10, size=(n, n)) * (rng.uniform(size=(n, n)) < 0.3)).triu(1)
    more = less + growth + growth.T
    for name in SELECTING:
        before, after = (AGGREGATORS[name].scores(distances, f) for distances in (less, more))
        assert (after >= before * (1 - 1e-12)).all(), name


def test_one_minus_p_krum_averages_with_the_probability_of_its_round():
    vectors = normal(13, 9, dtype=np.float64)
    mean, chosen_one = krum.aggregate(vectors, "average"), krum.aggregate(vectors, "krum", f=3)
    for round_, horizon, power, p in [
        (1, 500, 1.0, 0.002),
        (250, 500, 1.0, 0.5),
        (250, 500, 2.0, 0.25),
        (999, 500, 1, 1),
    ]:
        for coin in (0.0, p - 1e-6, p + 1e-6):
            coin = min(coin, 0.999999)
            options = {"round": round_, "coin": coin, "horizon": horizon, "power": power}
            result = krum.aggregate(vectors, "1-p-krum", f=3, **options)
            assert np.allclose(result, mean if coin < p else chosen_one)


def test_multi_krum_spans_krum_and_average():
    vectors = normal(13, 9, dtype=np.float64)
    krum_choice = krum.aggregate(vectors, "krum", f=3)
    assert np.array_equal(krum.aggregate(vectors, "multi-krum", f=3, m=1), krum_choice)
    everything = krum.aggregate(vectors, "multi-krum", f=3, m=13)
    assert np.allclose(everything, krum.aggregate(vectors, "average"), rtol=1e-12)


def test_geometric_median_is_optimal():
    """At the minimum of the sum of distances, the unit vectors towards the points add up to nothing."""
    for seed in range(5):
        vectors = normal(12, 6, seed, np.float64)
        vectors[0] *= 1e4
        z = krum.aggregate(vectors, "geometric-median")
        units = (vectors - z) / np.linalg.norm(vectors - z, axis=1, keepdims=True)
        assert np.linalg.norm(units.sum(0)) < 1e-5
    majority = np.vstack([np.tile([[1.0, 2.0]], (7, 1)), normal(5, 2, dtype=np.float64)])
    assert np.allclose(krum.aggregate(majority, "geometric-median"), [1.0, 2.0], atol=1e-6)


def test_geometric_median_may_lie_on_a_vector():
    """Weiszfeld's own iteration starts on a vector here, or must end on one."""
    for vectors, optimum in [
        ([[-4.0], [0.0], [1.0], [1.5], [1.5]], [1.0]),
        ([[0.0, 0.0], [4.0, 0.0], [4.0, 1.0], [4.0, -1.0], [-12.0, 0.0]], [4 - 3**-0.5, 0.0]),
        ([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [0.0, 0.0]),
        ([[0.0], [0.0], [0.0], [5.0], [5.0]], [0.0]),
    ]:
        assert np.allclose(krum.aggregate(np.array(vectors), "geometric-median"), optimum, atol=1e-4)


def test_geometric_median_with_more_bad_than_good_vectors():
    vectors = np.array([[np.nan], [np.inf], [-np.inf], [2.0], [2.0]])
    assert krum.aggregate(vectors, "geometric-median", f=3) == [2.0]


def test_the_first_of_the_nearest_pair_wins_the_tie():
    """With n = 3 and f = 0 the two nearest vectors always have equal scores: the first of them is chosen."""
    for seed in range(40):
        vectors = normal(3, 1099, seed)
        check_against_oracle("krum", vectors, f=0)
        gram = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
        assert krum.weights(gram, "krum", f=0).argmax() == chosen(SCORES["krum"](vectors, 0), 1)[0]


def test_f_may_be_a_numpy_integer():
    vectors = normal(13, 9)
    expected = krum.aggregate(vectors, "multi-krum", f=3, m=2)
    assert np.array_equal(krum.aggregate(vectors, "multi-krum", f=np.int64(3), m=np.int32(2)), expected)


def test_vector_rules_against_numpy():
    for n in (9, 12):
        vectors = normal(n, 70, dtype=np.float64)
        vectors[1, :9], vectors[0, 5], vectors[2, 3] = np.nan, np.inf, -np.inf
        ordered = np.sort(np.where(np.isnan(vectors), np.inf, vectors), axis=0)
        for name, expected in (("median", np.median(ordered, axis=0)), ("trimmed-mean", ordered[3:-3].mean(0))):
            assert np.allclose(krum.aggregate(vectors, name, f=3), expected, rtol=1e-12)


def test_means_are_exact_where_their_sums_are():
    assert krum.aggregate(np.array([[1.0], [4.0], [7.0]]), "average") == [4.0]
    for m in range(2, 60):
        vectors = np.random.default_rng(m).integers(-1000, 1000, size=(60, 5)).astype(np.float64)
        best = chosen(SCORES["multi-krum"](vectors, 5), m)
        assert np.array_equal(krum.aggregate(vectors, "multi-krum", f=5, m=m), vectors[best].mean(0))


def bad_somewhere(f, vectors, rng):
    vectors[rng.choice(len(vectors), f, replace=False)] = rng.choice([np.nan, np.inf, 1e30, 50.0])
    return vectors


def test_bulyan_is_the_loops():
    for f, extra, seed in itertools.product((0, 1, 2, 4), (3, 4, 7), range(3)):
        rng = np.random.default_rng(seed)
        vectors = bad_somewhere(f, normal(4 * f + extra, 6, seed, np.float64), rng)
        assert np.allclose(krum.aggregate(vectors, "bulyan", f=f), bulyan(vectors, f), rtol=1e-9, atol=1e-12)


def test_nearest_neighbour_mixing_is_the_loops():
    for f, seed in itertools.product((0, 1, 3, 6), range(6)):
        rng = np.random.default_rng(seed)
        vectors = bad_somewhere(f, normal(2 * f + 3 + seed % 3, 6, seed, np.float64), rng)
        assert np.allclose(krum.aggregate(vectors, "nnm-krum", f=f), nnm_krum(vectors, f), rtol=1e-9)


def test_centred_clipping_is_the_loops():
    for radius, iterations, seed in itertools.product((0.1, 1.0, 10.0), (1, 3), range(3)):
        rng = np.random.default_rng(seed)
        vectors, last = bad_somewhere(3, normal(13, 6, seed, np.float64), rng), rng.normal(size=6)
        options = {"radius": radius, "iterations": iterations}
        for previous in (last, None):
            start = [0.0] * 6 if previous is None else previous
            result = krum.aggregate(vectors, "centred-clipping", f=3, previous=previous, **options)
            expected = centred_clipping(vectors, start, radius, iterations)
            assert np.allclose(result, expected, rtol=1e-9, atol=1e-12)


def test_outside_its_guarantee_a_rule_is_defined_where_its_formula_is():
    for name, most in (("krum", 10), ("bulyan", 3), ("median", 6), ("average", 12)):
        AGGREGATORS[name].check(13, most, {}, outside_guarantee=True)
    for name, least, words in (("krum", 11, "n - f - 2 >= 1"), ("bulyan", 4, "n - 4f >= 1"), ("median", 7, "2f < n")):
        with pytest.raises(krum.InputError, match=f"needs {words}"):
            AGGREGATORS[name].check(13, least, {}, outside_guarantee=True)


def test_figure_2_barycentre_is_defeated_and_krum_is_not():
    """One colluder far away shifts the barycentre onto the other one."""
    honest = np.random.default_rng(0).normal(size=(11, 2))
    n = 13
    target = np.array([50.0, 50.0])
    far = n * target - honest.sum(0) - target
    vectors = np.vstack([honest, target, far])
    assert np.array_equal(krum.aggregate(vectors, "nearest-to-barycentre"), target)
    assert np.abs(krum.aggregate(vectors, "krum", f=2)).max() < 5


REFUSED = [
    (lambda v: krum.aggregate(v, "krun", f=3), "did you mean 'krum'"),
    (lambda v: krum.aggregate(v, "krum"), "f is missing"),
    (lambda v: krum.aggregate(v, "krum", f=6), r"2f \+ 2 < n: found n = 13, f = 6; use .*f at most 5"),
    (lambda v: krum.aggregate(v[:2], "krum", f=0), "at least 3 workers"),
    (lambda v: krum.aggregate(v, "trimmed-mean", f=7), "2f < n"),
    (lambda v: krum.aggregate(v, "krum", f=-1), "f = -1"),
    (lambda v: krum.aggregate(v, "krum", f=2.0), "f = 2.0"),
    (lambda v: krum.aggregate(v, "krum", f=True), "f = True"),
    (lambda v: krum.aggregate(v, "multi-krum", f=2, m=14), "m = 14 of n = 13"),
    (lambda v: krum.aggregate(v, "multi-krum", f=2, m=0), "positive integer"),
    (lambda v: krum.aggregate(v, "multi-krum", f=2, n=3), "unknown option 'n'"),
    (lambda v: krum.aggregate(v[0], "krum", f=2), r"shape \(9,\); give \[n, d\]"),
    (lambda v: krum.aggregate(v[:, :0], "krum", f=2), r"shape \(13, 0\)"),
    (lambda v: krum.aggregate([], "krum", f=2), "empty list"),
    (lambda v: krum.aggregate([[]] * 13, "krum", f=2), "no floating-point numbers"),
    (lambda v: krum.aggregate([v[:, 0], *v[1:]], "krum", f=2), r"vectors\[1\]: found 1 tensors"),
    (lambda v: krum.aggregate([[a] for a in v[:12]] + [[v[0], v[0]]], "krum", f=2), r"s\[12\]"),
    (lambda v: krum.aggregate([{"a": a} for a in v[:12]] + [{"b": v[0]}], "krum", f=2), r"keys \['b'\]"),
    (lambda v: krum.aggregate([v[0].astype("f2"), *v[1:]], "krum", f=2), r"is 1 tensors \(\(9,\) float16\)"),
    (lambda v: krum.aggregate(np.where(np.eye(13, 9), np.nan, v), "krum", f=3), "9 vectors hold NaN"),
    (lambda v: krum.aggregate(np.where(np.eye(13, 9), np.inf, v), "median", f=3), "but f = 3"),
    (lambda v: krum.aggregate(np.full_like(v, np.nan), "average"), "13 vectors hold NaN"),
    (
        lambda v: krum.aggregate(np.where(np.arange(13)[:, None] < 1, np.nan, v), "average", f=2),
        r"average .*\(rows \[0",
    ),
    (lambda v: krum.aggregate(np.vstack([v, v[:1] * np.inf]), "multi-krum", f=2, m=14), r"rows \[13\]"),
    (lambda v: krum.aggregate(v, "1-p-krum", f=2), "1-p-krum needs round: found None"),
    (lambda v: krum.aggregate(v, "1-p-krum", f=2, round=0, coin=0.5), "round: found 0; give"),
    (lambda v: krum.aggregate(v, "1-p-krum", f=2, round=1, coin=1.5), "coin: found 1.5; give"),
    (lambda v: krum.aggregate(v, "bulyan", f=3), r"4f \+ 3 <= n: found n = 13, f = 3; use .* f at most 2"),
    (lambda v: krum.aggregate(v, "centred-clipping", f=3, previous=v), "previous: found shape"),
    (lambda v: krum.aggregate(v, "krum", f=3, previous=v[0]), "unknown option 'previous'"),
    (lambda v: krum.aggregate(v, "krum", f=2, round=3), "unknown option 'round'"),
    (lambda v: krum.weights(v @ v.T + np.triu(v @ v.T), "krum", f=2), "gram: .* not symmetric"),
    (lambda v: krum.weights(v, "krum", f=2), r"give \[..., n, n\]"),
    (lambda v: krum.weights(v @ v.T, "median", f=2), "has no weights"),
    (lambda v: krum.weights(np.full((13, 13), np.nan), "krum", f=2), "13 vectors hold NaN"),
    (lambda v: krum.weights(distances_of(v), "krum", f=2), r"beyond \|V_i\| \|V_j\|, as among dist"),
    (lambda v: krum.weights(-(v @ v.T), "krum", f=2), "beyond"),
    (lambda v: krum.weights(with_entry(v @ v.T, 3, 3, -1), "krum", f=2), "beyond"),
    (lambda v: krum.weights(with_entry(v @ v.T, 4, 2, np.nan), "krum", f=2), "not symmetric"),
    (lambda v: krum.weights(with_entries(v @ v.T, 4, 2, np.inf), "krum", f=2), "not symmetric|beyond"),
    (lambda v: krum.weights(np.stack([1e20 * v @ v.T, np.triu(v @ v.T)]), "krum", f=2), "not symmetric"),
    (lambda v: krum.aggregate([[a] for a in v[:12]] + [{"a": v[0]}], "krum", f=2), r"keys \['a'\]"),
    (lambda v: krum.aggregate(v, "krum", f=v), "f is an integer from 0 to n - 1"),
    (lambda v: krum.aggregate(v, "multi-krum", f=2, m=v), "m: found"),
    (lambda v: krum.aggregate(v, "k" * 10_000, f=2), "unknown aggregator 'kkk"),
    (lambda v: krum.aggregate(v, "centred-clipping", radius=10**400), "of at most 1e.30"),
    (lambda v: krum.aggregate(v, "centred-clipping", radius=np.nan), "radius: found nan"),
    (lambda v: krum.aggregate(v, "centred-clipping", radius=Fraction(1, 2)), "radius: found Frac"),
    (lambda v: krum.aggregate(v, "1-p-krum", f=2, round=True, coin=0.5), "round: found True"),
    (lambda v: krum.aggregate(v, "1-p-krum", f=2, round=10**400, coin=0.5), "round: found 1000"),
    (lambda v: krum.aggregate(v.astype(float) * 1e200, "krum", f=2), "none has more than 9 others"),
    (lambda v: parallel.aggregate_with(torch.nn.Linear(2, 2), "average"), "model: found Linear"),
    (lambda v: parallel.aggregate_(torch.ones(3, 3), "krum", 0), r"flat: found \(3, 3\)"),
    (lambda v: parallel.aggregate_(v, "krum", 0), "flat: found ndarray"),
    (lambda v: parallel.aggregate_(torch.ones(3), "krum", 0), "there is no process group"),
]
MISTYPED = [
    (lambda v: krum.aggregate(v.astype(int), "krum", f=2), "int64"),
    (lambda v: krum.aggregate(torch.ones(9, 9, dtype=torch.int32), "krum", f=2), "int32"),
    (lambda v: krum.aggregate(v.tolist(), "krum", f=2), r"vectors\[0\]\[0\]: found float"),
    (lambda v: krum.aggregate("gradients", "krum", f=2), "found str"),
    (lambda v: krum.aggregate(np.ma.masked_greater(v, 1), "krum", f=2), "masked array"),
    (lambda v: krum.aggregate(torch.from_numpy(v).to_sparse(), "krum", f=2), "give a dense one"),
    (lambda v: krum.aggregate(torch.empty(13, 9, device="meta"), "krum", f=2), "give a dense one"),
    (
        lambda v: krum.aggregate(torch.from_numpy(v).to(torch.float8_e5m2), "krum", f=2),
        "found a tensor of torch.float8_e5m2; give float16",
    ),
    (lambda v: sharded.aggregate(torch.ones(13, 2), "centred-clipping", previous="x"), "previous: found"),
    (lambda v: sharded.aggregate(torch.ones(13, 2).int(), "krum", 2), "int32"),
]


def test_bad_calls_are_refused_in_one_line(count):
    for expected, calls in ((krum.InputError, REFUSED), (TypeError, MISTYPED)):
        for call, words in calls:
            with pytest.raises(expected, match=words) as refusal:
                call(normal(13, 9))
            assert "\n" not in str(refusal.value)
        count("bad inputs refused in one line", len(calls))
