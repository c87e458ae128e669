"""The paper's figures that are no training curves alone: its collusion, its proposition, its lemma."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from krum.suite import statistics, theory
from krum.suite.figures import parts, style
from krum.suite.figures.registry import figure_kind


@figure_kind
def colluders(training: pd.DataFrame, plane: pd.DataFrame) -> Figure:
    """The plane of Figure 2 (one draw), and training under the same collusion."""
    datasets = training["dataset"].nunique()
    figure = Figure(figsize=(5.6 + 5.0 * datasets, 5.4), layout="constrained")
    left, *others = figure.subplots(1, 1 + datasets, width_ratios=[1.15] + [1] * datasets)
    _plot_plane(left, plane[plane["seed"] == 0])
    parts.plot_training(others, training, "Training on {}")
    return figure


def _plot_plane(axes: Axes, vectors: pd.DataFrame) -> None:
    """Honest vectors, the colluder at the barycentre, whom the rules choose, and where the far colluder lies."""

    def positions(role: str) -> np.ndarray:
        return vectors.loc[vectors["role"] == role, ["x", "y"]].to_numpy()

    honest, near, far = positions("honest"), positions("at the barycentre"), positions("far").mean(0)
    barycentre = vectors[["x", "y"]].mean()
    axes.scatter(honest[:, 0], honest[:, 1], s=28, color=style.GREY, label=f"{len(honest)} honest vectors", zorder=3)
    mean = honest.mean(0)
    axes.scatter(mean[0], mean[1], marker="+", s=120, color=style.GREY, label="their mean", zorder=4)
    axes.scatter(near[:, 0], near[:, 1], s=60, marker="X", color=style.BYZANTINE_RED, label="a colluder", zorder=3)
    axes.scatter(barycentre["x"], barycentre["y"], s=190, facecolors="none", edgecolors="#7F7F7F", zorder=2)
    axes.annotate("barycentre of all", barycentre, (16, -3), textcoords="offset points", fontsize=8)
    start = near.mean(0)
    tip = start + 2.2 * (far - start) / np.linalg.norm(far - start)
    axes.annotate("", tip, start, arrowprops={"arrowstyle": "->", "color": style.BYZANTINE_RED})
    distance = np.linalg.norm(far - mean)
    axes.annotate(f"the other colluder,\n{distance:.0f} away", tip, (8, -4), textcoords="offset points", fontsize=8)
    for rule in ("nearest-to-barycentre", "krum"):
        chosen = vectors[vectors[f"chosen_by_{rule.replace('-', '_')}"].astype(bool)]
        colour, _ = style.of_rule(rule)
        square: dict[str, Any] = {"marker": "s", "facecolors": "none", "edgecolors": colour, "linewidths": 2}
        axes.scatter(chosen["x"], chosen["y"], s=330, label=f"chosen by {style.name(rule)}", **square)
    shown = np.vstack([honest, start, tip])
    centre, reach = (shown.max(0) + shown.min(0)) / 2, (shown.max(0) - shown.min(0)).max() / 2 + 0.9
    axes.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach), aspect="equal")
    parts.finish_panel(axes, "In the plane (first of the draws)", "first coordinate", "second coordinate", bottom=None)
    axes.legend(fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.6), markerscale=0.55)


@figure_kind
def resilience(training: pd.DataFrame, resilience: pd.DataFrame) -> Figure:
    """Proposition 1's bound beside what is measured, and its condition along training runs."""
    dimensions, datasets = sorted(resilience["dimension"].unique()), training["dataset"].nunique()
    width = max(len(dimensions), datasets)
    figure = Figure(figsize=(6.4 * width, 9.6), layout="constrained")
    above, below = figure.subplots(2, width, squeeze=False)
    for axes, dimension in zip(above, dimensions, strict=False):
        _plot_bound(axes, resilience[resilience["dimension"] == dimension])
    training = training.assign(condition=theory.condition(training))
    for axes, (dataset, panel) in zip(below, parts.panels(training, "dataset"), strict=False):
        _plot_condition(axes, panel, f"The condition along training, {dataset}")
    parts.hide((*above[len(dimensions) :], *below[datasets:]))
    return figure


def _plot_bound(axes: Axes, measured: pd.DataFrame) -> None:
    """The worst attack's inner product of E Krum with the gradient against noise, and its bound, by f."""
    workers = int(measured["workers"].iloc[0])
    by_f = measured.groupby("byzantine")
    for colour, (f, rows) in zip(parts.shades(len(by_f)), by_f, strict=True):
        parts.plot_band(axes, _worst_attack(rows), f"f = {f}, measured", colour, marker="o", markersize=4)
        eta = theory.eta(workers, int(f))
        noise = np.geomspace(rows["noise"].min(), 1 / eta, 100)
        axes.plot(noise, 1 - eta * noise, color=colour, linestyle=":", linewidth=1.8)
    axes.plot([], [], color=style.GREY, linestyle=":", linewidth=1.8, label=r"bound $1 - \sin\alpha$, where it exists")
    axes.axhline(0, color=style.GREY, linewidth=0.8)
    axes.set_xscale("log")
    noise_label = r"noise $\sqrt{d}\,\sigma / \|g\|$ of an honest gradient"
    product_label = r"$\langle E\,\mathrm{Krum}, g\rangle / \|g\|^2$, worst attack"
    title = f"n = {workers}, d = {measured['dimension'].iloc[0]}"
    parts.finish_panel(axes, title, noise_label, product_label, bottom=None)


def _worst_attack(rows: pd.DataFrame) -> pd.DataFrame:
    """By noise, mean and band of the attack with the least mean inner product."""
    by_attack = {name: statistics.curve(group, "inner_product", "noise") for name, group in rows.groupby("attack")}
    worst = pd.DataFrame({name: points["mean"] for name, points in by_attack.items()}).idxmin(axis=1)
    return pd.DataFrame({noise: by_attack[name].loc[noise] for noise, name in worst.items()}).T


def _plot_condition(axes: Axes, training: pd.DataFrame, title: str) -> None:
    """`eta sqrt(d) sigma / ||g||` against rounds."""
    parts.plot_curves(axes, training[np.isfinite(training["condition"])], quantity="condition")
    axes.axhline(1, color=style.GREY, linewidth=1.2)
    axes.annotate("Proposition 1 holds below this line", (0.02, 1), (0, -11), xycoords=("axes fraction", "data"),
                  textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set_yscale("log")
    parts.finish_panel(axes, title, y=r"$\eta(n, f) \sqrt{d}\,\sigma / \|g\|$", bottom=0.5)


@figure_kind
def steering(training: pd.DataFrame, steering: pd.DataFrame) -> Figure:
    """One Byzantine worker against averaging and Krum: any vector, any next model."""
    datasets = training["dataset"].nunique()
    figure = Figure(figsize=(5.0 * (1 + datasets), 5.0), layout="constrained")
    left, *others = figure.subplots(1, 1 + datasets)
    for rule, rows in steering.groupby("aggregator", sort=False):
        parts.plot_rule(left, statistics.curve(rows, "distance", "dimension"), rule, style.name(rule))
    parts.swept_axis(left, steering["dimension"])
    left.set_yscale("log")
    distance = r"$\|F - U\| / \|U\|$: distance from the attacker's vector"
    parts.finish_panel(left, "Any vector U (float32)", style.AXIS_LABELS["dimension"], distance, bottom=None)
    parts.plot_training(others, training, "Any model: {}")
    for axes in others:
        axes.set_ylim(top=1.02)
    return figure
