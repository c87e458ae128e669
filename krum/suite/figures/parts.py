"""What figures are made of: lines with bands, axes, panels."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from krum.suite import statistics
from krum.suite.figures import labels, style

LONG_LEGEND = 4  # entries; a longer one stands below its panel


def distinct(rows: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """The combinations of some columns' values, as they come."""
    return list(rows[columns].drop_duplicates().itertuples(index=False, name=None))


def plot_band(axes: Axes, points: pd.DataFrame, label: str, color: Any, **line: Any) -> None:
    """A line through the means of `statistics.curve`, and its band."""
    axes.plot(points.index, points["mean"], color=color, label=label, **line)
    axes.fill_between(points.index, points["low"], points["high"], color=color, alpha=0.18, linewidth=0)


def plot_rule(axes: Axes, points: pd.DataFrame, rule: str, label: str, hollow: bool = False, **line: Any) -> None:
    """Points of `statistics.curve` in a rule's colour, with its marker."""
    colour, marker = style.of_rule(rule)
    look = {"marker": marker, "markersize": 5, "markerfacecolor": "white" if hollow else colour, "linewidth": 1.4}
    plot_band(axes, points, label, colour, **{**look, **line})


def plot_cell(axes: Axes, cell: pd.DataFrame, label: str, quantity: str = "test_error", **line: Any) -> None:
    """A cell's quantity against rounds, in its rule's colour; `line` as for `plot_rule`."""
    points = statistics.curve(cell, quantity)
    plot_rule(axes, points, cell["aggregator"].iloc[0], label, markevery=max(1, len(points) // 10), **line)


def plot_single_machines(axes: Axes, cells: pd.DataFrame, quantity: str) -> None:
    """A level for each cell of one worker, whatever the others go through."""
    for line, (_, cell) in zip(style.SINGLE_MACHINE_LINES, cells.groupby("cell", sort=False), strict=False):
        axes.plot([], [], color=style.GREY, linestyle=line, linewidth=1.2, label=labels.single_machine(cell.iloc[0]))
        if cell[quantity].notna().all() and quantity != "rounds_to_target":  # its rounds are not comparable
            mean, low, high = (float(value) for value in statistics.band(cell[quantity].to_numpy()))
            axes.axhline(mean, color=style.GREY, linestyle=line, linewidth=1.2)
            axes.axhspan(low, high, color=style.GREY, alpha=0.1, linewidth=0)


def plot_training(panels: Sequence[Axes], training: pd.DataFrame, title: str) -> None:
    """Error against rounds, a panel for each data set, rules by colour and attacks by line."""
    for axes, (dataset, panel) in zip(panels, training.groupby("dataset", sort=False), strict=True):
        for _, cell in panel.groupby("cell", sort=False):
            linestyle = style.of_attack(cell["attack"].iloc[0])
            plot_cell(axes, cell, labels.curve(cell, panel, attacks=True), linestyle=linestyle)
        axes.set_xlabel("round")
        axes.set_ylabel("cross-validation error")
        finish_panel(axes, title.format(style.dataset_title(str(dataset))))


def shades(count: int, darkest: float = 0.85) -> Iterable[Any]:
    """Colours for values in an order."""
    return matplotlib.colormaps["viridis"](np.linspace(0, darkest, count))


def log_axis(axes: Axes, ticks: Sequence[float], label: str) -> None:
    """A logarithmic horizontal axis, with ticks at the values where they are few powers of ten apart or large."""
    axes.set_xscale("log")
    is_narrow = max(ticks) < 10_000 * min(ticks)
    if is_narrow or max(ticks) >= 10_000:
        axes.set_xticks(ticks)
    if is_narrow:
        axes.xaxis.set_minor_locator(NullLocator())
    if max(ticks) < 10_000 and min(ticks) > 0.001:
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(label)


def swept_axis(axes: Axes, ticks: Sequence[Any], label: str) -> None:
    """Logarithmic where numbers span more than a factor of ten, with a place for zero if it is among them."""
    axes.set_xlabel(label)
    if isinstance(ticks[0], str):
        axes.tick_params(axis="x", rotation=30)
    elif max(ticks) <= 10 * max(1, min(ticks)) and all(float(tick).is_integer() for tick in ticks):
        axes.set_xticks(ticks)
    elif min(ticks) > 0:
        log_axis(axes, ticks, label)
    else:
        axes.set_xscale("symlog", linthresh=min(tick for tick in ticks if tick > 0), linscale=0.6)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def log_error_axis(axes: Axes) -> None:
    """A logarithmic vertical axis for errors, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def finish_panel(axes: Axes, title: str, bottom: float | None = 0, legend: float = -0.16) -> None:
    """Title, grid and legend; a long legend stands below the panel, from `legend` on, where it hides no curve."""
    axes.set_title(title, fontsize=10)
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelleft=True, labelbottom=True)
    names = axes.get_legend_handles_labels()[1]
    if len(names) > LONG_LEGEND or any(len(name) > 40 for name in names):
        columns = 2 if max(map(len, names)) < 28 else 1
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, legend), ncols=columns)
    elif names:
        axes.legend(fontsize=8, frameon=False)


def hide(panels: Iterable[Axes]) -> None:
    """Leave places of the grid empty."""
    for axes in panels:
        axes.set_visible(False)
