"""Figures of training runs: error against rounds, against a parameter, and by attack."""

from collections import Counter
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
    """Error against rounds, a curve for each cell, panels by data set (down) and attack (across).

    x: `samples` lets the axis count the samples that all workers have seen; columns: what the panels of a row differ in
    instead of the attack, which then shows in the line; reference: see `Reference`; log, log_x: logarithmic axes.
    """
    if x == "samples":
        training = training.assign(round=training["round"] * training["workers"] * training["batch_size"])
    keys: list[str] = ["byzantine_fraction", "attack"] if columns == "attack" else [columns]
    heads = parts.distinct(training.sort_values(keys[0], kind="stable"), keys)
    datasets = [None] if columns == "dataset" else list(training["dataset"].drop_duplicates())
    width = min(len(heads), MOST_ACROSS)
    rows_each = -(-len(heads) // width)  # of panels, for a data set
    is_crowded = training.groupby(["dataset", *keys])["cell"].nunique().max() > parts.LONG_LEGEND
    height = (4.3 if is_crowded else 3.5) * len(datasets) * rows_each + 1.2
    figure = Figure(figsize=(max(6.4, 4.9 * width), height), layout="constrained")
    grid = figure.subplots(len(datasets) * rows_each, width, squeeze=False, sharex=True)
    for place, dataset in enumerate(datasets):
        panels = grid[place * rows_each : (place + 1) * rows_each].flatten()
        of_dataset = training if dataset is None else training[training["dataset"] == dataset]
        for axes, head in zip(panels, heads, strict=False):
            panel = of_dataset[(of_dataset[keys] == list(head)).all(axis=1)]
            _plot_cells(axes, panel, by_attack=columns != "attack", lengths=x != "samples")
            if reference is not None and panel["byzantine"].any():
                _plot_reference(axes, of_dataset, reference["aggregator"])
            name = panel["dataset"].iloc[0] if dataset is None else dataset
            title = f"{style.dataset_title(name)}, {labels.byzantine_share(panel)}"
            parts.finish_panel(axes, title if columns == "attack" else labels.panel(name, columns, head[0]))
            axes.set_xlabel("samples seen by all workers" if x == "samples" else "round")
            axes.set_ylabel("cross-validation error")
            if log_x:
                axes.set_xscale("log")
                axes.set_xlim(training.loc[training["round"] > 0, "round"].min(), training["round"].max())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        top = max(axes.get_ylim()[1] for axes in panels[: len(heads)])
        for axes in panels[: len(heads)]:
            if log:
                parts.log_error_axis(axes)
            axes.set_ylim(0.9 * of_dataset["test_error"].min() if log else 0, top)
        parts.hide(panels[len(heads) :])
    return figure


def _plot_cells(axes: Axes, panel: pd.DataFrame, by_attack: bool, lengths: bool) -> None:
    """A curve for each of a panel's cells; those of the same rule and attack differ in line and marker."""
    plotted: Counter[tuple[str, str]] = Counter()
    for _, cell in panel.groupby("cell", sort=False):
        first = cell.iloc[0]
        alike = first["aggregator"], first["attack"]
        rank, lines = plotted[alike], style.REPEATED_LINES
        plotted[alike] += 1
        is_styled = by_attack and first["workers"] > 1
        linestyle = style.of_attack(first["attack"]) if is_styled else lines[rank % len(lines)]
        label = labels.curve(cell, panel, attacks=by_attack, lengths=lengths)
        faded = max(0.4, 1 - 0.25 * (rank // len(lines)))
        parts.plot_cell(axes, cell, label, hollow=rank > 0, linestyle=linestyle, alpha=faded)


def _plot_reference(axes: Axes, cells: pd.DataFrame, rule: str) -> None:
    """The means of a rule's unattacked cells, on top of all that they are compared with."""
    unattacked = cells[(cells["aggregator"] == rule) & (cells["byzantine"] == 0)]
    for _, cell in unattacked.groupby("cell", sort=False):
        label = f"{labels.curve(cell, unattacked)}, 0 % Byzantine"
        means, colour = statistics.curve(cell)["mean"], style.of_rule(rule)[0]
        axes.plot(means, color=colour, linestyle=(0, (4, 3)), linewidth=2.0, label=label, zorder=3)


@figure_kind
def against(training: pd.DataFrame, *, x: Swept) -> Figure:
    """Error at the last round against a swept parameter x, a panel for each data set, a line per rule and attack."""
    datasets = list(training["dataset"].drop_duplicates())
    figure = Figure(figsize=(max(6.4, 6.2 * len(datasets)), 6.0), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
        final = training[(training["dataset"] == dataset) & (training["round"] == training["rounds"])]
        for _, rows in final.groupby(["aggregator", "attack", "byzantine", "workers"], sort=False):
            first = rows.iloc[0]
            label = [first["aggregator"], labels.attackers(first)]
            if final["workers"].nunique() > 1:
                label.append(f"n = {first['workers']}")
            if first["outside_guarantee"]:
                label.append("outside 2f + 2 < n")
            is_other_size = first["workers"] != final["workers"].iloc[0]
            line = style.of_attack(first["attack"])
            points = statistics.curve(rows, "test_error", x)
            parts.plot_rule(axes, points, first["aggregator"], ", ".join(label), is_other_size, linestyle=line)
        parts.log_axis(axes, sorted(final[x].unique()), style.AXIS_LABELS[x])
        axes.set_ylabel(f"cross-validation error at round {final['rounds'].max()}")
        parts.finish_panel(axes, style.dataset_title(dataset))
    return figure
