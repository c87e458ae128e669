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
    final, machines = _swept_rows(training, x, columns, quantities, target)
    heads = parts.distinct(final, ["dataset", columns])
    figure = Figure(figsize=(max(6.4, 5.4 * len(heads)), 3.6 * len(quantities) + 2.2), layout="constrained")
    grid = figure.subplots(len(quantities), len(heads), squeeze=False, sharey="row")
    samples = (training["rounds"] * BUDGETS["error_at_samples"](training)).min()
    named = {"rounds": final["rounds"].max(), "samples": samples, "target": target}
    for panels, quantity in zip(grid, quantities, strict=True):
        for axes, (dataset, head) in zip(panels, heads, strict=True):
            panel = final[(final["dataset"] == dataset) & (final[columns] == head)]
            _plot_lines(axes, panel, x, quantity, columns, crossing if quantity == "test_error" else None)
            parts.plot_single_machines(axes, machines[machines["dataset"] == dataset], quantity)
            parts.swept_axis(axes, sorted(panel[x].unique()), style.AXIS_LABELS[x])
            axes.set_ylabel(style.QUANTITY_LABELS[quantity].format(**named))
            if log:
                parts.log_error_axis(axes)
            parts.finish_panel(axes, labels.panel(dataset, columns, head), bottom=None if log else 0)
            if quantity != quantities[-1] and crossing is None:  # the same lines again
                axes.legend().remove()
        if not log and np.isfinite(top := _top(final.groupby("cell")[quantity])):
            panels[0].set_ylim(0, top)
    return figure


@figure_kind
def heat(
    training: pd.DataFrame, *, x: AnySwept, columns: AnyColumn = "dataset", lines: bool = False, declares: bool = False
) -> Figure:
    """Error at the last round as a table of colours: rules down, x across, a panel for each value of `columns`.

    lines: whether the same numbers stand below each table as lines; declares: whether rules that declare the true count
    stand beside those that declare the most.
    """
    final, machines = _swept_rows(training, x, columns)
    final = _by_declared_f(final) if declares else final.assign(declares="")
    final = final.assign(rule=[_rule_label(row, columns) for row in final.itertuples()])
    heads = parts.distinct(final, ["dataset", columns])
    rules, ticks = list(final["rule"].drop_duplicates()), _ticks(final, x)
    width = min(len(heads), MOST_TABLES_ACROSS)
    down = -(-len(heads) // width)
    heights = [1.1 + 0.34 * (len(rules) + machines["batch_size"].nunique()), *([4.2] if lines else [])]
    size = (max(8.0, 1.9 + width * (1.2 + 0.62 * max(len(ticks), 5))), 1.6 + down * sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down * len(heights), width, squeeze=False, height_ratios=heights * down)
    panels = grid.reshape(down, len(heights), width).swapaxes(1, 2).reshape(-1, len(heights))
    names_to_the_left: list[str] = []
    for place, (axes, (dataset, head)) in enumerate(zip(panels, heads, strict=False)):
        title = labels.panel(dataset, columns, head)
        panel = final[(final["dataset"] == dataset) & (final[columns] == head)]
        beside = machines[machines["dataset"] == dataset]
        table = panel.pivot_table("test_error", "rule", x, sort=False).reindex(index=rules, columns=ticks)
        table = table.dropna(how="all").dropna(how="all", axis=1)
        shown = list(table.columns)
        for _, cell in beside.groupby("cell", sort=False):
            table.loc[labels.single_machine(cell.iloc[0])] = cell["test_error"].mean()
        is_first = place % width == 0
        named = is_first or list(table.index) != names_to_the_left
        names_to_the_left = list(table.index)
        _plot_table(axes[0], table, final["test_error"].max(), named)
        axes[0].set_xlabel(style.AXIS_LABELS[x])
        axes[0].set_title(title, fontsize=10)
        if lines:
            _plot_lines(axes[1], panel, x, "test_error", columns)
            parts.plot_single_machines(axes[1], beside, "test_error")
            parts.swept_axis(axes[1], shown, style.AXIS_LABELS[x])
            parts.log_error_axis(axes[1])
            axes[1].set_ylabel("cross-validation error")
            parts.finish_panel(axes[1], title, bottom=None)
    parts.hide(panels[len(heads) :].flatten())
    bar = figure.colorbar(grid[0, 0].images[0], ax=list(grid[0]), shrink=0.8, pad=0.01)
    bar.set_label(f"error at round {final['rounds'].max()}", fontsize=8)
    return figure


@figure_kind
def implementations(training: pd.DataFrame) -> Figure:
    """Error, share of rounds won by an attacker, and share with another choice than the reference, by attack."""
    final = _final_rows(training)
    names = [_attack_name(*pair) for pair in zip(final["attack"], final["attack_options"], strict=True)]
    final, order = final.assign(attacked=names), list(dict.fromkeys(names))
    titles = {
        "test_error": f"Cross-validation error at round {final['rounds'].max()}",
        "byzantine_weight": "Share of rounds in which an attacker is chosen",
        "differs": "Share of rounds with another choice than the paper's Krum",
    }
    figure = Figure(figsize=(15.5, 6.6), layout="constrained")
    for axes, (quantity, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        for aggregator, rows in final.groupby("aggregator", sort=False):
            points = statistics.curve(rows, quantity, "attacked").reindex(order)
            parts.plot_rule(axes, points.set_axis(np.arange(len(order))), str(aggregator), str(aggregator))
        axes.set_xticks(range(len(order)), order, rotation=45, ha="right", fontsize=8)
        axes.set_xlabel("attack (kappa: the colluders send -kappa times the honest mean)")
        axes.set_ylabel("cross-validation error" if quantity == "test_error" else "share of rounds")
        parts.finish_panel(axes, title, legend=-0.24)  # below the slanted names
    return figure


def _attack_name(attack: str, options: str) -> str:
    kappa = labels.strength(options)
    return f"kappa = {kappa:g}" if attack == "sign-flip" and np.isfinite(kappa) else attack


def _final_rows(training: pd.DataFrame, quantities: Sequence[str] = (), target: float | None = None) -> pd.DataFrame:
    """One row per cell and seed: the last round's, with the run's means, and what figures derive."""
    means = training[training["round"] > 0].groupby(["cell", "seed"])[RUN_MEANS].mean()
    final = training[training["round"] == training["rounds"]].drop(columns=RUN_MEANS)
    final = labels.with_occurrence(final.join(means, on=["cell", "seed"]))
    final = final.assign(strength=final["attack_options"].map(labels.strength))
    if target is not None:
        final = final.assign(rounds_to_target=statistics.rounds_to(training, target, final))
    for quantity in BUDGETS.keys() & set(quantities):
        per_round = BUDGETS[quantity](training)
        budget = (training["rounds"] * per_round).min()
        final = final.assign(**{quantity: statistics.error_within(training, per_round, budget, final)})
    return final


def _swept_rows(
    training: pd.DataFrame, x: str, columns: str, quantities: Sequence[str] = (), target: float | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Last rows of the cells of several workers, and of one machine alone, which the others are compared with.

    With a panel for each attack, the unattacked cells are repeated for each, since they belong to all of them.
    """
    final = _final_rows(training, quantities, target)
    is_single = (final["workers"] == 1) & (x != "workers")
    final, machines = final[~is_single], final[is_single]
    unattacked, attacked = final[final["attack"] == "none"], final[final["attack"] != "none"]
    if columns != "attack" or x == "attack" or not len(unattacked) or not len(attacked):
        return final, machines
    attack_options = attacked.groupby("attack")["attack_options"].first()
    repeated = [
        unattacked[unattacked["dataset"] == dataset].assign(attack=attack, attack_options=attack_options[attack])
        for dataset, attack in parts.distinct(attacked, ["dataset", "attack"])
    ]
    return pd.concat([attacked, *repeated]), machines


def _by_declared_f(final: pd.DataFrame) -> pd.DataFrame:
    """Once the cells that declare the most, once those that declare the true count; a rule's stand side by side."""
    most = final["declared_f"].max()
    both = pd.concat(
        [
            final[final["declared_f"] == most].assign(declares=f", f = {most}"),
            final[final["declared_f"] == final["byzantine"]].assign(declares=", f = the true count"),
        ]
    )
    return both.sort_values("aggregator", key=lambda names: names.map(list(names.unique()).index), kind="stable")


def _rule_label(row: Any, columns: str) -> str:
    notes = labels.options(row.aggregator_options)
    if row.worker_momentum and columns != "worker_momentum":
        notes.append(f"momentum {row.worker_momentum:g}")
    return labels.with_notes(row.aggregator, notes) + row.declares


def _ticks(final: pd.DataFrame, x: str) -> list[Any]:
    """The values of x in the order in which they stand: occurrences by how much they spoil, attacks as they come."""
    if x == "occurrence":
        final = final.sort_values("share", kind="stable")
    values = list(final[x].drop_duplicates())
    return values if x in ("attack", "occurrence") else sorted(values)


def _plot_lines(
    axes: Axes, panel: pd.DataFrame, x: str, quantity: str, columns: str, crossing: str | None = None
) -> None:
    """A line per rule and setting; with `crossing`, also from which x on a rule does better than that one."""
    settings = [name for name in labels.SETTINGS if name != x and (x, name) != ("strength", "attack_options")]
    varying = [name for name in settings if panel[name].nunique() > 1]
    for _, line in panel.groupby(["aggregator", *settings], sort=False):
        first = line.iloc[0]
        notes = [labels.note(name, first[name]) for name in varying if name != columns]
        label = labels.with_notes(first["aggregator"], notes)
        if crossing not in (None, first["aggregator"]):
            label += _mark_crossing(axes, line, panel[panel["aggregator"] == crossing], x, quantity)
        if "attack" in varying and columns != "attack":
            linestyle = style.of_attack(first["attack"])
        else:
            is_unattacked = "byzantine" in varying and not first["byzantine"] and not first["fault_rate"]
            linestyle = style.REPEATED_LINES[int(is_unattacked)]
        hollow = first["workers"] != panel["workers"].iloc[0] or first["worker_momentum"] > 0
        points = statistics.curve(line, quantity, x)
        parts.plot_rule(axes, points, first["aggregator"], label, hollow, linestyle=linestyle)


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
    name = other["aggregator"].iloc[0]
    return f", better than {name} from {labels.number(place)} [{labels.number(low)}, {labels.number(high)}] on"


def _top(groups: Any) -> float:
    """Above the means and the bands of all groups, unless a band reaches so high that nothing else could be told."""
    highest = groups.mean().max()
    bands = [statistics.band(values.dropna().to_numpy()) for _, values in groups if values.notna().any()]
    reach = max((float(high) for _, _, high in bands if np.isfinite(high)), default=highest)
    return 1.08 * max(highest, min(reach, 1.5 * highest))


def _plot_table(axes: Axes, table: pd.DataFrame, highest: float, named: bool) -> None:
    """Errors as colours from 0 to the highest, with their numbers; `named`: whether the rows' names stand beside."""
    colours = matplotlib.colormaps["viridis_r"].with_extremes(bad="#dddddd")
    axes.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=0, vmax=highest, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            colour = "white" if value > 0.45 * highest else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    values = list(table.columns)
    slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    axes.set_xticks(range(len(values)), names, fontsize=8, **(slanted if isinstance(values[0], str) else {}))
    axes.set_yticks(range(len(table)), list(table.index) if named else [], fontsize=8)
