"""Words from rows: numbers, what ran, who attacks, and what tells the curves of a panel apart."""

import json
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from krum.suite import store
from krum.suite.figures import style

ROUNDING = 1e-12  # what floating-point sums leave of zero
STRENGTHS = ("scale", "length", "epsilon", "factor", "deviations", "standard_deviation")  # options of attacks
DISTINCTIONS = (  # what a curve's label mentions where the curves of its panel differ in it
    "workers", "declared_f", "batch_size", "learning_rate", "model", "rounds", "seeds", "folds", "evaluate_every",
)  # fmt: skip
LENGTHS = ("rounds", "seeds", "evaluate_every")  # among them, what an axis of samples shows anyway
SETTINGS = (  # what tells the lines of a sweep apart beside the rule
    "attack", "byzantine", "workers", "declared_f", "batch_size", "learning_rate", "fault_rate", "worker_momentum",
    "aggregator_options", "attack_options", "rounds",
)  # fmt: skip
SHORT_NAMES = {
    "workers": "n =",
    "declared_f": "f =",
    "batch_size": "batch",
    "learning_rate": "learning rate",
    "byzantine": "Byzantine",
    "fault_rate": "fault rate",
    "worker_momentum": "momentum",
    "evaluate_every": "evaluated every",
}
# What stands above a panel, by the column that panels differ in; else the value, and a number's axis label.
PANEL_TITLES = {
    "learning_rate": "learning rate {:g}",
    "batch_size": "batch {}",
    "points": "{:,} distinct points",
    "worker_momentum": "worker momentum {:g}",
}


def number(value: float) -> str:
    """Two or three significant digits, without an exponent where that is short."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) < ROUNDING:
        return "0"
    if abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3g}" if abs(value) >= 1e4 else f"{value:.3f}".rstrip("0").rstrip(".")


def setting(rows: pd.DataFrame) -> str:
    """What ran, on how many seeds, and what the bands are, in two or three lines."""
    lines = []
    training = rows[rows["measurement"] == store.TRAINING]
    if len(training):
        columns = ("workers", "batch_size", "learning_rate", "declared_f")
        values = {name: ", ".join(f"{value:g}" for value in sorted(training[name].unique())) for name in columns}
        pairs = training[["dataset", "model"]].drop_duplicates().itertuples(index=False)
        models = ", ".join(f"{style.dataset_title(pair.dataset)} {pair.model}" for pair in pairs)
        lines.append(
            f"{values['workers']} workers, batch {values['batch_size']}, learning rate {values['learning_rate']}, "
            f"declared f = {values['declared_f']}; {models}"
        )
    for measurement, measured in rows.groupby("measurement", sort=False):
        is_training = measurement == store.TRAINING
        seeds = measured.groupby("cell")["seed"].nunique() if is_training else measured[["seed"]].nunique()
        fewest, most = seeds.min(), seeds.max()
        name = "" if len(measured) == len(rows) else f"{measurement}: "
        band = " and 95 % bootstrap band" if most > 1 else ""
        count = f"{most}" if fewest == most else f"{fewest} to {most}"
        folds = ", each with its own cross-validation fold" if is_training else ""
        lines.append(f"{name}mean{band} over {count} seed{'s' if most > 1 else ''}{folds}")
    return "\n".join(lines)


def with_occurrence(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with who misbehaves, and how often, in words, and the `share` of all workers' rounds that it spoils."""

    def occurrence(row: Any) -> str:
        if row.fault_rate:
            return f"anyone, 1 in {1 / row.fault_rate:,.0f} rounds"
        return f"{row.byzantine} of {row.workers}, always" if row.byzantine else "nobody"

    return rows.assign(
        share=rows["fault_rate"].where(rows["fault_rate"] > 0, rows["byzantine"] / rows["workers"]),
        occurrence=[occurrence(row) for row in rows.itertuples()],
    )


def attackers(row: Any) -> str:
    """ "none", "45 % omniscient", or "bit-flip at rate 0.01"."""
    if row.fault_rate:
        return f"{row.attack} at rate {row.fault_rate:g}"
    return f"{row.byzantine_fraction * 100:.0f} % {row.attack}" if row.byzantine else "none"


def byzantine_share(rows: pd.DataFrame) -> str:
    """ "0 % Byzantine", or "33 % Byzantine (6 of 20, gaussian)", of rows that agree in it."""
    if not len(rows):
        return "not run"
    first = rows.iloc[0]
    count = f" ({first['byzantine']} of {first['workers']}, {first['attack']})" if first["byzantine"] else ""
    return f"{first['byzantine_fraction'] * 100:.0f} % Byzantine{count}"


def single_machine(row: Any) -> str:
    """What a cell of one worker is called beside those of many."""
    return f"one machine alone, {row.batch_size} a step"


def curve(cell: pd.DataFrame, panel: pd.DataFrame, attacks: bool = False, lengths: bool = True) -> str:
    """The rule of a cell, and what tells it from the other cells of its panel.

    attacks: whether the label says who attacks; lengths: whether it says for how long the cells run.
    """
    first = cell.iloc[0]
    if first["workers"] == 1 and panel["workers"].nunique() > 1:
        return f"{single_machine(first)}, {first['rounds']:,} rounds"
    panel = panel[(panel["workers"] > 1) == (first["workers"] > 1)]
    notes = [attackers(first)] if attacks else []
    notes += options(first["aggregator_options"])
    for column in DISTINCTIONS:
        if panel[column].nunique() > 1 and (lengths or column not in LENGTHS):
            notes.append(note(column, first[column]))
    if panel.loc[panel["attack"] == first["attack"], "attack_options"].nunique() > 1:
        notes += options(first["attack_options"])
    if first["outside_guarantee"]:
        notes.append("outside its guarantee")
    if cell["diverged"].any():
        notes.append(f"{cell[cell['diverged']]['seed'].nunique()} of {cell['seed'].nunique()} seeds diverged")
    return with_notes(first["aggregator"], notes)


def options(text: str, without: Iterable[str] = ()) -> list[str]:
    """ "m = 5" for each of the options that a row holds as JSON text."""
    return [f"{name} = {value}" for name, value in json.loads(text).items() if name not in without]


def strength(attack_options: str) -> float:
    """The option that says how strong an attack is; NaN where it has none."""
    values = json.loads(attack_options)
    return next((float(values[name]) for name in STRENGTHS if name in values), math.nan)


def note(column: str, value: Any) -> str:
    """What a row has of its own in a column, in a word or two."""
    if column in ("aggregator_options", "attack_options"):
        return ", ".join(options(value, without=STRENGTHS))
    if column == "attack":
        return "" if value == "none" else value
    text = value if isinstance(value, str) else f"{value:g}"
    return f"{SHORT_NAMES.get(column, column)} {text}"


def with_notes(name: str, notes: Iterable[str]) -> str:
    """ "krum (n = 40, f = 18)"."""
    notes = [one for one in notes if one]
    return f"{name} ({', '.join(notes)})" if notes else name


def panel(dataset: str, column: str, value: Any) -> str:
    """What stands above a panel of a data set and a value of the column that panels differ in."""
    title = style.dataset_title(dataset)
    if column == "dataset":
        return title
    usual = "{}" if isinstance(value, str) else f"{{:g}} {style.AXIS_LABELS.get(column, column)}"
    return f"{title}, {PANEL_TITLES.get(column, usual).format(value)}"
