"""Figures of probes: Krum's time, whom it chooses, and what a round of real processes costs."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from krum.distributed.communication import bytes_sent
from krum.suite import statistics
from krum.suite.figures import labels, parts, style
from krum.suite.figures.registry import figure_kind

FITTED_FROM = {"workers": 40, "dimension": 10_000}  # below, a call's own overhead takes most of the time
# Ways to exchange gradients: name, colour, and line in the panel of formulas, where averaging's and Krum's coincide.
EXCHANGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "averaging": ("averaging, all-reduce", style.STYLES["average"][0], {"linestyle": (0, (1, 2)), "linewidth": 3.5}),
    "gathered": ("Krum, all gathered", style.STYLES["krum"][0], {"linewidth": 1.5}),
    "in-parts": ("Krum, in parts", style.STYLES["multi-krum"][0], {"linewidth": 1.5}),
}
FORMULA_DIMENSION = 10**11
FORMULA_RANKS = np.array([2, 4, 8, 16, 32, 64, 128, 256, 512, 1000])


@figure_kind
def complexity(timing: pd.DataFrame) -> Figure:
    """Time over n and over d, with fitted exponents."""
    figure = Figure(figsize=(11.6, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_times(left, timing, x="workers", symbol="n", by="dimension", by_symbol="d", power=2)
    _plot_times(right, timing, x="dimension", symbol="d", by="workers", by_symbol="n", power=1)
    return figure


def _plot_times(axes: Axes, timing: pd.DataFrame, x: str, symbol: str, by: str, by_symbol: str, power: int) -> None:
    """Seconds against x, a line for each value of `by`, beside a power of x."""
    groups = [(value, rows) for value, rows in timing.groupby(by) if rows[x].nunique() > 1]
    for colour, (value, rows) in zip(parts.shades(len(groups)), groups, strict=True):
        points = statistics.curve(rows, "seconds", x)
        fitted = points[points.index >= FITTED_FROM[x]]
        exponent = np.polyfit(np.log(fitted.index.to_numpy(float)), np.log(fitted["mean"]), 1)[0]
        label = f"{by_symbol} = {value:,}: exponent {exponent:.2f}"
        parts.plot_band(axes, points, label, colour, marker="s", markersize=4)
    _, rows = groups[-1]
    last = rows.groupby(x)["seconds"].mean()
    ideal = last.iloc[-1] * (last.index.to_numpy(float) / last.index[-1]) ** power
    formula = f"${symbol}^{power}$" if power > 1 else f"${symbol}$"
    axes.plot(last.index, ideal, color=style.GREY, linestyle=":", label=f"proportional to {formula}")
    parts.swept_axis(axes, timing[x])
    axes.set_yscale("log")
    title = f"over {symbol} (exponent from {FITTED_FROM[x]:,} on)"
    parts.finish_panel(axes, title, style.AXIS_LABELS[x], "seconds, one thread", bottom=None)


@figure_kind
def choices(choices: pd.DataFrame) -> Figure:
    """Whom a rule chooses: by length and by distance from the mean (down), by data set and number of attackers."""
    heads = list(choices.groupby(["dataset", "byzantine"], sort=False).groups)
    orders = {
        "length": "rank by length, the shortest first",
        "distance": "rank by distance from the mean, nearest first",
    }
    figure = Figure(figsize=(4.6 * len(heads), 8.2), layout="constrained")
    grid = figure.subplots(len(orders), len(heads), squeeze=False, sharey=True)
    for panels, (order, label) in zip(grid, orders.items(), strict=True):
        for axes, (dataset, byzantine) in zip(panels, heads, strict=True):
            is_shown = (choices["dataset"] == dataset) & (choices["byzantine"] == byzantine)
            _plot_ranks(axes, choices[is_shown & (choices["order"] == order)])
            attack = f"{byzantine} Gaussian attackers" if byzantine else style.name("none")
            parts.finish_panel(axes, f"{style.name(dataset)}, {attack}", label, "share of the honest choices")
    highest = choices.groupby(["order", "dataset", "byzantine", "batch_size", "rank"])["share"].mean().max()
    grid[0, 0].set_ylim(0, 1.08 * highest)
    return figure


def _plot_ranks(axes: Axes, panel: pd.DataFrame) -> None:
    """Bars of how often each rank is chosen, side by side for the batch sizes."""
    honest = int(panel["workers"].iloc[0] - panel["byzantine"].iloc[0])
    by_size = panel.groupby("batch_size")
    colours, width = parts.shades(len(by_size), 0.8), 0.84 / len(by_size)
    for place, (colour, (size, rows)) in enumerate(zip(colours, by_size, strict=True)):
        points = statistics.curve(rows, "share", "rank")
        ratio = rows.groupby("seed")["norm_ratio"].first()
        mean, low, high = (float(value) for value in statistics.band(ratio.to_numpy()))
        axes.bar(
            points.index + (place - (len(by_size) - 1) / 2) * width, points["mean"], width, color=colour,
            yerr=[points["mean"] - points["low"], points["high"] - points["mean"]], error_kw={"linewidth": 0.7},
            label=f"batch {size}; length / mean's {labels.number(mean)} [{labels.number(low)}, {labels.number(high)}]",
        )  # fmt: skip
    axes.axhline(1 / honest, color=style.GREY, linestyle=":", linewidth=1.2, label=f"by chance, 1 of {honest}")
    axes.set_xticks([1, *range(5, honest + 1, 5)])


@figure_kind
def shards(exchange: pd.DataFrame, split: pd.DataFrame) -> Figure:
    """Seconds and bytes of a round with real processes, and training of a split model."""
    figure = Figure(figsize=(16.0, 5.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _plot_seconds(left, exchange)
    _plot_bytes(middle, exchange)
    _plot_split_training(right, split)
    return figure


def _plot_seconds(axes: Axes, exchange: pd.DataFrame) -> None:
    for place, (ranks, rows) in enumerate(exchange.groupby("ranks")):
        line = {"linestyle": ("--", "-", ":")[place % 3], "marker": "os^"[place % 3], "markersize": 5}
        for method, (name, colour, _) in EXCHANGES.items():
            points = statistics.curve(rows[rows["method"] == method], "seconds", "dimension")
            parts.plot_band(axes, points, f"{name}, N = {ranks}", colour, **line)
    axes.set(xscale="log", yscale="log")
    title = "Time with N gloo processes on one machine"
    parts.finish_panel(axes, title, "parameters d", "seconds a round, slowest process", bottom=None)


def _plot_bytes(axes: Axes, exchange: pd.DataFrame) -> None:
    """By formula, and as counted with fewer parameters and scaled."""
    largest = exchange[exchange["dimension"] == exchange["dimension"].max()]
    for method, (name, colour, line) in EXCHANGES.items():
        sent = [bytes_sent(method, int(ranks), FORMULA_DIMENSION) / ranks / 1e9 for ranks in FORMULA_RANKS]
        axes.plot(FORMULA_RANKS, sent, color=colour, label=name, **line)
        counted = largest[largest["method"] == method]
        scaled = counted["bytes"] / counted["ranks"] / counted["dimension"] * FORMULA_DIMENSION / 1e9
        points = scaled.groupby(counted["ranks"]).median()
        axes.plot(points.index, points, color=colour, marker="o", linestyle="", markerfacecolor="white",
                  label=f"{name}, counted")  # fmt: skip
    axes.set(xscale="log", yscale="log")
    title = "Bytes of a round, $10^{11}$ parameters in float32"
    parts.finish_panel(axes, title, "processes N", "gigabytes sent by each process", bottom=None)


def _plot_split_training(axes: Axes, split: pd.DataFrame) -> None:
    """Error against rounds with Krum on distances added up, on each slice by itself, and on the whole model."""
    for slices, label, method in (
        ("together", "distances added up", "in-parts"),
        ("apart", "each slice by itself", "gathered"),
    ):
        rows = split[split["slices"] == slices]
        agreed = rows[rows["round"] == rows["round"].max()]["agreed"].mean()
        points = statistics.curve(rows, "test_error", "round")
        parts.plot_band(axes, points, f"{label}: same choice in {agreed:.0%}", EXCHANGES[method][1])
    whole = statistics.curve(split[split["slices"] == "together"], "whole_error", "round")["mean"]
    axes.plot(whole.index, whole, color=style.GREY, linestyle=(0, (2, 3)), linewidth=2, label="not split")
    parts.finish_panel(axes, "Krum under attack, neurons split over two processes")
