"""From seeds to a mean and its confidence band."""

import numpy as np
import pandas as pd
from scipy.special import stdtrit

MISSES = 0.05  # how often an interval may miss the true mean: 95 % hold it
STEPS = 8  # between two points at which differences were measured, where they may cross zero


def band(values: np.ndarray, misses: float = MISSES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the 95 % interval of the mean over `values [seeds, points]`, point by point.

    Student's t on values that a cubic has freed of their skewness (Hall, *On the removal of skewness by
    transformation*, 1992); on symmetric values it is Student's interval. docs/statistics.md says how often it covers.
    With one seed there is no interval: its ends are NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    seeds, mean = len(values), values.mean(0)
    if seeds < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    deviation = values.std(0, ddof=1)
    standard = np.divide(values - mean, deviation, out=np.zeros_like(values), where=deviation > 0)
    skewness = (standard**3).mean(0) * (seeds / (seeds - 1)) ** 1.5
    skewness = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)  # without any, the cubic is undetermined
    quantile = -stdtrit(seeds - 1, misses / 2)  # of Student's t

    def end(quantile: float) -> np.ndarray:
        shift = quantile / np.sqrt(seeds) - skewness / (6 * seeds)
        return mean - deviation * 3 / skewness * (np.cbrt(1 + skewness * shift) - 1)

    return mean, end(quantile), end(-quantile)


def crossing(x: np.ndarray, differences: np.ndarray, misses: float = MISSES) -> tuple[float, float, float]:
    """Where the mean of `differences [seeds, points]` first rises above zero, and its 95 % interval.

    Between two of the positive, ascending `x [points]`, the mean is a straight line over log x. 0: above zero at the
    first x already; inf: at none, or without any x. The interval begins where the upper end of the mean's own interval
    first rises above zero, and ends where its lower end does; NaN with one seed.
    """
    if not len(x):
        return np.inf, np.nan, np.nan
    # Between two points each seed is a straight line too, and their mean's interval is narrower than at either.
    steps = np.linspace(0, len(x) - 1, STEPS * (len(x) - 1) + 1)
    shares = np.stack([np.interp(steps, range(len(x)), point) for point in np.eye(len(x))])
    places = _first_rise(np.exp(np.log(x) @ shares), np.stack(band(differences @ shares, misses), axis=1))
    value, latest, earliest = map(float, places)
    return value, earliest, latest


def _first_rise(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """By column of `means [points, c]`, the x at which it first rises above zero."""
    above = means > 0
    after = above.argmax(0)
    column = np.arange(means.shape[1])
    before = np.maximum(after - 1, 0)
    low, high = means[before, column], means[after, column]
    share = np.divide(-low, high - low, out=np.zeros_like(low), where=high != low)
    between = np.exp(np.log(x[before]) + share * (np.log(x[after]) - np.log(x[before])))
    places = np.where(~above.any(0), np.inf, np.where(after == 0, 0.0, between))
    return np.where(np.isnan(means).any(0), np.nan, places)


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
