"""Figures of many training runs by their last rounds: lines against a swept parameter, and tables of colours."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from krum.suite import statistics, theory
from krum.suite.figures import labels, parts, style
from krum.suite.figures.registry import RuleName, figure_kind
from krum.suite.figures.training import Column, Swept

SweptNumber = Literal[Swept, "fault_rate", "points", "strength", "worker_momentum"]
AnySwept = Literal[SweptNumber, "attack", "occurrence"]
AnyColumn = Literal[Column, "occurrence", "strength"]
Quantity = Literal[
    "test_error", "byzantine_weight", "rounds_to_target", "norm_ratio", "error_at_samples", "error_at_arithmetic"
]
MOST_TABLES_ACROSS = 3
RUN_MEANS = ["byzantine_weight", "differs", "norm_ratio"]  # averaged over a run's rounds
SETTINGS = ("aggregator", "aggregator_options", "attack_options", *labels.ATTACKERS, *labels.WORDS)  # of a line
# What a round spends, of what the error is compared at when the cheapest run has spent all.
BUDGETS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "error_at_samples": lambda rows: rows["workers"] * rows["batch_size"],
    "error_at_arithmetic": theory.arithmetic,
}


@figure_kind
def sweep(
    training: pd.DataFrame,
    *,
    x: SweptNumber,
    columns: AnyColumn = "dataset",
    quantities: Sequence[Quantity] = ("test_error",),
    target: float | None = None,
    crossing: RuleName | None = None,
    log: bool = False,
) -> Figure:
    """Quantities (down) against a swept parameter x, panels by `columns` (across), a line per rule and setting.

    target: the error that rounds_to_target counts to; crossing: the rule beside which the others come out better from
    some x on, and labels say from which; log: whether the axes of quantities are logarithmic.
    """
    final, machines = _last_rows(training, x, columns, quantities, target)
    panels = parts.panels(final, columns)
    figure = Figure(figsize=(max(6.4, 5.4 * len(panels)), 3.6 * len(quantities) + 2.2), layout="constrained")
    grid = figure.subplots(len(quantities), len(panels), squeeze=False, sharey="row")
    samples = (training["rounds"] * BUDGETS["error_at_samples"](training)).min()
    named = {"rounds": final["rounds"].max(), "samples": samples, "target": target}
    for across, quantity in zip(grid, quantities, strict=True):
        for axes, (title, panel) in zip(across, panels, strict=True):
            _plot_lines(axes, panel, machines, x, columns, quantity, crossing if quantity == "test_error" else None)
            label = style.QUANTITY_LABELS[quantity].format(**named)
            parts.finish_panel(axes, title, style.AXIS_LABELS[x], label, bottom=None)
            if quantity != quantities[-1] and crossing is None:  # the same lines again
                axes.legend().remove()
        if log:
            for axes in across:
                parts.log_error_axis(axes)
        elif final[quantity].notna().any():  # a wide band of few seeds does not make the rest small
            highest = 1.5 * final.groupby("cell")[quantity].mean().max()
            across[0].set_ylim(0, min(across[0].get_ylim()[1], highest))
    return figure


@figure_kind
def against(training: pd.DataFrame, *, x: Swept) -> Figure:
    """Error at the last round against a swept parameter x, a panel for each data set: a plain `sweep`."""
    return sweep(training, x=x)


@figure_kind
def heat(
    training: pd.DataFrame, *, x: AnySwept, columns: AnyColumn = "dataset", lines: bool = False, declares: bool = False
) -> Figure:
    """Error at the last round as a table of colours: rules down, x across, a panel for each value of `columns`.

    lines: whether the same numbers stand below each table as lines; declares: whether rules that declare the true count
    stand beside those that declare the most.
    """
    final, machines = _last_rows(training, x, columns)
    if declares:
        final = _by_declared_f(final)
    # Texts stand by how much of the rounds they spoil.
    order = final.sort_values("share" if x in ("attack", "occurrence") else x, kind="stable")
    ticks = list(order[x].drop_duplicates())
    panels = [
        (title, panel, _table(panel, machines, x, columns, ticks)) for title, panel in parts.panels(final, columns)
    ]
    width = min(len(panels), MOST_TABLES_ACROSS)
    down = -(-len(panels) // width)
    heights = [1.1 + 0.34 * max(len(table) for _, _, table in panels), *([4.2] if lines else [])]
    size = (max(8.0, 1.9 + width * (1.2 + 0.62 * max(len(ticks), 5))), 1.6 + down * sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down * len(heights), width, squeeze=False, height_ratios=heights * down)
    places = grid.reshape(down, len(heights), width).swapaxes(1, 2).reshape(-1, len(heights))
    names_to_the_left: list[str] = []
    for place, (axes, (title, panel, table)) in enumerate(zip(places, panels, strict=False)):
        names = list(table.index)
        is_named = place % width == 0 or names != names_to_the_left
        names_to_the_left = names
        _plot_table(axes[0], table, final["test_error"].max(), is_named)
        axes[0].set_xlabel(style.AXIS_LABELS[x])
        axes[0].set_title(title, fontsize=10)
        if lines:
            _plot_lines(axes[1], panel, machines, x, columns, "test_error")
            parts.log_error_axis(axes[1])
            parts.finish_panel(axes[1], title, style.AXIS_LABELS[x], bottom=None)
    parts.hide(places[len(panels) :].flatten())
    bar = figure.colorbar(grid[0, 0].images[0], ax=list(grid[0]), shrink=0.8, pad=0.01)
    bar.set_label(f"error at round {final['rounds'].max()}", fontsize=8)
    return figure


@figure_kind
def implementations(training: pd.DataFrame) -> Figure:
    """Error, share of rounds won by an attacker, and share with another choice than the reference, by attack."""
    final = _with_run_means(training)
    names = [_attack_name(*pair) for pair in zip(final["attack"], final["attack_options"], strict=True)]
    final, order = final.assign(attacked=names), list(dict.fromkeys(names))
    titles = {
        "test_error": f"Cross-validation error at round {final['rounds'].max()}",
        "byzantine_weight": "Share of rounds in which an attacker is chosen",
        "differs": "Share of rounds with another choice than the paper's Krum",
    }
    figure = Figure(figsize=(15.5, 6.6), layout="constrained")
    for axes, (quantity, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        for rule, rows in final.groupby("aggregator", sort=False):
            points = statistics.curve(rows, quantity, "attacked").reindex(order)
            parts.plot_rule(axes, points.set_axis(np.arange(len(order))), rule, style.name(rule))
        axes.set_xticks(range(len(order)), order, rotation=45, ha="right", fontsize=8)
        x = "attack (kappa: the colluders send -kappa times the honest mean)"
        y = parts.ERROR if quantity == "test_error" else "share of rounds"
        parts.finish_panel(axes, title, x, y, legend=-0.24)  # below the slanted names
    return figure


def _attack_name(attack: str, options: str) -> str:
    kappa = labels.strength(options)
    return f"kappa = {kappa:g}" if attack == "sign-flip" and np.isfinite(kappa) else style.name(attack)


def _with_run_means(training: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and seed: the last round's, with the run's means."""
    means = training[training["round"] > 0].groupby(["cell", "seed"])[RUN_MEANS].mean()
    final = training[training["round"] == training["rounds"]].drop(columns=RUN_MEANS)
    return final.join(means, on=["cell", "seed"])


def _last_rows(
    training: pd.DataFrame, x: str, columns: str, quantities: Sequence[str] = (), target: float | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`_with_run_means` and what figures derive, of the cells of several workers, and of one machine alone beside them.

    With a panel for each attack, the unattacked cells are repeated for each, since they belong to all of them.
    """
    final = labels.with_occurrence(_with_run_means(training))
    final = final.assign(strength=final["attack_options"].map(labels.strength))
    if x != "declared_f":  # which averaging ignores
        final["declared_f"] = final["declared_f"].mask(final["aggregator"] == "average")
    if target is not None:
        final = final.assign(rounds_to_target=statistics.rounds_to(training, target, final))
    for quantity in BUDGETS.keys() & set(quantities):
        per_round = BUDGETS[quantity](training)
        budget = (training["rounds"] * per_round).min()
        final = final.assign(**{quantity: statistics.error_within(training, per_round, budget, final)})
    is_single = (final["workers"] == 1) & (x != "workers")
    final, machines = final[~is_single], final[is_single]
    unattacked, attacked = final[final["attack"] == "none"], final[final["attack"] != "none"]
    if columns != "attack" or x == "attack" or not len(unattacked) or not len(attacked):
        return final, machines
    repeated = [
        unattacked[unattacked["dataset"] == dataset].assign(
            attack=attack, attack_options=rows["attack_options"].iloc[0]
        )
        for (dataset, attack), rows in attacked.groupby(["dataset", "attack"], sort=False)
    ]
    return pd.concat([attacked, *repeated]), machines


def _by_declared_f(final: pd.DataFrame) -> pd.DataFrame:
    """Once the cells that declare the most, once those that declare the true count; a rule's stand side by side."""
    declared = final["declared_f"]
    most = final[declared == declared.max()].assign(declared_f=f"{declared.max():g}")
    true = final[declared == final["byzantine"]].assign(declared_f="the true count")
    return pd.concat([final[declared.isna()], most, true]).sort_values("aggregator", kind="stable")


def _plot_lines(
    axes: Axes,
    panel: pd.DataFrame,
    machines: pd.DataFrame,
    x: str,
    columns: str,
    quantity: str,
    crossing: str | None = None,
) -> None:
    """A line per rule and setting; with `crossing`, also from which x on a rule does better than that one."""
    elsewhere = _shown_by(x, columns)
    by = [name for name in SETTINGS if name not in elsewhere]
    for rows, label, look in parts.lines(panel, by, elsewhere):
        rule = rows["aggregator"].iloc[0]
        if crossing not in (None, rule):
            label += _mark_crossing(axes, rows, panel[panel["aggregator"] == crossing], x, quantity)
        parts.plot_rule(axes, statistics.curve(rows, quantity, x), rule, label, **look)
    parts.plot_single_machines(axes, machines[machines["dataset"] == panel["dataset"].iloc[0]], quantity)
    parts.swept_axis(axes, panel[x])


def _shown_by(x: str, columns: str) -> set[str]:
    """The columns of results that the axis of x and panels by `columns` show, and those that change no run."""
    implied = {"strength": {"attack_options"}, "occurrence": {"byzantine", "fault_rate"}}
    return {x, columns, *labels.RECORDING, *implied.get(x, ()), *implied.get(columns, ())}


def _mark_crossing(axes: Axes, line: pd.DataFrame, other: pd.DataFrame, x: str, quantity: str) -> str:
    """Mark from which x on a line lies below another rule's, and the words for its label; none where it never does."""
    errors, other_errors = (rows.pivot(index="seed", columns=x, values=quantity) for rows in (line, other))
    difference = other_errors - errors
    difference = difference.loc[:, difference.columns > 0].dropna(axis=1)
    place, low, high = statistics.crossing(difference.columns.to_numpy(), difference.to_numpy())
    if not np.isfinite(place) or place == 0:
        return ""
    colour, _ = style.of_rule(line["aggregator"].iloc[0])
    axes.axvline(place, color=colour, linewidth=0.9, alpha=0.7)
    ends = max(low, difference.columns.min()), min(high, difference.columns.max())
    axes.axvspan(*ends, color=colour, alpha=0.1, linewidth=0)
    name = style.name(other["aggregator"].iloc[0])
    return f", better than {name} from {labels.number(place)} [{labels.number(low)}, {labels.number(high)}] on"


def _table(panel: pd.DataFrame, machines: pd.DataFrame, x: str, columns: str, ticks: list[Any]) -> pd.DataFrame:
    """Mean errors of a panel, rules down and x across, with a row for each machine alone."""
    # The title and the axis say who attacks, and the note what a rule's guarantee covers.
    elsewhere = {*_shown_by(x, columns), *labels.ATTACKERS, "attack_options"}
    by = [name for name in SETTINGS if name not in elsewhere]
    plain = panel.assign(outside_guarantee=False)
    means = {label: rows.groupby(x)["test_error"].mean() for rows, label, _ in parts.lines(plain, by, elsewhere)}
    table = pd.DataFrame(means).T.reindex(columns=ticks).dropna(how="all", axis=1)
    for _, cell in machines[machines["dataset"] == panel["dataset"].iloc[0]].groupby("cell", sort=False):
        table.loc[labels.single_machine(cell.iloc[0])] = cell["test_error"].mean()
    return table


def _plot_table(axes: Axes, table: pd.DataFrame, highest: float, is_named: bool) -> None:
    """Errors as colours from 0 to the highest, with their numbers; `is_named`: whether the rows' names stand beside."""
    colours = matplotlib.colormaps["viridis_r"].with_extremes(bad="#dddddd")
    axes.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=0, vmax=highest, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            colour = "white" if value > 0.45 * highest else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    values = list(table.columns)
    slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    names = [f"{value:g}" if isinstance(value, float) else style.name(value) for value in values]
    axes.set_xticks(range(len(values)), names, fontsize=8, **(slanted if isinstance(values[0], str) else {}))
    axes.set_yticks(range(len(table)), list(table.index) if is_named else [], fontsize=8)
