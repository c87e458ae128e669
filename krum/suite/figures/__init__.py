"""Figures: pure functions from tidy rows and an experiment's `figure` entry to a picture.

A kind is one decorated function, see `krum.suite.figures.registry`; an aggregator keeps its colour and marker in all.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from krum.suite import store
from krum.suite.figures import measurements, paper, sweeps, training  # noqa: F401  for the kinds in them
from krum.suite.figures.labels import setting
from krum.suite.figures.registry import FIGURE_KINDS, check, figure_kind, kind_and_options

__all__ = ["FIGURE_KINDS", "check", "draw", "figure_kind", "save"]


def draw(rows: pd.DataFrame, experiment: Mapping[str, Any]) -> Figure:
    """The figure of an experiment: its rows, and title and `figure` entry from the results' metadata.

    Raises InputError where the entry is none that today's kinds can draw.
    """
    kind, options = kind_and_options("figure", experiment["figure"])
    frames = [store.of_measurement(rows, measurement) for measurement in kind.measurements]
    figure = kind.function(*frames, **options)
    figure.suptitle(textwrap.fill(experiment["title"], int(figure.get_figwidth() * 11)), fontsize=12)
    caption = [*setting(rows).splitlines(), " ".join(experiment["figure"].get("note", "").split())]
    width = int(figure.get_figwidth() * 17)
    figure.supxlabel("\n".join(textwrap.fill(line, width) for line in caption if line), fontsize=8)
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
