"""Figures: pure functions from a tidy frame and an experiment's `figure` entry to a matplotlib figure.

One function per kind, in KINDS. An aggregator keeps its colour and marker in every figure.
"""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from krum.suite import statistics, store, theory
from krum.suite.report import TITLES, number, setting, with_occurrence

STYLES = {  # colour-blind safe (Okabe and Ito), and a marker for print
    "average": ("#0072B2", "o"),
    "krum": ("#D55E00", "s"),
    "multi-krum": ("#009E73", "^"),
    "medoid": ("#CC79A7", "D"),
    "geometric-median": ("#E69F00", "v"),
    "nearest-to-barycentre": ("#56B4E9", "P"),
    "median": ("#000000", "X"),
    "trimmed-mean": ("#7F7F7F", "*"),
    "1-p-krum": ("#8C564B", "<"),
    "bulyan": ("#B2182B", "8"),
    "centred-clipping": ("#17BECF", "H"),
    "nnm-krum": ("#BCBD22", "X"),
    "krum-n-f-1": ("#F0B000", "p"),
    "krum-n-f-1-unsquared": ("#9467BD", ">"),
    "krum-unsquared": ("#1B7837", "h"),
    "krum-fourth-power": ("#4D4D4D", "d"),
}
OTHER_STYLES = [("#66A61E", "4"), ("#E7298A", "+"), ("#A6761D", "1"), ("#66628D", "2"), ("#1F1F8F", "3")]
LINES = {"none": "-", "gaussian": "--"}  # of an attack, where one panel shows several
ATTACKED = (0, (1, 1))  # ... and of any other
RANKS = ("-", (0, (5, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)))  # lines of cells that share rule and attack in one panel

# What a label mentions where the curves of one panel differ in it.
DISTINCTIONS = {
    "workers": "n",
    "declared_f": "f",
    "batch_size": "batch",
    "learning_rate": "learning rate",
    "model": "model",
    "rounds": "rounds",
    "seeds": "seeds",
    "folds": "folds",
    "evaluate_every": "evaluated every",
}
LENGTH = ("rounds", "seeds", "evaluate_every")  # what an axis of samples shows
# What stands above a column of panels that differ in it.
COLUMN_TITLES = {"learning_rate": "learning rate {:g}", "batch_size": "batch {}", "points": "{:,} distinct points"}
AXIS_LABELS = {
    "batch_size": "mini-batch size",
    "learning_rate": "learning rate",
    "workers": "workers n",
    "byzantine": "Byzantine workers",
    "declared_f": "declared f",
    "fault_rate": "probability that a worker misbehaves in a round",
    "strength": "strength of the attack",
    "points": "distinct training points",
    "attack": "attack",
    "occurrence": "who misbehaves",
}
# What tells the lines of a sweep apart beside the rule.
NOTES = {
    "byzantine": "Byzantine",
    "workers": "n =",
    "declared_f": "f =",
    "batch_size": "batch",
    "learning_rate": "learning rate",
    "fault_rate": "fault rate",
    "worker_momentum": "momentum",
}
STRENGTHS = ("scale", "length", "epsilon", "factor", "deviations", "standard_deviation")
SETTINGS = ("attack", "byzantine", "workers", "declared_f", "batch_size", "learning_rate", "fault_rate",
            "worker_momentum", "aggregator_options", "attack_options", "rounds")  # fmt: skip
QUANTITIES = {
    "test_error": "cross-validation error at round {rounds}",
    "byzantine_weight": "share of the weight given to attackers",
    "rounds_to_target": "rounds to an error of {target:g}",
    "norm_ratio": "length of the aggregate / of the mean gradient",
    "error_at_samples": "error after {samples:,.0f} samples",
    "error_at_arithmetic": "error after as much arithmetic",
}
ALONE = ("#444444", ("-", (0, (1, 1))))  # a machine alone: its colour, and lines by the samples it takes at a time
FITTED_FROM = {"workers": 40, "dimension": 10_000}  # below, a call's own overhead takes most of the time
LONG_LEGEND = 4  # entries
MOST_ACROSS = 5  # panels side by side


def style(aggregator: str) -> tuple[str, str]:
    """Colour and marker of an aggregator; one that has none of its own gets one that depends on its name alone."""
    if aggregator in STYLES:
        return STYLES[aggregator]
    return OTHER_STYLES[sum(aggregator.encode()) % len(OTHER_STYLES)]


def draw(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """The figure of an experiment: its rows, and title and `figure` entry from the results' metadata."""
    figure = KINDS[experiment["figure"]["kind"]](rows, experiment)
    figure.suptitle("\n".join(textwrap.wrap(experiment["title"], int(figure.get_figwidth() * 11))), fontsize=12)
    caption = setting(rows).splitlines()
    if experiment["figure"].get("note"):
        caption.append(" ".join(experiment["figure"]["note"].split()))
    wide = int(figure.get_figwidth() * 17)
    figure.supxlabel("\n".join(line for part in caption for line in textwrap.wrap(part, wide)), fontsize=8)
    return figure


def save(figure: Figure, stem: Path, results: str = "") -> list[Path]:
    """Write `stem`.png and `stem`.pdf, each complete or not at all, with the digest of the results that they show."""
    paths = [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for both
    for path, metadata in zip(paths, ({"Source": results}, {"Keywords": results, "CreationDate": None}), strict=True):
        with store.replacing(path) as temporary:
            figure.savefig(temporary, dpi=160, metadata=metadata)
    return paths


# ------------------------------------------------------------------------------------------------------- the kinds


def curves(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Error against rounds, one panel per data set (down) and attack (across), a curve per aggregator.

    With `columns`, the panels of a row differ in that column instead, and attacks in the line. With `x: samples`, the
    axis counts the samples that all workers have seen.
    """
    rows = store.of_measurement(rows)
    chosen = experiment["figure"]
    by_samples = chosen.get("x") == "samples"
    if by_samples:
        rows = rows.assign(round=rows["round"] * rows["workers"] * rows["batch_size"])
    across, reference = chosen.get("columns", "attack"), chosen.get("reference")
    datasets = [""] if across == "dataset" else list(rows["dataset"].drop_duplicates())  # one to a row of panels
    keys = ["byzantine_fraction", "attack"] if across == "attack" else [across]
    heads = list(rows[keys].drop_duplicates().sort_values(keys[0], kind="stable").itertuples(index=False, name=None))
    width = min(len(heads), MOST_ACROSS)
    per_dataset = -(-len(heads) // width)
    height = 3.5 if rows.groupby(["dataset", *keys])["cell"].nunique().max() <= LONG_LEGEND else 4.3
    figure = Figure(figsize=(max(6.4, 4.9 * width), height * len(datasets) * per_dataset + 1.2), layout="constrained")
    grid = figure.subplots(len(datasets) * per_dataset, width, squeeze=False, sharex=True)
    for place, dataset in enumerate(datasets):
        panels = grid[place * per_dataset : (place + 1) * per_dataset].flatten()
        of_dataset = rows[rows["dataset"] == dataset] if dataset else rows
        top = 0.0
        for axes, head in zip(panels, heads, strict=False):
            here = of_dataset[(of_dataset[keys] == list(head)).all(axis=1)]
            for _, cell in here.groupby("cell", sort=False):
                label, alike = _label(cell, here, attacks=across != "attack", length=not by_samples), _alike(cell, here)
                rank = list(alike["cell"].unique()).index(cell["cell"].iloc[0])
                _curve(axes, cell, label, styled=across != "attack" and cell["workers"].iloc[0] > 1, rank=rank)
            if reference and here["byzantine"].any():
                is_reference = of_dataset["aggregator"] == reference["aggregator"]
                calm = of_dataset[is_reference & (of_dataset["byzantine"] == 0)]
                for _, cell in calm.groupby("cell", sort=False):
                    _curve(axes, cell, f"{_label(cell, calm)}, 0 % Byzantine", dashed=True)
            what = _adversary(here) if across == "attack" else COLUMN_TITLES.get(across, across + " {}").format(head[0])
            shown = here["dataset"].iloc[0] if len(here) else dataset
            title = TITLES.get(shown, shown)
            _panel(axes, title if across == "dataset" else f"{title}, {what}")
            axes.set_xlabel("samples seen by all workers" if by_samples else "round")
            axes.set_ylabel("cross-validation error")
            if chosen.get("log_x"):
                axes.set_xscale("log")
                axes.set_xlim(rows.loc[rows["round"] > 0, "round"].min(), rows["round"].max())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            top = max(top, axes.get_ylim()[1])
        for axes in panels[: len(heads)]:
            if chosen.get("log"):
                _log_error(axes)
                axes.set_ylim(0.9 * of_dataset["test_error"].min(), top)
            else:
                axes.set_ylim(0, top)
        for axes in panels[len(heads) :]:
            axes.set_visible(False)
    return figure


def against(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Error at the last round against a swept parameter `x`, one panel per data set, a line per rule and attack."""
    rows = store.of_measurement(rows)
    x = experiment["figure"]["x"]
    datasets = list(rows["dataset"].drop_duplicates())
    figure = Figure(figsize=(max(6.4, 6.2 * len(datasets)), 6.0), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
        here = rows[(rows["dataset"] == dataset) & (rows["round"] == rows["rounds"])]
        keys = ["aggregator", "attack", "byzantine", "workers"]
        for _, line in here.groupby(keys, sort=False):
            first = line.iloc[0]
            label = [first["aggregator"], _who(first)]
            if here["workers"].nunique() > 1:
                label.append(f"n = {first['workers']}")
            if first["outside_guarantee"]:
                label.append("outside 2f + 2 < n")
            _line(
                axes,
                _points(line, x, "test_error"),
                first["aggregator"],
                ", ".join(label),
                LINES.get(first["attack"], ATTACKED),
                hollow=first["workers"] != here["workers"].iloc[0],
            )
        _log_axis(axes, sorted(here[x].unique()), AXIS_LABELS.get(x, x))
        axes.set_ylabel(f"cross-validation error at round {here['rounds'].max()}")
        _panel(axes, TITLES.get(dataset, dataset))
    return figure


def colluders(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """The plane of Figure 2 (one draw), and training under the same collusion."""
    plane = store.of_measurement(rows, "plane")
    training = store.of_measurement(rows)
    datasets = list(training["dataset"].drop_duplicates())
    figure = Figure(figsize=(5.6 + 5.0 * len(datasets), 5.4), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(datasets), width_ratios=[1.15] + [1] * len(datasets))
    one = plane[plane["seed"] == 0]
    cloud, near, far = (one[one["role"] == role] for role in ("honest", "at the barycentre", "far"))
    left.scatter(cloud["x"], cloud["y"], s=28, color="#444444", label=f"{len(cloud)} honest vectors", zorder=3)
    left.scatter(*cloud[["x", "y"]].mean(), marker="+", s=120, color="#444444", label="their mean", zorder=4)
    left.scatter(near["x"], near["y"], s=60, marker="X", color="#B2182B", label="a colluder", zorder=3)
    left.scatter(*one[["x", "y"]].mean(), marker="o", s=190, facecolors="none", edgecolors="#7F7F7F", zorder=2)
    left.annotate("barycentre of all", one[["x", "y"]].mean(), (16, -3), textcoords="offset points", fontsize=8)
    middle, end = near[["x", "y"]].mean().to_numpy(), far[["x", "y"]].mean().to_numpy()
    away = middle + 2.2 * (end - middle) / np.linalg.norm(end - middle)
    left.annotate("", away, middle, arrowprops={"arrowstyle": "->", "color": "#B2182B"})
    distance = np.linalg.norm(end - cloud[["x", "y"]].mean().to_numpy())
    left.annotate(f"the other colluder,\n{distance:.0f} away", away, (8, -4), textcoords="offset points", fontsize=8)
    for rule, column in (("nearest-to-barycentre", "chosen_by_nearest_to_barycentre"), ("krum", "chosen_by_krum")):
        chosen = one[one[column].astype(bool)]
        colour, _ = style(rule)
        left.scatter(
            chosen["x"], chosen["y"], s=330, marker="s", facecolors="none", edgecolors=colour, linewidths=2,
            label=f"chosen by {rule}",
        )  # fmt: skip
    shown = np.vstack([cloud[["x", "y"]], middle, away])
    centre, reach = (shown.max(0) + shown.min(0)) / 2, (shown.max(0) - shown.min(0)).max() / 2 + 0.9
    left.set_xlim(centre[0] - reach, centre[0] + reach)
    left.set_ylim(centre[1] - reach, centre[1] + reach)
    left.set_aspect("equal")
    left.set_xlabel("first coordinate")
    left.set_ylabel("second coordinate")
    _panel(left, "In the plane (first of the draws)", bottom=None)
    left.legend(fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.6), markerscale=0.55)
    _training(others, training, "Training on {}")
    return figure


def resilience(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Proposition 1's bound beside what is measured, and its condition along training runs."""
    measured = store.of_measurement(rows, "resilience")
    training = store.of_measurement(rows)
    dimensions = sorted(measured["dimension"].unique())
    datasets = list(training["dataset"].drop_duplicates())
    width = max(len(dimensions), len(datasets))
    figure = Figure(figsize=(6.4 * width, 9.6), layout="constrained")
    above, below = figure.subplots(2, width, squeeze=False)
    workers = int(measured["workers"].iloc[0])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, measured["byzantine"].nunique()))
    for axes, dimension in zip(above, dimensions, strict=False):
        of_dimension = measured[measured["dimension"] == dimension]
        for colour, (f, here) in zip(colours, of_dimension.groupby("byzantine"), strict=True):
            points = _worst(here)
            axes.plot(points.index, points["mean"], color=colour, marker="o", markersize=4, label=f"f = {f}, measured")
            axes.fill_between(points.index, points["low"], points["high"], color=colour, alpha=0.2, linewidth=0)
            noise = np.geomspace(here["noise"].min(), 1 / theory.eta(workers, int(f)), 100)
            axes.plot(noise, 1 - theory.eta(workers, int(f)) * noise, color=colour, linestyle=":", linewidth=1.8)
        axes.plot(
            [], [], color="#444444", linestyle=":", linewidth=1.8, label=r"bound $1 - \sin\alpha$, where it exists"
        )
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel(r"noise $\sqrt{d}\,\sigma / \|g\|$ of an honest gradient")
        axes.set_ylabel(r"$\langle E\,\mathrm{Krum}, g\rangle / \|g\|^2$, worst attack")
        _panel(axes, f"n = {workers}, d = {dimension}", bottom=None)
    training = training.assign(condition=theory.condition(training))
    for axes, dataset in zip(below, datasets, strict=False):
        here = training[training["dataset"] == dataset]
        widths = {size: 0.8 + 0.7 * rank for rank, size in enumerate(sorted(here["batch_size"].unique()))}
        for _, cell in here.groupby("cell", sort=False):
            finite = cell[np.isfinite(cell["condition"])]
            label = _label(cell, here, attacks=True)
            _curve(axes, finite, label, styled=True, quantity="condition", width=widths[cell["batch_size"].iloc[0]])
        axes.axhline(1, color="#444444", linewidth=1.2)
        axes.annotate("Proposition 1 holds below this line", (0.02, 1), (0, -11), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=8)  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
        axes.set_xlabel("round")
        axes.set_ylabel(r"$\eta(n, f) \sqrt{d}\,\sigma / \|g\|$")
        _panel(axes, f"The condition along training, {TITLES.get(dataset, dataset)}", bottom=None)
    for axes in (*above[len(dimensions) :], *below[len(datasets) :]):
        axes.set_visible(False)
    return figure


def steering(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """One Byzantine worker against averaging and Krum: any vector, any next model."""
    vectors = store.of_measurement(rows, "steering")
    training = store.of_measurement(rows)
    datasets = list(training["dataset"].drop_duplicates())
    figure = Figure(figsize=(5.0 * (1 + len(datasets)), 5.0), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(datasets))
    for aggregator, here in vectors.groupby("aggregator", sort=False):
        _line(left, _points(here, "dimension", "distance"), str(aggregator), str(aggregator), "-")
    _log_axis(left, sorted(vectors["dimension"].unique()), "dimension d")
    left.set_yscale("log")
    left.set_ylabel(r"$\|F - U\| / \|U\|$: distance from the attacker's vector")
    _panel(left, "Any vector U (float32)", bottom=None)
    _training(others, training, "Any model: {}")
    for axes in others:
        axes.set_ylim(top=1.02)
    return figure


def complexity(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Time over n and over d, with fitted exponents."""
    times = store.of_measurement(rows, "timing")
    figure = Figure(figsize=(11.6, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, x, other, power, name in (
        (left, "workers", "dimension", 2, "d"),
        (right, "dimension", "workers", 1, "n"),
    ):
        groups = [(value, here) for value, here in times.groupby(other) if here[x].nunique() > 1]
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(groups)))
        for colour, (value, here) in zip(colours, groups, strict=True):
            points = _points(here, x, "seconds")
            upper = points[points.index >= FITTED_FROM[x]]
            exponent = np.polyfit(np.log(upper.index.to_numpy(float)), np.log(upper["mean"]), 1)[0]
            label = f"{name} = {value:,}: exponent {exponent:.2f}"
            axes.plot(points.index, points["mean"], color=colour, marker="s", markersize=4, label=label)
            axes.fill_between(points.index, points["low"], points["high"], color=colour, alpha=0.2, linewidth=0)
        last = times[times[other] == groups[-1][0]].groupby(x)["seconds"].mean()
        ideal = last.iloc[-1] * (last.index.to_numpy(float) / last.index[-1]) ** power
        what = "$n^2$" if power == 2 else "$d$"
        axes.plot(last.index, ideal, color="#444444", linestyle=":", label=f"proportional to {what}")
        _log_axis(axes, sorted(times[x].unique()), AXIS_LABELS.get(x, "dimension d"))
        axes.set_yscale("log")
        axes.set_ylabel("seconds, one thread")
        _panel(axes, f"over {'n' if x == 'workers' else 'd'} (exponent from {FITTED_FROM[x]:,} on)", bottom=None)
    return figure


def implementations(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Error, share of rounds won by an attacker, and share with another choice than the reference, by attack."""
    rows = store.of_measurement(rows)
    figure = Figure(figsize=(15.5, 6.6), layout="constrained")
    panels = figure.subplots(1, 3)
    rows = rows.assign(setting=[_strength(a, o) for a, o in zip(rows["attack"], rows["attack_options"], strict=True)])
    order = list(rows["setting"].drop_duplicates())
    over_rounds = rows[rows["round"] > 0].groupby(["aggregator", "setting", "seed"], sort=False, as_index=False)
    means = over_rounds[["byzantine_weight", "differs"]].mean()
    final = rows[rows["round"] == rows["rounds"]]
    for axes, (table, column, title) in zip(
        panels,
        (
            (final, "test_error", f"Cross-validation error at round {rows['rounds'].max()}"),
            (means, "byzantine_weight", "Share of rounds in which an attacker is chosen"),
            (means, "differs", "Share of rounds with another choice than the paper's Krum"),
        ),
        strict=True,
    ):
        for aggregator, here in table.groupby("aggregator", sort=False):
            points = _points(here, "setting", column).reindex(order)
            _line(axes, points.set_axis(np.arange(len(order))), str(aggregator), str(aggregator), "-")
        axes.set_xticks(range(len(order)), order, rotation=45, ha="right", fontsize=8)
        axes.set_xlabel("attack (kappa: the colluders send -kappa times the honest mean)")
        axes.set_ylabel("cross-validation error" if column == "test_error" else "share of rounds")
        _panel(axes, title, legend=-0.24)  # below the slanted names
    return figure


def sweep(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Quantities (down) against a swept parameter `x`, panels by `columns` (across), a line per rule and setting."""
    chosen = experiment["figure"]
    x, across, quantities = chosen["x"], chosen.get("columns", "dataset"), chosen.get("quantities", ["test_error"])
    final, alone = _teams(summary(store.of_measurement(rows), chosen), x)
    heads = list(final[["dataset", across]].drop_duplicates().itertuples(index=False, name=None))
    size = (max(6.4, 5.4 * len(heads)), 3.6 * len(quantities) + 2.2)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(quantities), len(heads), squeeze=False, sharey="row")
    named = {**chosen, "rounds": final["rounds"].max(), "samples": final["samples_budget"].min()}
    for panels, quantity in zip(grid, quantities, strict=True):
        for axes, (dataset, head) in zip(panels, heads, strict=True):
            here = final[(final["dataset"] == dataset) & (final[across] == head)]
            _lines(axes, here, x, quantity, across, chosen.get("crossing") if quantity == "test_error" else None)
            _alone(axes, alone[alone["dataset"] == dataset], quantity)
            _axis(axes, sorted(here[x].unique()), AXIS_LABELS.get(x, x))
            axes.set_ylabel(QUANTITIES.get(quantity, quantity).format(**named))
            if chosen.get("log"):
                _log_error(axes)
            title = TITLES.get(dataset, dataset)
            title = title if across == "dataset" else f"{title}, {_head(across, head)}"
            _panel(axes, title, bottom=None if chosen.get("log") else 0)
            if quantity != quantities[-1] and not chosen.get("crossing"):  # the same lines again
                axes.legend().remove()
        if not chosen.get("log") and np.isfinite(top := _top(final.groupby("cell")[quantity])):
            panels[0].set_ylim(0, top)
    return figure


def _lines(axes: Axes, here: pd.DataFrame, x: str, quantity: str, across: str, crossing: str | None = None) -> None:
    """A line per rule and setting; with `crossing`, also from which x on a rule does better than that one."""
    apart = [name for name in SETTINGS if name != x and (x, name) != ("strength", "attack_options")]
    varying = [name for name in apart if here[name].nunique() > 1]
    for _, line in here.groupby(["aggregator", *apart], sort=False):
        first = line.iloc[0]
        notes = [_note(name, first[name]) for name in varying if name != across]
        label = str(first["aggregator"]) + (f" ({', '.join(filter(None, notes))})" if any(notes) else "")
        if crossing not in (None, first["aggregator"]):
            other = here[here["aggregator"] == crossing].pivot(index="seed", columns=x, values=quantity)
            difference = other - line.pivot(index="seed", columns=x, values=quantity)
            difference = difference.loc[:, difference.columns > 0].dropna(axis=1)
            place, low, high = statistics.crossing(difference.columns.to_numpy(), difference.to_numpy())
            if np.isfinite(place) and place > 0:
                label += f", better than {crossing} from {number(place)} [{number(low)}, {number(high)}] on"
                axes.axvline(place, color=style(first["aggregator"])[0], linewidth=0.9, alpha=0.7)
                ends = max(low, difference.columns.min()), min(high, difference.columns.max())
                axes.axvspan(*ends, color=style(first["aggregator"])[0], alpha=0.1, linewidth=0)
        calm = "byzantine" in varying and not first["byzantine"] and not first["fault_rate"]
        attacks = "attack" in varying and across != "attack"
        dashes = LINES.get(first["attack"], ATTACKED) if attacks else RANKS[int(calm)]
        _line(
            axes,
            _points(line, x, quantity),
            str(first["aggregator"]),
            label,
            dashes,
            hollow=first["workers"] != here["workers"].iloc[0] or first["worker_momentum"] > 0,
        )


def _teams(final: pd.DataFrame, x: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of several workers, and those of one machine alone, which the others are compared with."""
    is_alone = (final["workers"] == 1) & (x != "workers")
    return final[~is_alone], final[is_alone]


def _alone(axes: Axes, alone: pd.DataFrame, quantity: str) -> None:
    """One machine alone as a level, whatever the others go through."""
    colour, lines = ALONE
    for line, (_, cell) in zip(lines, alone.groupby("cell", sort=False), strict=False):
        axes.plot([], [], color=colour, linestyle=line, linewidth=1.2, label=_name_alone(cell.iloc[0]))
        if cell[quantity].notna().all() and quantity != "rounds_to_target":  # its rounds are other ones
            mean, low, high = (float(part) for part in statistics.band(cell[quantity].to_numpy()))
            axes.axhline(mean, color=colour, linestyle=line, linewidth=1.2)
            axes.axhspan(low, high, color=colour, alpha=0.1, linewidth=0)


def _name_alone(cell: Any) -> str:
    return f"one machine alone, {cell.batch_size} a step"


def heat(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Error at the last round as a table of colours: rules down, `x` across, a panel for each value of `columns`."""
    chosen = experiment["figure"]
    x, across = chosen["x"], chosen.get("columns", "dataset")
    final, alone = _teams(summary(store.of_measurement(rows), chosen), x)
    final = final.assign(rule=[_rule(row, across) for row in final.itertuples()])
    if chosen.get("declares"):
        final = final.assign(rule=final["rule"] + ", " + final["declares"])
        final = final.sort_values("aggregator", key=lambda names: names.map(list(names.unique()).index), kind="stable")
    heads = list(final[["dataset", across]].drop_duplicates().itertuples(index=False, name=None))
    rules = list(final["rule"].drop_duplicates())
    ticks = list(final[x].drop_duplicates())
    if x == "occurrence":
        ticks = list(final.sort_values("share", kind="stable")[x].drop_duplicates())
    elif x != "attack":
        ticks.sort()
    width, lines = min(len(heads), chosen.get("across", 3)), bool(chosen.get("lines"))
    down, rows_ = -(-len(heads) // width), len(rules) + alone["batch_size"].nunique()
    heights = [1.1 + 0.34 * rows_, *([4.2] if lines else [])]
    size = (1.9 + width * (1.2 + 0.62 * max(len(ticks), 5)), 1.6 + down * sum(heights))
    figure = Figure(figsize=(max(8.0, size[0]), size[1]), layout="constrained")
    grid = figure.subplots(down * len(heights), width, squeeze=False, height_ratios=heights * down)
    colours = matplotlib.colormaps["viridis_r"].with_extremes(bad="#dddddd")
    highest = final["test_error"].max()
    beside: list[str] = []  # the rules that the panel to the left names
    for place, (dataset, head) in enumerate(heads):
        across_, below = place % width, place // width * len(heights)
        axes = grid[below, across_]
        here = final[(final["dataset"] == dataset) & (final[across] == head)]
        table = here.pivot_table(index="rule", columns=x, values="test_error", aggfunc="mean", sort=False)
        met = [tick for tick in ticks if tick in set(here[x])]
        table = table.reindex(index=[rule for rule in rules if rule in set(here["rule"])], columns=met)
        own = alone[alone["dataset"] == dataset]
        for _, cell in own.groupby("cell", sort=False):
            table.loc[_name_alone(cell.iloc[0])] = cell["test_error"].mean()
        image = axes.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=0, vmax=highest, aspect="auto")
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            if np.isfinite(value):
                colour = "white" if value > 0.45 * highest else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        names = [f"{tick:g}" if isinstance(tick, float) else str(tick) for tick in met]
        slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if isinstance(met[0], str) else {}
        axes.set_xticks(range(len(met)), names, fontsize=8, **slanted)
        axes.set_yticks(range(len(table)), list(table.index) if list(table.index) != beside else [], fontsize=8)
        beside = list(table.index) if across_ < width - 1 else []
        axes.set_xlabel(AXIS_LABELS.get(x, x))
        title = TITLES.get(dataset, dataset)
        title = title if across == "dataset" else f"{title}, {_head(across, head)}"
        axes.set_title(title, fontsize=10)
        if lines:
            drawn = grid[below + 1, across_]
            _lines(drawn, here, x, "test_error", across)
            _alone(drawn, own, "test_error")
            _axis(drawn, met, AXIS_LABELS.get(x, x))
            _log_error(drawn)
            drawn.set_ylabel("cross-validation error")
            _panel(drawn, title, bottom=None)
    for place in range(len(heads), down * width):
        for axes in grid[place // width * len(heights) :, place % width]:
            axes.set_visible(False)
    bar = figure.colorbar(image, ax=list(grid[0]), shrink=0.8, pad=0.01)
    bar.set_label(f"error at round {final['rounds'].max()}", fontsize=8)
    return figure


def choices(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Whom a rule chooses: by length and by distance from the mean (down), by data set and number of attackers."""
    chosen = store.of_measurement(rows, "choices")
    heads = list(chosen[["dataset", "byzantine"]].drop_duplicates().itertuples(index=False, name=None))
    orders = {
        "length": "rank by length, the shortest first",
        "distance": "rank by distance from the mean, nearest first",
    }
    figure = Figure(figsize=(4.6 * len(heads), 8.2), layout="constrained")
    grid = figure.subplots(len(orders), len(heads), squeeze=False, sharey=True)
    sizes = sorted(chosen["batch_size"].unique())
    colours = dict(zip(sizes, matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(sizes))), strict=True))
    for panels, (order, label) in zip(grid, orders.items(), strict=True):
        for axes, (dataset, byzantine) in zip(panels, heads, strict=True):
            here = chosen[(chosen["dataset"] == dataset) & (chosen["byzantine"] == byzantine)]
            here = here[here["order"] == order]
            honest = int(here["workers"].iloc[0] - byzantine)
            for number_, (size, group) in enumerate(here.groupby("batch_size")):
                points, width = _points(group, "rank", "share"), 0.84 / len(sizes)
                ratio = group.groupby("seed")["norm_ratio"].first()
                mean, low, high = (float(part) for part in statistics.band(ratio.to_numpy()))
                axes.bar(
                    points.index + (number_ - (len(sizes) - 1) / 2) * width, points["mean"], width, color=colours[size],
                    yerr=[points["mean"] - points["low"], points["high"] - points["mean"]],
                    error_kw={"linewidth": 0.7},
                    label=f"batch {size}; length / mean's {number(mean)} [{number(low)}, {number(high)}]",
                )  # fmt: skip
            axes.axhline(1 / honest, color="#444444", linestyle=":", linewidth=1.2, label=f"by chance, 1 of {honest}")
            axes.set_xticks([1, *range(5, honest + 1, 5)])
            axes.set_xlabel(label)
            axes.set_ylabel("share of the honest choices")
            who = f"{byzantine} Gaussian attackers" if byzantine else "nobody attacks"
            _panel(axes, f"{TITLES.get(dataset, dataset)}, {who}")
    highest = chosen.groupby(["order", "dataset", "byzantine", "batch_size", "rank"])["share"].mean().max()
    grid[0, 0].set_ylim(0, 1.08 * highest)
    return figure


def summary(rows: pd.DataFrame, chosen: Mapping[str, Any]) -> pd.DataFrame:
    """One row per cell and seed: the last round's, with the run's means, and what figures derive."""
    averaged = ["byzantine_weight", "differs", "norm_ratio"]
    means = rows[rows["round"] > 0].groupby(["cell", "seed"])[averaged].mean()
    final = rows[rows["round"] == rows["rounds"]].drop(columns=averaged)
    final = final.join(means, on=["cell", "seed"])
    if "target" in chosen:
        final = final.assign(rounds_to_target=statistics.rounds_to(rows, chosen["target"], final))
    for name, per_round in (("samples", rows["workers"] * rows["batch_size"]), ("arithmetic", theory.arithmetic(rows))):
        budget = (rows["rounds"] * per_round).min()  # what the cheapest run spends
        final[f"{name}_budget"] = budget
        if f"error_at_{name}" in chosen.get("quantities", ()):
            final[f"error_at_{name}"] = statistics.error_within(rows, per_round, budget, final)
    final = with_occurrence(final).assign(strength=final["attack_options"].map(_named_strength))
    if chosen.get("columns") == "attack" and chosen["x"] != "attack":  # nobody attacking belongs to every attack
        calm = final[(final["attack"] == "none") & (final["workers"] > 1)]
        attacked = final[final["attack"] != "none"]
        if len(calm) and len(attacked):
            pairs = attacked[["dataset", "attack"]].drop_duplicates().itertuples(index=False)
            options = attacked.groupby("attack")["attack_options"].first()
            each = [
                calm[calm["dataset"] == pair.dataset].assign(attack=pair.attack, attack_options=options[pair.attack])
                for pair in pairs
            ]
            final = pd.concat([attacked, *each, final[(final["attack"] == "none") & (final["workers"] == 1)]])
    if not chosen.get("declares"):
        return final
    most = final["declared_f"].max()
    return pd.concat(
        [
            final[final["declared_f"] == most].assign(declares=f"f = {most}"),
            final[final["declared_f"] == final["byzantine"]].assign(declares="f = the true count"),
        ]
    )


# The shards figure's methods: name, colour, and line in the panel of formulas, where averaging's and Krum's coincide.
EXCHANGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "averaging": ("averaging, all-reduce", STYLES["average"][0], {"linestyle": (0, (1, 2)), "linewidth": 3.5}),
    "gathered": ("Krum, all gathered", STYLES["krum"][0], {"linewidth": 1.5}),
    "in-parts": ("Krum, in parts", STYLES["multi-krum"][0], {"linewidth": 1.5}),
}
FORMULA = 10**11, np.array([2, 4, 8, 16, 32, 64, 128, 256, 512, 1000])  # parameters, processes


def shards(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Seconds and bytes of a round with real processes, and training of a split model."""
    measured, trained = store.of_measurement(rows, "exchange"), store.of_measurement(rows, "split")
    figure = Figure(figsize=(16.0, 5.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _seconds_of_a_round(left, measured)
    _bytes_of_a_round(middle, measured)
    for slices, label, method in (
        ("together", "distances added up", "in-parts"),
        ("apart", "each slice by itself", "gathered"),
    ):
        here = trained[trained["slices"] == slices]
        agreed = here[here["round"] == here["round"].max()]["agreed"].mean()
        points, colour = _points(here, "round", "test_error"), EXCHANGES[method][1]
        right.plot(points.index, points["mean"], color=colour, label=f"{label}: same choice in {agreed:.0%}")
        right.fill_between(points.index, points["low"], points["high"], color=colour, alpha=0.18, linewidth=0)
    whole = _points(trained[trained["slices"] == "together"], "round", "whole_error")["mean"]
    right.plot(whole.index, whole, color="#444444", linestyle=(0, (2, 3)), linewidth=2, label="not split")
    right.set_xlabel("round")
    right.set_ylabel("cross-validation error")
    _panel(right, "Krum under attack, neurons split over two processes")
    return figure


def _seconds_of_a_round(axes: Axes, measured: pd.DataFrame) -> None:
    for place, (ranks, here) in enumerate(measured.groupby("ranks")):
        for method, (name, colour, _) in EXCHANGES.items():
            points = _points(here[here["method"] == method], "dimension", "seconds")
            axes.plot(points.index, points["mean"], color=colour, linestyle=("--", "-", ":")[place % 3],
                      marker="os^"[place % 3], markersize=5, label=f"{name}, N = {ranks}")  # fmt: skip
            axes.fill_between(points.index, points["low"], points["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("parameters d")
    axes.set_ylabel("seconds a round, slowest process")
    _panel(axes, "Time with N gloo processes on one machine", bottom=None)


def _bytes_of_a_round(axes: Axes, measured: pd.DataFrame) -> None:
    from krum.distributed.communication import bytes_sent

    parameters, processes = FORMULA
    for method, (name, colour, line) in EXCHANGES.items():
        sent = [bytes_sent(method, int(n), parameters) / n / 1e9 for n in processes]
        axes.plot(processes, sent, color=colour, label=name, **line)
        counted = measured[(measured["method"] == method) & (measured["dimension"] == measured["dimension"].max())]
        scaled = counted["bytes"] / counted["ranks"] / counted["dimension"] * parameters / 1e9
        found = scaled.groupby(counted["ranks"]).median()
        axes.plot(found.index, found, color=colour, marker="o", linestyle="", markerfacecolor="white",
                  label=f"{name}, counted")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("processes N")
    axes.set_ylabel("gigabytes sent by each process")
    _panel(axes, "Bytes of a round, $10^{11}$ parameters in float32", bottom=None)


KINDS: dict[str, Callable[[pd.DataFrame, Mapping[str, Any]], Figure]] = {
    "curves": curves,
    "against": against,
    "choices": choices,
    "colluders": colluders,
    "complexity": complexity,
    "implementations": implementations,
    "resilience": resilience,
    "shards": shards,
    "steering": steering,
    "sweep": sweep,
    "heat": heat,
}


# ------------------------------------------------------------------------------------------------------ their parts


def _training(panels: Sequence[Axes], rows: pd.DataFrame, title: str) -> None:
    """Error against rounds, one panel per data set, rules by colour and attacks by line."""
    for axes, (dataset, here) in zip(panels, rows.groupby("dataset", sort=False), strict=True):
        for _, cell in here.groupby("cell", sort=False):
            _curve(axes, cell, _label(cell, here, attacks=True), styled=True)
        axes.set_xlabel("round")
        axes.set_ylabel("cross-validation error")
        _panel(axes, title.format(TITLES.get(str(dataset), dataset)))


def _curve(
    axes: Axes,
    cell: pd.DataFrame,
    label: str,
    dashed: bool = False,
    styled: bool = False,
    quantity: str = "test_error",
    width: float = 1.4,
    rank: int = 0,
) -> None:
    """One cell against rounds; `dashed`: a reference, drawn on top; `styled`: the line shows the attack.

    `rank`: its place among the panel's cells of the same rule and attack, which line and marker tell apart.
    """
    colour, marker = style(cell["aggregator"].iloc[0])
    points = statistics.curve(cell, quantity)
    line = LINES.get(cell["attack"].iloc[0], ATTACKED) if styled else RANKS[rank % len(RANKS)]
    axes.plot(
        points.index,
        points["mean"],
        color=colour,
        marker=None if dashed else marker,
        linestyle=(0, (4, 3)) if dashed else line,
        markevery=max(1, len(points) // 10),
        markersize=5,
        markerfacecolor="white" if rank else colour,
        alpha=max(0.4, 1 - 0.25 * (rank // len(RANKS))),
        linewidth=2.0 if dashed else width,
        label=label,
        zorder=3 if dashed else 2,
    )
    if not dashed:
        axes.fill_between(points.index, points["low"], points["high"], color=colour, alpha=0.18, linewidth=0)


def _top(groups: Any) -> float:
    """Above the means and the bands of all groups, unless a band reaches so high that nothing else could be told."""
    highest = groups.mean().max()
    bands = [statistics.band(values.dropna().to_numpy()) for _, values in groups if values.notna().any()]
    reach = max((float(high) for _, _, high in bands if np.isfinite(high)), default=highest)
    return 1.08 * max(highest, min(reach, 1.5 * highest))


def _points(rows: pd.DataFrame, x: str, quantity: str) -> pd.DataFrame:
    """Mean and band over seeds by the values of x."""
    table = rows.pivot(index="seed", columns=x, values=quantity)
    seeds = rows.groupby(x)["seed"].nunique()
    if seeds.nunique() == 1:
        mean, low, high = statistics.band(table.to_numpy())
        return pd.DataFrame({"mean": mean, "low": low, "high": high}, index=table.columns)
    each = {value: statistics.band(table.loc[rows.loc[rows[x] == value, "seed"], value]) for value in table.columns}
    return pd.DataFrame(each, index=["mean", "low", "high"]).T


def _worst(rows: pd.DataFrame) -> pd.DataFrame:
    """By noise, the attack with the least mean inner product."""
    by_attack = {attack: _points(here, "noise", "inner_product") for attack, here in rows.groupby("attack")}
    means = pd.DataFrame({attack: points["mean"] for attack, points in by_attack.items()})
    return pd.DataFrame({noise: by_attack[attack].loc[noise] for noise, attack in means.idxmin(axis=1).items()}).T


def _line(axes: Axes, points: pd.DataFrame, aggregator: str, label: str, line: Any, hollow: bool = False) -> None:
    colour, marker = style(aggregator)
    axes.plot(
        points.index, points["mean"], color=colour, marker=marker, linestyle=line, markersize=5.5, linewidth=1.4,
        label=label, markerfacecolor="white" if hollow else colour,
    )  # fmt: skip
    axes.fill_between(points.index, points["low"], points["high"], color=colour, alpha=0.18, linewidth=0)


def _log_error(axes: Axes) -> None:
    """A logarithmic axis for errors, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _log_axis(axes: Axes, ticks: Sequence[float], label: str) -> None:
    axes.set_xscale("log")
    if max(ticks) < 10_000 * min(ticks):
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
    elif max(ticks) >= 10_000:
        axes.set_xticks(ticks)
    if max(ticks) < 10_000 and min(ticks) > 0.001:
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(label)


def _head(column: str, value: Any) -> str:
    """What stands above a panel for a column's value."""
    if isinstance(value, str):
        return value
    return (
        f"worker momentum {value:g}" if column == "worker_momentum" else f"{value:g} {AXIS_LABELS.get(column, column)}"
    )


def _axis(axes: Axes, ticks: Sequence[float], label: str) -> None:
    """Logarithmic where the values span more than a factor of ten, with a place for zero if it is among them."""
    if max(ticks) <= 10 * max(1, min(ticks)) and all(float(tick).is_integer() for tick in ticks):
        axes.set_xticks(ticks)
        axes.set_xlabel(label)
    elif min(ticks) > 0:
        _log_axis(axes, ticks, label)
    else:
        least = min(tick for tick in ticks if tick > 0)
        axes.set_xscale("symlog", linthresh=least, linscale=0.6)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel(label)


def _named_strength(options: str) -> float:
    """The option that says how strong an attack is, where it has one."""
    found = json.loads(options)
    return next((float(found[name]) for name in STRENGTHS if name in found), float("nan"))


def _note(name: str, value: Any) -> str:
    if name in ("aggregator_options", "attack_options"):
        return ", ".join(f"{key} = {item}" for key, item in json.loads(value).items() if key not in STRENGTHS)
    if name == "attack":
        return "" if value == "none" else str(value)
    return f"{NOTES.get(name, name)} {value:g}"


def _rule(row: Any, across: str) -> str:
    notes = [f"{key} = {value}" for key, value in json.loads(row.aggregator_options).items()]
    if row.worker_momentum and across != "worker_momentum":
        notes.append(f"momentum {row.worker_momentum:g}")
    return row.aggregator + (f" ({', '.join(notes)})" if notes else "")


def _strength(attack: str, options: str) -> str:
    found = json.loads(options)
    return f"kappa = {found['scale']:g}" if attack == "sign-flip" and "scale" in found else attack


def _label(cell: pd.DataFrame, panel: pd.DataFrame, attacks: bool = False, length: bool = True) -> str:
    """What a curve is, and what it has of its own among the panel's; with or without how long it runs."""
    row = cell.iloc[0]
    if row["workers"] == 1 and panel["workers"].nunique() > 1:
        return f"{_name_alone(row)}, {row['rounds']:,} rounds"
    panel = panel[(panel["workers"] > 1) == (row["workers"] > 1)]
    notes = [_who(row)] if attacks else []
    if row["aggregator_options"] != "{}":
        notes += [f"{name} = {value}" for name, value in json.loads(row["aggregator_options"]).items()]
    kept = {column: name for column, name in DISTINCTIONS.items() if length or column not in LENGTH}
    notes += [f"{name} {row[column]}" for column, name in kept.items() if panel[column].nunique() > 1]
    own_attack = panel[panel["attack"] == row["attack"]]
    if own_attack["attack_options"].nunique() > 1:
        notes += [f"{name} = {value}" for name, value in json.loads(row["attack_options"]).items()]
    if row["outside_guarantee"]:
        notes.append("outside its guarantee")
    if cell["diverged"].any():
        notes.append(f"{cell[cell['diverged']]['seed'].nunique()} of {cell['seed'].nunique()} seeds diverged")
    return row["aggregator"] + (f" ({', '.join(notes)})" if notes else "")


def _alike(cell: pd.DataFrame, panel: pd.DataFrame) -> pd.DataFrame:
    """The panel's rows of the same rule and attack."""
    first = cell.iloc[0]
    return panel[(panel["aggregator"] == first["aggregator"]) & (panel["attack"] == first["attack"])]


def _who(row: pd.Series) -> str:
    """ "none", or "45 % omniscient"."""
    if row["fault_rate"]:
        return f"{row['attack']} at rate {row['fault_rate']:g}"
    return "none" if not row["byzantine"] else f"{row['byzantine_fraction']:.0%} {row['attack']}".replace("%", " %")


def _adversary(rows: pd.DataFrame) -> str:
    """ "0 % Byzantine", or "33 % Byzantine (6 of 20, gaussian)"."""
    if not len(rows):
        return "not run"
    first = rows.iloc[0]
    share = f"{first['byzantine_fraction']:.0%} Byzantine".replace("%", " %")
    return share + (f" ({first['byzantine']} of {first['workers']}, {first['attack']})" if first["byzantine"] else "")


def _panel(axes: Axes, title: str, bottom: float | None = 0, legend: float = -0.16) -> None:
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
