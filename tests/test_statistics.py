import numpy as np
import pandas as pd

from krum.suite import statistics


def test_band_covers_the_mean_as_often_as_it_says():
    """95 % of the intervals over 40 normal values hold the true mean, up to the percentile bootstrap's own bias."""
    values = np.random.default_rng(0).normal(size=(40, 400))
    mean, low, high = statistics.band(values)
    assert np.allclose(mean, values.mean(0))
    assert 0.90 < ((low < 0) & (high > 0)).mean() < 0.98
    width = 2 * 1.96 / np.sqrt(40)
    assert abs((high - low).mean() / width - 1) < 0.06


def test_band_is_the_same_every_time_and_of_a_column_by_itself():
    """Whole seeds are resampled, so that a point's band does not depend on the other points."""
    values = np.random.default_rng(0).normal(size=(10, 7))
    assert np.array_equal(statistics.band(values), statistics.band(values))
    assert np.array_equal(np.array(statistics.band(values))[:, 3], statistics.band(values[:, 3]))


def test_one_seed_has_no_band_and_equal_seeds_one_of_no_width():
    mean, low, high = statistics.band(np.ones((1, 3)))
    assert mean.tolist() == [1, 1, 1] and np.isnan([low, high]).all()
    assert np.allclose(statistics.band(np.full((10, 3), 0.4)), 0.4)


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


def test_crossing_covers_the_true_one_as_often_as_it_says():
    rng, x, hits = np.random.default_rng(0), np.geomspace(1e-4, 1, 9), 0
    true = np.log10(x) + 1.7
    for _ in range(200):
        _, low, high = statistics.crossing(x, true + rng.normal(scale=0.8, size=(20, 9)))
        hits += low < 10**-1.7 < high
    assert 0.85 < hits / 200 <= 0.99


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
