"""What an experiment's `figure` entry may ask for."""

from collections.abc import Mapping
from typing import Any

from krum.errors import InputError, unknown
from krum.simulation.cell import Cell

PROBE_OF_KIND = {
    "choices": "choices",
    "colluders": "plane",
    "complexity": "timing",
    "resilience": "resilience",
    "shards": "exchange",
    "steering": "steering",
}
ONLY_OF_KINDS = {
    "across": ("heat",),
    "log_x": ("curves",),
    "crossing": ("sweep",),
    "declares": ("heat",),
    "lines": ("heat",),
    "quantities": ("sweep",),
    "target": ("sweep",),
}
DRAW_TRAINING = ("curves", "against", "colluders", "heat", "implementations", "resilience", "steering", "sweep")


def check(where: str, figure: Mapping[str, Any], cells: list[Cell], measured: set[str]) -> None:
    """Refuse a figure that could not be drawn."""
    kind = figure["kind"]
    needed = PROBE_OF_KIND.get(kind)
    if needed is not None and needed not in measured:
        raise InputError(f"{where}.kind: {kind} draws the probe {needed!r}, which is not among the probes; add it")
    if kind in DRAW_TRAINING and not cells:
        raise InputError(f"{where}.kind: {kind} draws training runs, and there is no grid; add one")
    if kind in ("against", "heat", "sweep") and "x" not in figure:
        raise InputError(f"{where}.x is missing; it is the parameter on the horizontal axis")
    swept: tuple[str, ...] = ("workers", "byzantine", "declared_f", "batch_size", "learning_rate")
    if kind in ("heat", "sweep"):
        swept = (*swept, "attack", "fault_rate", "occurrence", "points", "strength", "worker_momentum")
    if "rounds_to_target" in figure.get("quantities", ()) and "target" not in figure:
        raise InputError(f"{where}.target is missing; it is the error that rounds_to_target counts to")
    allowed = ("samples",) if kind == "curves" else swept
    if "x" in figure and figure["x"] not in allowed:
        raise InputError(f"{where}.x: {unknown('parameter', figure['x'], allowed)}")
    columns = ("attack", "dataset", "model", "aggregator", "byzantine_fraction", "points", *swept)
    for key, kinds in ONLY_OF_KINDS.items():
        if key in figure and kind not in kinds:
            raise InputError(
                f"{where}.{key}: {kind} does not know it; leave it out, or give a kind of {', '.join(kinds)}"
            )
    if figure.get("crossing") not in (None, *(cell.aggregator for cell in cells)):
        raise InputError(
            f"{where}.crossing: {unknown('aggregator', figure['crossing'], {c.aggregator for c in cells})}"
        )
    if "columns" in figure and figure["columns"] not in columns:
        raise InputError(f"{where}.columns: {unknown('column', figure['columns'], columns)}")
