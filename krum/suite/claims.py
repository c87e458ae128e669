"""The scorecard: every claim of experiments/claims.yaml, evaluated from the parquet files alone.

A claim names an experiment, which of its rows to look at, a quantity, and a test. The quantity has one value per seed
(each seed holds out a fold of its own), hence a mean and a 95 % bootstrap interval over seeds; the verdict follows
from the interval alone:

    holds      the whole interval passes the test
    fails      the whole interval lies on the other side
    undecided  it straddles the threshold, or there is only one seed

Differences and ratios are taken seed by seed, over the seeds that both sides have. A claim about several groups of
rows (`by`) holds if it holds in each, and shows the one that comes out worst. With `crossing`, a column that is swept,
the quantity is where along it the difference `of` minus `minus` first rises above zero (`statistics.crossing`).
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from krum.errors import InputError, unknown
from krum.suite import experiment, probes, statistics, store, theory
from krum.suite.experiment import Experiment
from krum.suite.figures.style import DATASET_TITLES

CLAIMS = experiment.EXPERIMENTS / "claims.yaml"
VERDICTS = ("holds", "fails", "undecided")
WORST_FIRST = ("fails", "undecided", "holds")
COLUMNS = (
    *("claim", "experiment", "source", "sentence", "quantity", "test"),
    *("value", "low", "high", "seeds", "where", "verdict"),
)
Selection = Mapping[str, Any]  # columns and the value, or the list of values, that rows must have there


@dataclass(frozen=True)
class Claim:
    """One claim: what is measured, in words and as a selection of rows, and the test that it must pass."""

    name: str
    experiment: str
    source: str  # paper, supplement, review or ours
    sentence: str
    description: str  # the quantity in words
    test: Mapping[str, Any]  # {above: a}, {below: b} or {between: [a, b]}
    column: str
    of: Selection = field(default_factory=dict)
    minus: Selection | None = None
    over: Selection | None = None
    # last, first, mean (without the first), least, greatest over the recorded rounds; or a round
    at: str | int = "last"
    minus_at: str | int = "last"  # the same for `minus`
    measurement: str = store.TRAINING  # or the name of a probe
    slope: str | None = None  # a column: the quantity is the exponent of a power of it
    crossing: str | None = None
    by: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which two numbers, perhaps infinite, the quantity must lie."""
        if "between" in self.test:
            return self.test["between"][0], self.test["between"][1]
        return self.test.get("above", -math.inf), self.test.get("below", math.inf)

    @property
    def sides(self) -> list[tuple[str, Selection, str | int]]:
        """The selections that there are, with their names and their rounds."""
        sides = (("of", self.of, self.at), ("minus", self.minus, self.minus_at), ("over", self.over, self.at))
        return [(name, selection, at) for name, selection, at in sides if selection is not None]

    def group_columns(self, selection: Selection) -> list[str]:
        """The columns that tell a selection's groups apart: those of `by` and `crossing` that it does not fix."""
        columns = self.by if self.crossing is None else (*self.by, self.crossing)
        return [key for key in columns if isinstance(selection.get(key, []), list)]


# Columns that follow from others: which ones, and how.
DERIVED: dict[str, tuple[set[str], Callable[[pd.DataFrame], pd.Series]]] = {
    # how much worse than always answering the most frequent class
    "above_majority": ({"test_error", "majority_error"}, lambda rows: rows["test_error"] - rows["majority_error"]),
    "condition": ({"workers", "declared_f", "gradient_noise", "gradient_norm"}, theory.condition),
    # how far <E Krum, g> / ||g||^2 lies above Proposition 1's bound
    "slack": ({"inner_product", "bound"}, lambda rows: rows["inner_product"] - rows["bound"]),
}


# --------------------------------------------------------------------------------------------------------- reading


def load(path: Path = CLAIMS) -> list[Claim]:
    """The claims, checked against the schema. Raises InputError."""
    if not path.exists():
        return []
    entries = experiment.read_checked(path, "claims")["claims"]
    claims = [claim for entry in entries for claim in _claims_of(entry, f"{path}: {entry['name']}")]
    names = [claim.name for claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: the name {name!r} is given to {names.count(name)} claims; give each its own")
    return claims


def _claims_of(entry: Mapping[str, Any], where: str) -> Iterator[Claim]:
    """An entry's claims: one for each combination of the values under `each`.

    A claim's values stand in all of its selections that do not say otherwise, and in its texts: `{dataset}` becomes
    the value, such as mnist, and `{Dataset}` its title, such as MNIST.
    """
    each = entry.get("each", {})
    for values in itertools.product(*each.values()):
        chosen = dict(zip(each, values, strict=True))
        words = {key: str(value) for key, value in chosen.items()}
        for key, value in chosen.items():
            titles = each[key] if isinstance(each[key], Mapping) else DATASET_TITLES
            words[key.capitalize()] = titles.get(value, str(value))
        quantity = {"of": {}, "minus_at": entry["quantity"].get("at", "last"), **entry["quantity"]}
        quantity |= {side: {**chosen, **quantity[side]} for side in ("of", "minus", "over") if side in quantity}
        source = entry["source"]
        if isinstance(source, Mapping):
            source = next((source[value] for value in values if value in source), None)
        if source is None:
            raise InputError(f"{where}: source: none for {_listed(chosen)}; give paper, supplement, review or ours")
        yield Claim(
            name=_filled(entry["name"], words, f"{where}: name"),
            experiment=entry["experiment"],
            source=source,
            sentence=_filled(" ".join(entry["sentence"].split()), words, f"{where}: sentence"),
            description=_filled(entry["means"], words, f"{where}: means"),
            test=entry["test"],
            **{**quantity, "by": tuple(quantity.get("by", ()))},
        )


def _filled(text: str, words: Mapping[str, str], where: str) -> str:
    """The text with the words in place of their names in braces."""

    def word(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise InputError(f"{where}: {unknown('word in braces', match[1], words)}")
        return words[match[1]]

    return re.sub(r"\{(\w+)\}", word, text)


def untouched(claims: Sequence[Claim], overrides: Mapping[str, Any]) -> list[Claim]:
    """The claims that select no cells by a parameter which is overridden."""
    return [
        claim
        for claim in claims
        if not any({*selection, *claim.group_columns(selection)} & set(overrides) for _, selection, _ in claim.sides)
    ]


# ------------------------------------------------------------------------------------- checks, before anything runs


def check(claims: Sequence[Claim], experiments: Mapping[str, Experiment], path: Path = CLAIMS) -> None:
    """Refuse claims about experiments, cells or columns that are not there: InputError."""
    for claim in claims:
        where = f"{path}: {claim.name}"
        least, most = claim.bounds
        if least >= most:
            raise InputError(f"{where}: test: {claim.test} holds for nothing; give the smaller number first")
        if claim.experiment not in experiments:
            raise InputError(f"{where}: experiment {claim.experiment!r} is not there (known: {', '.join(experiments)})")
        if claim.measurement == store.TRAINING:
            _check_training(claim, experiments[claim.experiment], where)
        else:
            _check_probe(claim, experiments[claim.experiment], where)


def _check_training(claim: Claim, spec: Experiment, where: str) -> None:
    """Refuse what no training run of the experiment will have recorded."""
    if not spec.cells:
        raise InputError(f"{where}: {claim.experiment} has no training runs; name one of its probes as measurement")
    _check_numeric(where, {claim.column, claim.slope}, set(store.NUMBERS))
    if claim.crossing is not None and claim.minus is None:
        raise InputError(f"{where}: minus is missing; a crossing is one of two families of cells")
    # In a run with other rounds, the last one that was recorded by then stands for a round that is named.
    as_written = {"rounds", "evaluate_every"}.isdisjoint(spec.overrides)
    of_rows: list[dict[str, Any]] = []
    for side, selection, at in claim.sides:
        rows = _cells(claim, selection, spec, at if as_written else "last", f"{where}: {side}")
        of_rows = of_rows or rows
        columns = claim.group_columns(selection)
        groups = [tuple(row[key] for key in columns) for row in rows]
        several = max(groups.count(group) for group in groups)
        if several > 1:
            raise InputError(
                f"{where}: {side}: {several} cells of {claim.experiment} have {_listed(selection)}; "
                f"say more, or name what they differ in under by"
            )
        for row in of_rows:
            if tuple(row[key] for key in columns) not in groups:
                missing = _listed({key: row[key] for key in columns})
                raise InputError(f"{where}: {side}: no cell with {missing}, which `of` has")


def _cells(claim: Claim, selection: Selection, spec: Experiment, at: str | int, where: str) -> list[dict[str, Any]]:
    """What is constant in the rows of each selected cell; a round `at` must be recorded in all of them."""
    rows = [store.constants(cell) for cell in spec.cells]
    for key in (*selection, *claim.group_columns(selection)):
        if key not in rows[0]:
            raise InputError(f"{where}: rows have no column {key!r}")
    rows = [row for row in rows if all(_matches(row[key], value) for key, value in selection.items())]
    if not rows:
        raise InputError(f"{where}: no cell of {claim.experiment} has {_listed(selection)}")
    for row in rows if isinstance(at, int) else []:
        if at > row["rounds"] or (at % row["evaluate_every"] and at != row["rounds"]):
            raise InputError(f"{where}: round {at} is not recorded; cells are evaluated every {row['evaluate_every']}")
    return rows


def _check_probe(claim: Claim, spec: Experiment, where: str) -> None:
    """Refuse what no row of the experiment's probe will have."""
    options = [probes.all_options(one.name, dict(one.options)) for one in spec.probes if one.name == claim.measurement]
    if not options:
        raise InputError(f"{where}: {claim.experiment} has no probe {claim.measurement!r}")
    columns = {"seed": int, **probes.PROBES[claim.measurement].columns}
    numbers = {name for name, kind in columns.items() if kind is not str}
    _check_numeric(where, {claim.column, claim.slope, claim.crossing}, numbers)
    for side, selection, at in claim.sides:
        if isinstance(at, int) or at == "first":
            raise InputError(f"{where}: at: found {at!r}; rows of a probe are in no order: select some under of")
        for key in (*selection, *claim.by):
            if key not in columns:
                raise InputError(f"{where}: {side if key in selection else 'by'}: {unknown('column', key, columns)}")
        fixed = {key: value for key, value in selection.items() if key in options[0]}
        if not any(all(_matches(option[key], value) for key, value in fixed.items()) for option in options):
            raise InputError(
                f"{where}: {side}: no probe {claim.measurement} of {claim.experiment} has {_listed(fixed)}"
            )


def _check_numeric(where: str, names: set[str | None], numbers: set[str]) -> None:
    known = numbers | {name for name, (needs, _) in DERIVED.items() if needs <= numbers}
    for name in names - {None} - known:
        raise InputError(f"{where}: {unknown('column', name, sorted(known))}")


# ------------------------------------------------------------------------------------------------------- evaluation


def evaluate(claims: Sequence[Claim], results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per claim: its value, interval and verdict. `results`: the rows of each experiment that claims name."""
    return pd.DataFrame([_scored(claim, results[claim.experiment]) for claim in claims], columns=list(COLUMNS))


def _scored(claim: Claim, rows: pd.DataFrame) -> dict[str, Any]:
    """A claim's row of the scorecard: what the worst of its groups shows."""
    rows = store.of_measurement(rows, claim.measurement)
    groups: list[dict] = [{}]
    if claim.by:
        groups = _selected(claim, rows, claim.of)[list(claim.by)].drop_duplicates().to_dict("records")
    measured = [_measured(claim, rows, group) for group in groups]
    worst = min(measured, key=lambda one: (WORST_FIRST.index(one["verdict"]), one["margin"]))
    return {
        "claim": claim.name,
        "experiment": claim.experiment,
        "source": claim.source,
        "sentence": claim.sentence,
        "quantity": claim.description,
        "test": ", ".join(f"{key} {value}" for key, value in claim.test.items()),
        **worst,
        "where": f"worst of {len(groups)}: {worst['where']}" if len(groups) > 1 else worst["where"],
    }


def _measured(claim: Claim, rows: pd.DataFrame, group: dict[str, Any]) -> dict[str, Any]:
    """The quantity's value and interval in one group, and the verdict on it."""
    values = _per_seed(claim, rows, claim.of, claim.at, group)
    if claim.minus is not None:
        values, other = values.align(_per_seed(claim, rows, claim.minus, claim.minus_at, group), join="inner")
        values = values - other
    if claim.over is not None:
        values, other = values.align(_per_seed(claim, rows, claim.over, claim.at, group), join="inner")
        values = values / other
    if claim.crossing is None:
        value, low, high = (float(end[0]) for end in statistics.band(values.to_numpy()[:, None]))
    else:
        values = values.unstack(claim.crossing)
        value, low, high = statistics.crossing(values.columns.to_numpy(), values.to_numpy())
    verdict, margin = judged(low, high, claim.bounds)
    return {
        **{"value": value, "low": low, "high": high, "seeds": len(values), "where": _listed(group)},
        **{"verdict": verdict, "margin": margin},
    }


def judged(low: float, high: float, bounds: tuple[float, float]) -> tuple[str, float]:
    """The verdict on an interval that must lie within bounds, and how far inside it lies (negative outside)."""
    least, most = bounds
    if math.isnan(low) or math.isnan(high):
        return "undecided", -math.inf
    above = math.inf if math.isinf(least) else low - least
    below = math.inf if math.isinf(most) else most - high
    if above > 0 and below > 0:
        verdict = "holds"
    else:
        verdict = "fails" if high < least or low > most else "undecided"
    return verdict, min(above, below)


def _per_seed(
    claim: Claim, rows: pd.DataFrame, selection: Selection, at: str | int, group: Mapping[str, Any]
) -> pd.Series:
    """One value per seed, in the order of seeds, of a selection's rows in one group."""
    free = claim.group_columns(selection)
    rows = _selected(claim, rows, {**selection, **{key: value for key, value in group.items() if key in free}})
    values = DERIVED[claim.column][1](rows) if claim.column in DERIVED else rows[claim.column]
    rows = rows.assign(value_=values.astype(float))
    if claim.slope is not None:
        return rows.groupby("seed")[[claim.slope, "value_"]].apply(
            lambda points: _exponent(*np.log(points).to_numpy().T)
        )
    if claim.measurement == store.TRAINING:
        if at in ("last", "first") or isinstance(at, int):
            # In a run with fewer rounds, the last one that was recorded by then.
            wanted = {"last": math.inf, "first": 0}.get(str(at), at)
            rows = rows[rows["round"] == rows.loc[rows["round"] <= wanted, "round"].max()]
        elif at == "mean":
            rows = rows[rows["round"] > 0]
    reduce = {"least": "min", "greatest": "max"}.get(str(at), "mean")
    return rows.groupby(["seed"] if claim.crossing is None else ["seed", claim.crossing])["value_"].agg(reduce)


def _exponent(log_x: np.ndarray, log_y: np.ndarray) -> float:
    """The exponent e of `y ~ x^e`, by least squares."""
    return float(np.polyfit(log_x, log_y, 1)[0])


def _selected(claim: Claim, rows: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    for key in (claim.column, *selection):
        if key not in rows and key not in DERIVED:
            raise InputError(f"claims: {claim.name}: rows of {claim.experiment} have no column {key!r}")
    for key, wanted in selection.items():
        rows = rows[rows[key].isin([value for value in rows[key].unique().tolist() if _matches(value, wanted)])]
    if not len(rows):
        raise InputError(f"claims: {claim.name}: no row of {claim.experiment} has {_listed(selection)}")
    return rows


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_matches(value, one) for one in wanted)
    if isinstance(wanted, Mapping):  # options, which rows hold as JSON text
        return value == json.dumps(dict(wanted), sort_keys=True)
    if isinstance(wanted, int | float) and isinstance(value, int | float):
        return math.isclose(value, wanted, rel_tol=1e-9)
    return bool(value == wanted)


def _listed(chosen: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items()
    )
