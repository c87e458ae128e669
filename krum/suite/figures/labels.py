"""Words from rows: numbers, what ran, who attacks, and what tells the lines of a panel apart."""

import json
import math
from collections.abc import Collection
from typing import Any

import pandas as pd

from krum.suite import store
from krum.suite.figures import style

ROUNDING = 1e-12  # what floating-point sums leave of zero
STRENGTHS = ("scale", "length", "epsilon", "factor", "deviations", "standard_deviation")  # options of attacks
ATTACKERS = ("attack", "byzantine", "fault_rate")
RECORDING = ("evaluate_every", "seeds", "folds")  # change no run, only what is seen of it
# What a label or a title says of a column in which lines or panels differ.
WORDS = {
    "model": "{}",
    "workers": "n = {}",
    "declared_f": "f = {}",
    "batch_size": "batch {}",
    "learning_rate": "learning rate {}",
    "worker_momentum": "worker momentum {}",
    "points": "{} distinct points",
    "rounds": "{} rounds",
    "seeds": "{} seeds",
    "folds": "{} folds",
    "evaluate_every": "evaluated every {} rounds",
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
        models = ", ".join(f"{style.name(pair.dataset)} {pair.model}" for pair in pairs)
        lines.append(
            f"{values['workers']} workers, batch {values['batch_size']}, learning rate {values['learning_rate']}, "
            f"declared f = {values['declared_f']}; {models}"
        )
    for measurement, measured in rows.groupby("measurement", sort=False):
        is_training = measurement == store.TRAINING
        seeds = measured.groupby("cell")["seed"].nunique() if is_training else measured[["seed"]].nunique()
        fewest, most = seeds.min(), seeds.max()
        name = "" if len(measured) == len(rows) else f"{measurement}: "
        band = " and pointwise 95 % interval" if most > 1 else ""
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


def single_machine(row: Any) -> str:
    """What a cell of one worker is called beside those of many."""
    return f"one machine alone, {row.batch_size} a step"


def line(rows: pd.DataFrame, panel: pd.DataFrame, elsewhere: Collection[str] = ()) -> str:
    """The rule of some rows, and what tells them from the other lines of their panel, as "Krum (n = 40, f = 18)".

    elsewhere: the columns that an axis or a title shows, so that the label need not.
    """
    first = rows.iloc[0]
    if first["workers"] == 1 and panel["workers"].nunique() > 1 and "workers" not in elsewhere:
        return f"{single_machine(first)}, {first['rounds']:,} rounds"
    panel = panel[(panel["workers"] > 1) == (first["workers"] > 1)]
    differing = [column for column in (*ATTACKERS, *WORDS) if column not in elsewhere and panel[column].nunique() > 1]
    notes = options(first["aggregator_options"])
    is_attacked = bool(first["byzantine"] or first["fault_rate"])
    if not set(differing).isdisjoint(ATTACKERS) or (is_attacked and "attack" not in elsewhere):
        notes.append(_attackers(first, elsewhere))
    if "attack_options" not in elsewhere:
        others = [options(text) for text in panel.loc[panel["attack"] == first["attack"], "attack_options"].unique()]
        notes += [one for one in options(first["attack_options"]) if not all(one in other for other in others)]
    notes += [_words(column, first[column]) for column in differing if column in WORDS and pd.notna(first[column])]
    if rows["outside_guarantee"].all():
        notes.append("outside its guarantee")
    if rows["cell"].nunique() == 1 and rows["diverged"].any():
        notes.append(f"{rows[rows['diverged']]['seed'].nunique()} of {rows['seed'].nunique()} seeds diverged")
    rule = style.name(first["aggregator"])
    return f"{rule} ({', '.join(notes)})" if notes else rule


def _attackers(row: pd.Series, elsewhere: Collection[str] = ()) -> str:
    """ "no attack", "6 of 20 Gaussian", or "bit flip at rate 0.01"."""
    if not row["byzantine"] and not row["fault_rate"]:
        return style.name("none")
    words = []
    if row["byzantine"] and "byzantine" not in elsewhere:
        words.append(f"{row['byzantine']}" if "workers" in elsewhere else f"{row['byzantine']} of {row['workers']}")
    words.append("Byzantine" if "attack" in elsewhere else style.name(row["attack"]))
    if row["fault_rate"] and "fault_rate" not in elsewhere:
        words.append(f"at rate {row['fault_rate']:g}")
    return " ".join(words)


def _words(column: str, value: Any) -> str:
    if not isinstance(value, str):
        value = f"{int(value):,}" if value == int(value) else f"{value:g}"
    return WORDS[column].format(value)


def options(text: str) -> list[str]:
    """ "m = 5" for each of the options that a row holds as JSON text."""
    return [f"{name} = {value}" for name, value in json.loads(text).items()]


def strength(attack_options: str) -> float:
    """The option that says how strong an attack is; NaN where it has none."""
    values = json.loads(attack_options)
    return next((float(values[name]) for name in STRENGTHS if name in values), math.nan)


def panel(rows: pd.DataFrame, column: str) -> str:
    """What stands above a panel: its data set, and its value of the column that panels differ in."""
    first = rows.iloc[0]
    title, value = style.name(first["dataset"]), first[column]
    if column == "dataset":
        return title
    if column == "attack" and rows["byzantine_fraction"].nunique() == 1 and not rows["fault_rate"].any():
        attackers = f" ({_attackers(first)})" if first["byzantine"] else ""
        return f"{title}, {first['byzantine_fraction'] * 100:.0f} % Byzantine{attackers}"
    if column in WORDS:
        return f"{title}, {_words(column, value)}"
    if isinstance(value, str):
        return f"{title}, {style.name(value)}"
    return f"{title}, {style.AXIS_LABELS.get(column, column)} {value:g}"
