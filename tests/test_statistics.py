import numpy as np

from krum import statistics


def test_band_covers_the_mean_as_often_as_it_says():
    """95 % of the intervals over 40 normal values hold the true mean, up to the percentile bootstrap's own bias."""
    values = np.random.default_rng(0).normal(size=(40, 400))
    mean, low, high = statistics.band(values)
    assert np.allclose(mean, values.mean(0))
    assert 0.90 < ((low < 0) & (high > 0)).mean() < 0.98
    width = 2 * 1.96 / np.sqrt(40)
    assert abs((high - low).mean() / width - 1) < 0.06


def test_band_is_the_same_every_time():
    values = np.random.default_rng(0).normal(size=(10, 7))
    assert all(np.array_equal(a, b) for a, b in zip(statistics.band(values), statistics.band(values), strict=True))


def test_one_seed_has_no_band():
    mean, low, high = statistics.band(np.ones((1, 3)))
    assert mean.tolist() == [1, 1, 1] and np.isnan(low).all() and np.isnan(high).all()


def test_equal_seeds_have_a_band_of_no_width():
    _, low, high = statistics.band(np.full((10, 3), 0.4))
    assert np.allclose(low, 0.4) and np.allclose(high, 0.4)
