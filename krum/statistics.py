"""From seeds to a mean and its confidence band."""

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
    result = bootstrap(
        (values,),
        np.mean,
        axis=0,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return mean, result.confidence_interval.low, result.confidence_interval.high


def curve(rows: pd.DataFrame, quantity: str = "test_error") -> pd.DataFrame:
    """One cell's rows, as a frame by round with columns mean, low, high and seeds."""
    table = rows.pivot(index="seed", columns="round", values=quantity)
    mean, low, high = band(table.to_numpy())
    return pd.DataFrame({"mean": mean, "low": low, "high": high, "seeds": len(table)}, index=table.columns)


def rounds_to(rows: pd.DataFrame, target: float, like: pd.DataFrame) -> np.ndarray:
    """The first recorded round with an error of at most `target`, for the cells and seeds of `like`; else the last."""
    reached = rows[rows["test_error"] <= target].groupby(["cell", "seed"])["round"].min()
    index = pd.MultiIndex.from_frame(like[["cell", "seed"]])
    return reached.reindex(index).fillna(like["rounds"].set_axis(index)).to_numpy()
