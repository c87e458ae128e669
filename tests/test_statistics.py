"""Intervals: how often they hold the truth, counted, and what they are where there is little to go by."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from krum.suite import statistics

DRAWS, SEEDS = 20_000, (5, 10, 20, 30)
DOCUMENTED = (Path(__file__).resolve().parent.parent / "docs" / "statistics.md").read_text(encoding="utf-8")


def clipped(mean, deviation, least, most):
    """The mean of normal values that are cut off at both ends."""
    low, high = (least - mean) / deviation, (most - mean) / deviation
    inside = mean * (norm.cdf(high) - norm.cdf(low)) + deviation * (norm.pdf(low) - norm.pdf(high))
    return least * norm.cdf(low) + most * norm.sf(high) + inside


def two_humped(rng, size, stuck):
    """Errors of seeds of which a share stays at always answering the most frequent class."""
    trained, untrained = rng.normal(0.08, 0.01, size), rng.normal(0.39, 0.003, size)
    return np.where(rng.random(size) < stuck, untrained, trained)


KINDS = {  # values as ours are: how they are drawn, and their true mean
    "normal": (lambda rng, size: rng.normal(size=size), 0),
    "skewed": (lambda rng, size: rng.exponential(size=size), 1),
    "bounded": (lambda rng, size: np.clip(rng.normal(0.25, 0.2, size), 0, 0.394), clipped(0.25, 0.2, 0, 0.394)),
    "two-humped, half stuck": (lambda rng, size: two_humped(rng, size, 0.5), 0.235),
    "two-humped, a tenth stuck": (lambda rng, size: two_humped(rng, size, 0.1), 0.111),
}


@pytest.mark.parametrize("kind", KINDS)
def test_band_covers_the_mean_as_often_as_documented(kind):
    """On values that are normal, skewed or bounded, 93 % at least from ten seeds on."""
    draw, true = KINDS[kind]
    row = re.findall(rf"^\| {kind} \|(.*)\|$", DOCUMENTED, re.MULTILINE)[0]
    documented = [float(cell.split("/")[-1]) for cell in row.split("|")]
    for seeds, said in zip(SEEDS, documented, strict=True):
        _, low, high = statistics.band(draw(np.random.default_rng(0), (seeds, DRAWS)))
        share = 100 * ((low <= true) & (true <= high)).mean()
        assert share == pytest.approx(said, abs=0.6), (seeds, share)
        assert share >= 93 or seeds < 10 or kind.startswith("two-humped"), (seeds, share)


def test_band_of_a_column_is_that_of_the_column_by_itself():
    values = np.random.default_rng(0).normal(size=(10, 7))
    assert np.array_equal(np.array(statistics.band(values))[:, 3], statistics.band(values[:, 3]))


def test_one_seed_has_no_band_and_equal_seeds_one_of_no_width():
    mean, low, high = statistics.band(np.ones((1, 3)))
    assert mean.tolist() == [1, 1, 1] and np.isnan([low, high]).all()
    assert np.allclose(statistics.band(np.full((10, 3), 0.4)), 0.4)


def test_band_of_symmetric_values_is_students_and_leans_with_skewed_ones():
    mean, low, high = statistics.band(np.array([-1.0, 0.0, 1.0]))
    assert np.allclose([mean, low, high], [0, -4.303 / 3**0.5, 4.303 / 3**0.5], atol=1e-3)
    mean, low, high = statistics.band(np.array([0.0] * 9 + [1.0]))
    assert high - mean > 2 * (mean - low) > 0
    misses = np.array([statistics.band(np.arange(10.0), share) for share in (0.5, 0.05, 1e-9)])
    assert (np.diff(misses[:, 1]) < 0).all() and (np.diff(misses[:, 2]) > 0).all()


def test_curve_has_a_band_by_round_also_where_seeds_differ():
    rows = pd.DataFrame({"seed": [0, 1, 2, 0, 1], "round": [0, 0, 0, 5, 5], "test_error": [0.1, 0.2, 0.3, 0.4, 0.6]})
    curve = statistics.curve(rows)
    assert np.allclose(curve["mean"], [0.2, 0.5])
    assert np.array_equal(curve.loc[0], statistics.band(np.array([0.1, 0.2, 0.3])))


def test_crossing_is_read_off_a_straight_line_over_the_logarithm():
    x = np.array([1e-4, 1e-3, 1e-2, 1e-1])
    line = np.log10(x) + 2.5  # crosses zero at 10^-2.5
    value, low, high = statistics.crossing(x, np.tile(line, (10, 1)))
    assert np.allclose([value, low, high], 10**-2.5)


def test_crossing_outside_what_was_measured():
    x = np.array([1.0, 2.0, 4.0])
    assert statistics.crossing(x, np.full((5, 3), 0.1)) == (0, 0, 0)
    assert statistics.crossing(x, np.full((5, 3), -0.1)) == (np.inf, np.inf, np.inf)
    value, low, high = statistics.crossing(x, np.array([[-1.0, 1.0, 1.0]]))
    assert np.isclose(value, 2**0.5) and np.isnan(low) and np.isnan(high)
    # Half of the seeds cross early and half never: the interval says so.
    seeds = np.array([[-1.0, 3.0, 3.0]] * 5 + [[-1.0, -3.0, -3.0]] * 5) - 0.01
    value, low, high = statistics.crossing(x, seeds)
    assert low < 2 and high == np.inf


@pytest.mark.parametrize(("deviation", "shared"), [(0.8, 0.0), (0.3, 0.9)])
def test_crossing_covers_the_true_one_as_often_as_it_says(deviation, shared):
    """Also where a seed is too high or too low as a whole."""
    rng, x, hits = np.random.default_rng(0), np.geomspace(1e-4, 1, 9), 0
    for _ in range(DRAWS // 10):
        noise = shared**0.5 * rng.normal(size=(10, 1)) + (1 - shared) ** 0.5 * rng.normal(size=(10, 9))
        _, low, high = statistics.crossing(x, np.log10(x) + 1.7 + deviation * noise)
        hits += low <= 10**-1.7 <= high
    assert 0.93 < hits / (DRAWS // 10) < 0.98


def test_what_a_budget_pays_for():
    rows = pd.DataFrame(
        {
            "cell": ["a"] * 3 + ["b"] * 3 + ["c"] * 2,
            "seed": 0,
            "round": [0, 5, 10, 0, 2, 4, 0, 1],
            "rounds": [10] * 3 + [4] * 3 + [1] * 2,
            "test_error": [0.9, 0.5, 0.1, 0.9, 0.4, 0.2, 0.9, 0.7],
        }
    )
    per_round = rows["cell"].map({"a": 1.0, "b": 3.0, "c": 1.0})
    like = pd.DataFrame({"cell": ["a", "b", "c"], "seed": 0})
    errors = statistics.error_within(rows, per_round, 10.0, like)
    assert errors[0] == 0.1 and np.isclose(errors[1], 0.4 - 0.2 * (10 / 3 - 2) / 2)  # of b, three rounds and a third
    assert np.isnan(errors[2])  # ends before the budget does
