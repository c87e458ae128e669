"""The scorecard: every claim of experiments/claims.yaml, evaluated from the parquet files alone.

A claim's quantity has one value per seed (differences and ratios are taken seed by seed, over the seeds that both sides
have), hence a mean and a 95 % interval over seeds. The claim holds if the whole interval passes its test, fails if the
whole interval lies on the other side, and is undecided otherwise. A claim about several groups of rows (`by`) shows the
one that comes out worst, with an interval so wide that those of all groups together hold their means 95 % of the time.
With `crossing`, a column that is swept, the quantity is where along it `of` minus `minus` first rises above zero
(`statistics.crossing`).
"""

import itertools
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from krum.errors import InputError, unknown
from krum.simulation.parameters import public_name
from krum.suite import experiment, probes, reading, statistics, store, theory
from krum.suite.experiment import Experiment
from krum.suite.figures.style import NAMES

CLAIMS = experiment.EXPERIMENTS / "claims.yaml"
WORST_FIRST = ("fails", "undecided", "holds")
COLUMNS = (
    *("claim", "experiment", "source", "sentence", "quantity", "test"),
    *("value", "low", "high", "seeds", "where", "verdict"),
    "p",  # the least share of misses (`statistics.MISSES`) at which the claim would still be decided
    "survives",  # whether the verdict stands if all claims of its source are tested together (Holm 1979)
    "least_difference",  # half the interval: how far from its threshold a mean must lie to be decided
    *("low_corrected", "high_corrected"),  # the interval if training folds share data (Nadeau and Bengio 2003)
)
FEWEST_SEEDS = 10  # that a published verdict may rest on
CERTAIN = 1e-12  # a smaller p is not looked for
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
    entries = reading.read_checked(path, "claims")["claims"]
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
            titles = each[key] if isinstance(each[key], Mapping) else NAMES
            words[key.capitalize()] = titles.get(value, str(value))
        quantity = {"of": {}, "minus_at": entry["quantity"].get("at", "last"), **entry["quantity"]}
        for side in ("of", "minus", "over"):
            if side in quantity:
                quantity[side] = {key: _public(key, value) for key, value in {**chosen, **quantity[side]}.items()}
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


def _public(column: str, value: Any) -> Any:
    """A selection's value with the public names; one that is unknown is left, since rows of probes have others."""
    if isinstance(value, list):
        return [_public(column, item) for item in value]
    with suppress(InputError):
        return public_name(column, value)
    return value


def _filled(text: str, words: Mapping[str, str], where: str) -> str:
    """The text with the words in place of their names in braces."""

    def _word(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise InputError(f"{where}: {unknown('word in braces', match[1], words)}")
        return words[match[1]]

    return re.sub(r"\{(\w+)\}", _word, text)


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
            raise InputError(f"{where}: {unknown('experiment', claim.experiment, experiments)}")
        spec = experiments[claim.experiment]
        if claim.measurement == store.TRAINING:
            _check_training(claim, spec, where)
        else:
            _check_probe(claim, spec, where)
        runs = [run for run in spec.measured if getattr(run, "name", store.TRAINING) == claim.measurement]
        fewest = min(run.seeds for run in runs)
        if fewest < FEWEST_SEEDS and "seeds" not in spec.overrides:
            raise InputError(f"{where}: {spec.name} has {fewest} seeds; give at least {FEWEST_SEEDS} for a verdict")


def _check_training(claim: Claim, spec: Experiment, where: str) -> None:
    """Refuse what no training run of the experiment will have recorded: each group of a side is one cell."""
    if not spec.cells:
        raise InputError(f"{where}: {spec.name} has no training runs; name one of its probes as measurement")
    if claim.crossing is not None and claim.minus is None:
        raise InputError(f"{where}: minus is missing; a crossing is one of two families of cells")
    cells = pd.DataFrame([store.constants(cell) for cell in spec.cells], dtype=object)  # quick to make
    _check_columns(claim, where, set(cells), set(store.NUMBERS))
    of = _selected(cells, claim.of, f"{where}: of")
    for side, selection, at in claim.sides:
        rows = _selected(cells, selection, f"{where}: {side}")
        columns = claim.group_columns(selection)
        groups, needed = ([tuple(row) for row in frame[columns].to_numpy(dtype=object)] for frame in (rows, of))
        if (several := max(map(groups.count, groups))) > 1:
            raise InputError(
                f"{where}: {side}: {several} cells of {spec.name} have {_listed(selection)}; "
                f"say more, or name what they differ in under by"
            )
        for group in needed:
            if group not in groups:
                missing = _listed(dict(zip(columns, group, strict=True)))
                raise InputError(f"{where}: {side}: no cell with {missing}, which `of` has")
        # In a run with other rounds, the last one that was recorded by then stands for a round that is named.
        if isinstance(at, int) and {"rounds", "evaluate_every"}.isdisjoint(spec.overrides):
            is_recorded = (at <= rows["rounds"]) & ((at % rows["evaluate_every"] == 0) | (at == rows["rounds"]))
            if not is_recorded.all():
                raise InputError(f"{where}: round {at} is not recorded; give a multiple of evaluate_every")


def _check_probe(claim: Claim, spec: Experiment, where: str) -> None:
    """Refuse what no row of the experiment's probe will have."""
    options = [probes.all_options(one.name, dict(one.options)) for one in spec.probes if one.name == claim.measurement]
    if not options:
        raise InputError(f"{where}: {spec.name} has no probe {claim.measurement!r}")
    columns = {"seed": int, **probes.PROBES[claim.measurement].columns}
    _check_columns(claim, where, set(columns), {name for name, kind in columns.items() if kind is not str})
    for side, selection, at in claim.sides:
        if isinstance(at, int) or at == "first":
            raise InputError(f"{where}: at: found {at!r}; rows of a probe are in no order: select some under of")
        chosen = {key: value for key, value in selection.items() if key in options[0]}
        _selected(pd.DataFrame(options), chosen, f"{where}: {side}")


def _check_columns(claim: Claim, where: str, columns: set[str], numbers: set[str]) -> None:
    """Refuse a quantity that is no number, and groups and selections by columns that rows do not have."""
    numbers = numbers | {name for name, (needs, _) in DERIVED.items() if needs <= numbers}
    asked = [(key, numbers) for key in (claim.column, claim.slope, claim.crossing) if key is not None]
    asked += [(key, columns) for key in (*claim.by, *(key for _, selection, _ in claim.sides for key in selection))]
    for key, known in asked:
        if key not in known:
            raise InputError(f"{where}: {unknown('column', key, sorted(known))}")


# ------------------------------------------------------------------------------------------------------- evaluation


def evaluate(claims: Sequence[Claim], results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per claim: its value, interval and verdict. `results`: the rows of each experiment that claims name.

    Raises InputError where rows lack a column that a claim needs.
    """
    rows = []
    for claim in claims:
        try:
            rows.append(_scored(claim, results[claim.experiment]))
        except KeyError as error:
            raise InputError(f"claims: {claim.name}: results of {claim.experiment} have no column {error}") from None
    scorecard = pd.DataFrame(rows, columns=list(COLUMNS))
    scorecard["survives"] = scorecard.groupby("source")["p"].transform(surviving).astype(bool)
    return scorecard


def _scored(claim: Claim, rows: pd.DataFrame) -> dict[str, Any]:
    """A claim's row of the scorecard: what the worst of its groups shows."""
    rows = store.of_measurement(rows, claim.measurement)
    groups: list[dict] = [{}]
    if claim.by:
        of = _selected(rows, claim.of, f"claims: {claim.name}")
        groups = of[list(claim.by)].drop_duplicates().to_dict("records")
    quantities = {_listed(group): _quantity(claim, rows, group) for group in groups}

    def worst(misses: float) -> dict[str, Any]:
        """What the worst group shows; so often at most does any of the groups' intervals miss (Bonferroni)."""
        measured = [
            {**_measured(quantity, misses / len(groups), claim.bounds), "where": where}
            for where, quantity in quantities.items()
        ]
        return min(measured, key=lambda one: (WORST_FIRST.index(one["verdict"]), one["margin"]))

    shown = worst(statistics.MISSES)
    widened = math.nan
    if claim.measurement == store.TRAINING and claim.crossing is None:
        # Of the variance of a mean over n folds, 1 / n becomes 1 / n + (held-out samples) / (training samples).
        widened = math.sqrt(1 + shown["seeds"] / (rows["folds"].max() - 1))
    return {
        "claim": claim.name,
        "experiment": claim.experiment,
        "source": claim.source,
        "sentence": claim.sentence,
        "quantity": claim.description,
        "test": ", ".join(f"{key} {value}" for key, value in claim.test.items()),
        **shown,
        "where": f"worst of {len(groups)}: {shown['where']}" if len(groups) > 1 else shown["where"],
        "p": _least(lambda misses: worst(misses)["verdict"] != "undecided"),
        "least_difference": (shown["high"] - shown["low"]) / 2,
        "low_corrected": shown["value"] - widened * (shown["value"] - shown["low"]),
        "high_corrected": shown["value"] + widened * (shown["high"] - shown["value"]),
    }


def _quantity(claim: Claim, rows: pd.DataFrame, group: dict[str, Any]) -> pd.Series | pd.DataFrame:
    """The quantity in one group, by seed; of a crossing, what crosses zero, by seed and swept value."""
    sides = {side: _per_seed(claim, rows, selection, at, group) for side, selection, at in claim.sides}
    values = sides["of"]
    for side, combine in (("minus", operator.sub), ("over", operator.truediv)):
        if side in sides:
            values = combine(*values.align(sides[side], join="inner"))
    return values if claim.crossing is None else values.unstack(claim.crossing)


def _measured(quantity: pd.Series | pd.DataFrame, misses: float, bounds: tuple[float, float]) -> dict[str, Any]:
    """A quantity's value and interval, and the verdict on it."""
    if isinstance(quantity, pd.Series):
        value, low, high = map(float, statistics.band(quantity.to_numpy(), misses))
    else:
        value, low, high = statistics.crossing(quantity.columns.to_numpy(), quantity.to_numpy(), misses)
    verdict, margin = judged(low, high, bounds)
    return {"value": value, "low": low, "high": high, "seeds": len(quantity), "verdict": verdict, "margin": margin}


def _least(decided: Callable[[float], bool]) -> float:
    """The least share of misses at which a claim is decided; 1 where it never is."""
    least, most = CERTAIN, 1.0
    if decided(least):
        return least
    for _ in range(30):
        middle = math.sqrt(least * most)
        least, most = (least, middle) if decided(middle) else (middle, most)
    return most


def surviving(p: pd.Series) -> pd.Series:
    """Which of some claims are decided although all are tested: so that one wrong verdict is rare (Holm 1979)."""
    ordered = p.sort_values(kind="stable")
    return (ordered * np.arange(len(p), 0, -1)).cummax().reindex(p.index) < statistics.MISSES


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
    group = {key: value for key, value in group.items() if key in claim.group_columns(selection)}
    rows = _selected(rows, {**selection, **group}, f"claims: {claim.name}")
    values = DERIVED[claim.column][1](rows) if claim.column in DERIVED else rows[claim.column]
    rows = rows.assign(value_=values.astype(float))
    if claim.slope is not None:
        logarithms = np.log(rows[[claim.slope, "value_"]]).groupby(rows["seed"])
        return logarithms.apply(lambda points: np.polyfit(points[claim.slope], points["value_"], 1)[0])  # least squares
    if claim.measurement == store.TRAINING:
        if at in ("last", "first") or isinstance(at, int):
            # In a run with fewer rounds, the last one that was recorded by then.
            wanted = {"last": math.inf, "first": 0}.get(str(at), at)
            rows = rows[rows["round"] == rows.loc[rows["round"] <= wanted, "round"].max()]
        elif at == "mean":
            rows = rows[rows["round"] > 0]
    reduce = {"least": "min", "greatest": "max"}.get(str(at), "mean")
    return rows.groupby(["seed"] if claim.crossing is None else ["seed", claim.crossing])["value_"].agg(reduce)


def _selected(rows: pd.DataFrame, selection: Selection, where: str) -> pd.DataFrame:
    """The rows that have the selection's values; InputError where none has. Options are rows' texts in JSON."""
    for key, wanted in selection.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        texts = [json.dumps(one, sort_keys=True) if isinstance(one, Mapping) else one for one in values]
        rows = rows[rows[key].isin(texts)]
    if not len(rows):
        raise InputError(f"{where}: no row has {_listed(selection)}")
    return rows


def _listed(chosen: Selection) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items()
    )
