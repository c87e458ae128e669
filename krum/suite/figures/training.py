"""Error against rounds, a panel for each data set and attack, or whatever else panels differ in."""

from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from krum.suite import statistics
from krum.suite.figures import labels, parts, style
from krum.suite.figures.registry import Reference, figure_kind

Swept = Literal["workers", "byzantine", "declared_f", "batch_size", "learning_rate"]
Column = Literal[
    Swept, "attack", "dataset", "model", "aggregator", "byzantine_fraction", "points", "fault_rate", "worker_momentum"
]
MOST_ACROSS = 5  # panels side by side


@figure_kind
def curves(
    training: pd.DataFrame,
    *,
    x: Literal["samples"] | None = None,
    columns: Column = "attack",
    reference: Reference | None = None,
    log: bool = False,
    log_x: bool = False,
) -> Figure:
    """Error against rounds, a line for each cell, panels by data set (down) and attack (across).

    x: `samples` lets the axis count the samples that all workers have seen; columns: what the panels of a row differ in
    instead of the attack, which then shows in the line; reference: see `Reference`; log, log_x: logarithmic axes.
    """
    elsewhere: set[str] = {"attack", "byzantine"} if columns == "attack" else {columns}
    if x is not None:
        training = training.assign(round=training["round"] * training["workers"] * training["batch_size"])
        elsewhere |= {"rounds", *labels.RECORDING}
    keys: list[str] = ["byzantine_fraction", "attack"] if columns == "attack" else [columns]
    blocks = [training] if columns == "dataset" else [rows for _, rows in training.groupby("dataset", sort=False)]
    panels_of = [[panel for _, panel in block.groupby(keys)] for block in blocks]
    most = max(map(len, panels_of))
    width = min(most, MOST_ACROSS)
    rows_each = -(-most // width)  # of panels, for a data set
    is_crowded = any(panel["cell"].nunique() > parts.LONG_LEGEND for panels in panels_of for panel in panels)
    height = (4.3 if is_crowded else 3.5) * len(blocks) * rows_each + 1.2
    figure = Figure(figsize=(max(6.4, 4.9 * width), height), layout="constrained")
    grid = figure.subplots(len(blocks) * rows_each, width, squeeze=False, sharex=True).reshape(len(blocks), -1)
    for block, panels, places in zip(blocks, panels_of, grid, strict=True):
        drawn, unused = places[: len(panels)], places[len(panels) :]
        for axes, panel in zip(drawn, panels, strict=True):
            parts.plot_curves(axes, panel, elsewhere)
            if reference is not None and panel["byzantine"].any():
                _plot_reference(axes, block, reference["aggregator"])
            parts.finish_panel(axes, labels.panel(panel, columns), "samples seen by all workers" if x else "round")
            if log_x:
                axes.set_xscale("log")
                axes.set_xlim(training.loc[training["round"] > 0, "round"].min(), training["round"].max())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        top = max(axes.get_ylim()[1] for axes in drawn)
        for axes in drawn:
            if log:
                parts.log_error_axis(axes)
            axes.set_ylim(0.9 * block["test_error"].min() if log else 0, top)
        parts.hide(unused)
    return figure


def _plot_reference(axes: Axes, cells: pd.DataFrame, rule: str) -> None:
    """The means of a rule's unattacked cells, on top of all that they are compared with."""
    unattacked = cells[(cells["aggregator"] == rule) & (cells["byzantine"] == 0)]
    for _, cell in unattacked.groupby("cell", sort=False):
        label = f"{labels.line(cell, unattacked)}, {style.name('none')}"
        means, colour = statistics.curve(cell)["mean"], style.of_rule(rule)[0]
        axes.plot(means, color=colour, linestyle=(0, (4, 3)), linewidth=2.0, label=label, zorder=3)
