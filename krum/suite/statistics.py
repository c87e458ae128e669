"""From seeds to a mean and its confidence band."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

RESAMPLES = 5000
CONFIDENCE = 0.95


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the 95 % bootstrap interval of the mean over `values [seeds, points]`.

    Percentile bootstrap, 5,000 resamples of whole seeds (all points of a seed together), with a fixed generator. With
    one seed there is no interval: its ends are NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = values.mean(0)
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    interval = _bootstrapped(values).confidence_interval
    return mean, interval.low, interval.high


def _bootstrapped(values: np.ndarray) -> Any:
    """The bootstrap of the means over seeds, [points, resamples] as `bootstrap_distribution`, and their intervals."""
    options: dict[str, Any] = {"n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile"}
    return bootstrap((values,), np.mean, axis=0, vectorized=True, rng=np.random.default_rng(0), **options)


def crossing(x: np.ndarray, differences: np.ndarray) -> tuple[float, float, float]:
    """Where the mean of `differences [seeds, points]` first rises above zero, and its 95 % bootstrap interval.

    Between two of the positive, ascending `x [points]`, the mean is a straight line over log x. 0: above zero at the
    first x already; inf: at none, or without any x. The interval's ends are percentiles over resamples of whole seeds;
    NaN with one seed.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if not len(x):
        return np.inf, np.nan, np.nan
    x = np.asarray(x, dtype=np.float64)
    value = float(_first_rise(x, differences.mean(0)[:, None])[0])
    if len(differences) < 2:
        return value, np.nan, np.nan
    places = np.sort(_first_rise(x, _bootstrapped(differences).bootstrap_distribution))
    outside = round((1 - CONFIDENCE) / 2 * len(places))  # no interpolation: it may be between a number and infinity
    return value, float(places[outside]), float(places[-1 - outside])


def _first_rise(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """By column of `means [points, c]`, the x at which it first rises above zero."""
    above = means > 0
    after = above.argmax(0)
    column = np.arange(means.shape[1])
    before = np.maximum(after - 1, 0)
    low, high = means[before, column], means[after, column]
    share = np.divide(-low, high - low, out=np.zeros_like(low), where=high != low)
    between = np.exp(np.log(x[before]) + share * (np.log(x[after]) - np.log(x[before])))
    return np.where(~above.any(0), np.inf, np.where(after == 0, 0.0, between))


def curve(rows: pd.DataFrame, quantity: str = "test_error", x: str = "round") -> pd.DataFrame:
    """Mean and band of a quantity over seeds: a frame by the values of x, with columns mean, low and high."""
    table = rows.pivot(index="seed", columns=x, values=quantity)
    seeds = rows.groupby(x)["seed"]
    if seeds.nunique().nunique() == 1:
        mean, low, high = band(table.to_numpy())
        return pd.DataFrame({"mean": mean, "low": low, "high": high}, index=table.columns)
    bands = {value: band(table.loc[of_value, value]) for value, of_value in seeds}
    return pd.DataFrame(bands, index=["mean", "low", "high"]).T


def rounds_to(rows: pd.DataFrame, target: float, like: pd.DataFrame) -> np.ndarray:
    """The first recorded round with an error of at most `target`, for the cells and seeds of `like`; else the last."""
    reached = rows[rows["test_error"] <= target].groupby(["cell", "seed"])["round"].min()
    index = pd.MultiIndex.from_frame(like[["cell", "seed"]])
    return reached.reindex(index).fillna(like["rounds"].set_axis(index)).to_numpy()


def error_within(rows: pd.DataFrame, per_round: pd.Series, budget: float, like: pd.DataFrame) -> np.ndarray:
    """The error when a budget is spent, at `per_round` a round, by cell and seed of `like`.

    Between two recorded rounds, the error is a straight line. NaN where a run ends before the budget does, by more than
    a hundredth of it.
    """
    errors = {}
    spent = rows.assign(spent=rows["round"] * per_round).sort_values("spent")
    for key, run in spent.groupby(["cell", "seed"]):
        enough = run["spent"].iloc[-1] >= 0.99 * budget
        errors[key] = np.interp(budget, run["spent"], run["test_error"]) if enough else np.nan
    return np.array([errors[key] for key in like[["cell", "seed"]].itertuples(index=False, name=None)])
