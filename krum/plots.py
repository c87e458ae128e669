"""Figures: pure functions from a tidy frame and an experiment's `figure` entry to a matplotlib figure.

One function per kind, in KINDS. An aggregator keeps its colour and marker in every figure.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from krum import statistics, store

STYLES = {  # colour-blind safe (Okabe and Ito), and a marker for print
    "average": ("#0072B2", "o"),
    "krum": ("#D55E00", "s"),
    "multi-krum": ("#009E73", "^"),
    "medoid": ("#CC79A7", "D"),
    "geometric-median": ("#E69F00", "v"),
    "nearest-to-barycentre": ("#56B4E9", "P"),
    "median": ("#000000", "X"),
    "trimmed-mean": ("#7F7F7F", "*"),
}
OTHER_STYLES = [("#8C564B", "<"), ("#9467BD", ">"), ("#BCBD22", "h"), ("#17BECF", "p"), ("#A6761D", "d")]
DATASET_TITLES = {"spambase": "Spambase", "mnist": "MNIST"}


def style(aggregator: str) -> tuple[str, str]:
    """Colour and marker of an aggregator; one that has none of its own gets one that depends on its name alone."""
    if aggregator in STYLES:
        return STYLES[aggregator]
    return OTHER_STYLES[sum(aggregator.encode()) % len(OTHER_STYLES)]


def draw(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """The figure of an experiment: its rows, and title and `figure` entry from the results' metadata."""
    return KINDS[experiment["figure"]["kind"]](rows, experiment)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.pdf, each complete or not at all."""
    paths = [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")]
    for path, metadata in zip(paths, ({}, {"CreationDate": None}), strict=True):
        with store.replacing(path) as temporary:
            figure.savefig(temporary, dpi=160, metadata=metadata)
    return paths


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
}


def curves(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """Error against rounds, one panel per data set (down) and Byzantine share (across), a curve per aggregator."""
    datasets = list(rows["dataset"].drop_duplicates())
    shares = rows[["byzantine_fraction", "attack"]].drop_duplicates().sort_values("byzantine_fraction", kind="stable")
    adversaries = list(shares.itertuples(index=False))
    reference = experiment["figure"].get("reference")
    figure = Figure(figsize=(5.2 * len(adversaries), 3.6 * len(datasets) + 1.1), layout="constrained")
    panels = figure.subplots(len(datasets), len(adversaries), squeeze=False, sharex=True, sharey="row")
    for across, dataset in zip(panels, datasets, strict=True):
        of_dataset = rows[rows["dataset"] == dataset]
        for axes, adversary in zip(across, adversaries, strict=True):
            here = of_dataset[
                (of_dataset["byzantine_fraction"] == adversary.byzantine_fraction)
                & (of_dataset["attack"] == adversary.attack)
            ]
            if reference and adversary.byzantine_fraction:
                is_reference = of_dataset["aggregator"] == reference["aggregator"]
                calm = of_dataset[is_reference & (of_dataset["byzantine"] == 0)]
                for _, cell in calm.groupby("cell", sort=False):
                    _curve(axes, cell, f"{_label(cell, calm)}, 0 % Byzantine", dashed=True)
            for _, cell in here.groupby("cell", sort=False):
                _curve(axes, cell, _label(cell, here))
            _panel(axes, dataset, here)
    for axes in panels[-1]:
        axes.set_xlabel("round")
    for axes in panels[:, 0]:
        axes.set_ylabel("cross-validation error")
    figure.suptitle(experiment["title"], fontsize=12)
    figure.supxlabel(_caption(rows), fontsize=8)
    return figure


KINDS: dict[str, Callable[[pd.DataFrame, Mapping[str, Any]], Figure]] = {"curves": curves}


def _curve(axes: Axes, cell: pd.DataFrame, label: str, dashed: bool = False) -> None:
    colour, marker = style(cell["aggregator"].iloc[0])
    points = statistics.curve(cell)
    axes.plot(
        points.index,
        points["mean"],
        color=colour,
        marker=None if dashed else marker,
        linestyle="--" if dashed else "-",
        markevery=max(1, len(points) // 10),
        markersize=5,
        linewidth=1.4,
        label=label,
    )
    if not dashed:
        axes.fill_between(points.index, points["low"], points["high"], color=colour, alpha=0.18, linewidth=0)


def _label(cell: pd.DataFrame, panel: pd.DataFrame) -> str:
    row = cell.iloc[0]
    notes = []
    if row["aggregator_options"] != "{}":
        notes += [f"{name} = {value}" for name, value in json.loads(row["aggregator_options"]).items()]
    notes += [f"{name} {row[column]}" for column, name in DISTINCTIONS.items() if panel[column].nunique() > 1]
    if panel["attack_options"].nunique() > 1:
        notes += [f"{name} = {value}" for name, value in json.loads(row["attack_options"]).items()]
    if row["outside_guarantee"]:
        notes.append("outside its guarantee")
    if cell["diverged"].any():
        notes.append(f"{cell[cell['diverged']]['seed'].nunique()} of {cell['seed'].nunique()} seeds diverged")
    return row["aggregator"] + (f" ({', '.join(notes)})" if notes else "")


def _panel(axes: Axes, dataset: str, rows: pd.DataFrame) -> None:
    first = rows.iloc[0] if len(rows) else None
    who = ""
    if first is not None:
        who = f"{first['byzantine_fraction']:.0%} Byzantine".replace("%", " %")
        if first["byzantine"]:
            who += f" ({first['byzantine']} of {first['workers']}, {first['attack']})"
    axes.set_title(f"{DATASET_TITLES.get(dataset, dataset)}, {who}", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelleft=True, labelbottom=True)
    axes.legend(fontsize=8, frameon=False)


def _caption(rows: pd.DataFrame) -> str:
    def values(column: str) -> str:
        return ", ".join(f"{value:g}" for value in sorted(rows[column].unique()))

    pairs = rows[["dataset", "model"]].drop_duplicates().itertuples(index=False)
    models = ", ".join(f"{DATASET_TITLES.get(pair.dataset, pair.dataset)} {pair.model}" for pair in pairs)
    seeds = rows.groupby("cell")["seed"].nunique().max()
    text = (
        f"{values('workers')} workers, batch {values('batch_size')}, learning rate {values('learning_rate')}, "
        f"declared f = {values('declared_f')}; {models}\n"
        f"mean over {seeds} seed{'s' if seeds > 1 else ''} (each with its own cross-validation fold)"
    )
    if seeds > 1:
        text += " and 95 % bootstrap band"
    return text
