"""What figures are made of: lines with bands, axes, panels."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from krum.suite import statistics
from krum.suite.figures import labels, style

ERROR = "cross-validation error"
LONG_LEGEND = 4  # entries; a longer one stands below its panel


def panels(rows: pd.DataFrame, columns: str) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of the panel of each data set and value of a column, as they come."""
    return [(labels.panel(panel, columns), panel) for _, panel in rows.groupby(["dataset", columns], sort=False)]


def plot_band(axes: Axes, points: pd.DataFrame, label: str, color: Any, **line: Any) -> None:
    """A line through the means of `statistics.curve`, and its band."""
    axes.plot(points.index, points["mean"], color=color, label=label, **line)
    axes.fill_between(points.index, points["low"], points["high"], color=color, alpha=0.18, linewidth=0)


def plot_rule(axes: Axes, points: pd.DataFrame, rule: str, label: str, hollow: bool = False, **line: Any) -> None:
    """Points of `statistics.curve` in a rule's colour, with its marker at about ten of them."""
    colour, marker = style.of_rule(rule)
    look = {"marker": marker, "markersize": 5, "markerfacecolor": "white" if hollow else colour, "linewidth": 1.4}
    plot_band(axes, points, label, colour, markevery=max(1, len(points) // 10), **look, **line)


def lines(
    panel: pd.DataFrame, by: str | Sequence[str], elsewhere: Collection[str] = ()
) -> Iterator[tuple[pd.DataFrame, str, dict[str, Any]]]:
    """Rows, label and look of each line of a panel; a line for each combination of values of the columns `by`.

    Colours and markers tell rules apart, and lines attacks, unless those show `elsewhere` (as for `labels.line`). What
    else differs shows in hollow markers and other lines.
    """
    drawn: Counter[tuple[str, str]] = Counter()
    for _, rows in panel.groupby(by, sort=False, dropna=False):
        first = rows.iloc[0]
        alike = first["aggregator"], first["attack"]
        rank = drawn[alike]
        drawn[alike] += 1
        linestyle = style.REPEATED_LINES[rank % len(style.REPEATED_LINES)]
        if "attack" not in elsewhere and first["workers"] > 1 and rank < 2:
            linestyle = style.ATTACK_LINES.get(first["attack"], style.OTHER_ATTACK_LINE)
        yield rows, labels.line(rows, panel, elsewhere), {"linestyle": linestyle, "hollow": rank > 0}


def plot_curves(axes: Axes, panel: pd.DataFrame, elsewhere: Collection[str] = (), quantity: str = "test_error") -> None:
    """A quantity against rounds, a line for each cell."""
    for rows, label, look in lines(panel, "cell", elsewhere):
        plot_rule(axes, statistics.curve(rows, quantity), rows["aggregator"].iloc[0], label, **look)


def plot_single_machines(axes: Axes, cells: pd.DataFrame, quantity: str) -> None:
    """A level for each cell of one worker, whatever the others go through."""
    for line, (_, cell) in zip(style.SINGLE_MACHINE_LINES, cells.groupby("cell", sort=False), strict=False):
        axes.plot([], [], color=style.GREY, linestyle=line, linewidth=1.2, label=labels.single_machine(cell.iloc[0]))
        if cell[quantity].notna().all() and quantity != "rounds_to_target":  # its rounds are not comparable
            mean, low, high = (float(value) for value in statistics.band(cell[quantity].to_numpy()))
            axes.axhline(mean, color=style.GREY, linestyle=line, linewidth=1.2)
            axes.axhspan(low, high, color=style.GREY, alpha=0.1, linewidth=0)


def plot_training(grid: Sequence[Axes], training: pd.DataFrame, title: str) -> None:
    """Error against rounds, a panel for each data set."""
    for axes, (dataset, panel) in zip(grid, panels(training, "dataset"), strict=True):
        plot_curves(axes, panel)
        finish_panel(axes, title.format(dataset))


def shades(count: int, darkest: float = 0.85) -> Iterable[Any]:
    """Colours for values in an order."""
    return matplotlib.colormaps["viridis"](np.linspace(0, darkest, count))


def swept_axis(axes: Axes, values: Collection[Any]) -> None:
    """The axis of what is swept: logarithmic where it spans more than a factor of ten, with a place for zero."""
    if any(isinstance(value, str) for value in values):
        axes.tick_params(axis="x", rotation=30)
        return
    ticks = sorted(set(values))
    lowest, highest = ticks[0], ticks[-1]
    if highest <= 10 * max(1, lowest) and all(float(tick).is_integer() for tick in ticks):
        axes.set_xticks(ticks)
    else:
        if lowest > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=ticks[1], linscale=0.6)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks] if highest < 10_000 else None)
        axes.xaxis.set_minor_locator(NullLocator())


def log_error_axis(axes: Axes) -> None:
    """A logarithmic vertical axis for errors, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def finish_panel(
    axes: Axes, title: str, x: str = "round", y: str = ERROR, bottom: float | None = 0, legend: float = -0.16
) -> None:
    """Title, words of the axes, grid and legend; a long legend stands below, from `legend` on, and hides no curve."""
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=x, ylabel=y)
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
