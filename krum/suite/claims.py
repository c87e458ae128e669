"""The scorecard: every claim of experiments/claims.yaml, evaluated from the parquet files alone.

A claim names an experiment, which of its rows to look at, a quantity, and a test. The quantity has one value per seed
(each seed holds out a fold of its own), hence a mean and a 95 % bootstrap interval over seeds; the verdict follows
from the interval alone:

    holds      the whole interval passes the test
    fails      the whole interval lies on the other side
    undecided  it straddles the threshold, or there is only one seed

With `crossing`, a column that is swept, the quantity is instead where along it the difference `of` minus `minus` first
rises above zero, with the interval of that place (`krum.statistics.crossing`).

Differences and ratios are taken seed by seed, over the seeds that both sides have.

A claim about several cells (`by`) holds if it holds in each, and shows the one that comes out worst. Probes that are no
training run have seeds, and no folds.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krum.errors import InputError, unknown
from krum.simulation.cell import Cell
from krum.suite import experiment, probes, store, theory
from krum.suite.experiment import Experiment, Probe

if TYPE_CHECKING:
    import pandas as pd

CLAIMS = experiment.EXPERIMENTS / "claims.yaml"
VERDICTS = ("holds", "fails", "undecided")
COLUMNS = (
    "claim",
    "experiment",
    "source",
    "sentence",
    "quantity",
    "test",
    "value",
    "low",
    "high",
    "seeds",
    "where",
    "verdict",
)


@dataclass(frozen=True)
class Claim:
    """One entry of claims.yaml."""

    name: str
    experiment: str
    source: str  # paper, supplement, review or ours
    sentence: str
    means: str  # the quantity in words
    column: str
    at: str | int  # last, first, mean (without the first), least, greatest over the recorded rounds; or a round
    minus_at: str | int  # the same for `minus`
    measurement: str
    of: Mapping[str, Any]
    minus: Mapping[str, Any] | None
    over: Mapping[str, Any] | None
    slope: str | None
    crossing: str | None
    by: tuple[str, ...]
    test: Mapping[str, Any]

    @property
    def apart(self) -> tuple[str, ...]:
        """The columns that tell the cells of `of` apart."""
        return self.by if self.crossing is None else (*self.by, self.crossing)


DERIVED: dict[str, tuple[frozenset[str], Callable[["pd.DataFrame"], "pd.Series"]]] = {  # from which columns, and how
    # how much worse than always answering the most frequent class
    "above_majority": (
        frozenset({"test_error", "majority_error"}),
        lambda rows: rows["test_error"] - rows["majority_error"],
    ),
    "condition": (frozenset({"workers", "declared_f", "gradient_noise", "gradient_norm"}), theory.condition),
    # how far <E Krum, g> / ||g||^2 lies above Proposition 1's bound
    "slack": (frozenset({"inner_product", "bound"}), lambda rows: rows["inner_product"] - rows["bound"]),
}


def load(path: Path = CLAIMS) -> list[Claim]:
    """The claims, checked against the schema. Raises InputError."""
    if not path.exists():
        return []
    document = experiment.read_checked(path, "claims")
    claims = []
    for entry in document["claims"]:
        quantity = entry["quantity"]
        claims.append(
            Claim(
                name=entry["name"],
                experiment=entry["experiment"],
                source=entry["source"],
                sentence=" ".join(entry["sentence"].split()),
                means=entry["means"],
                column=quantity["column"],
                at=quantity.get("at", "last"),
                minus_at=quantity.get("minus_at", quantity.get("at", "last")),
                measurement=quantity.get("measurement", store.TRAINING),
                of=quantity.get("of", {}),
                minus=quantity.get("minus"),
                over=quantity.get("over"),
                slope=quantity.get("slope"),
                crossing=quantity.get("crossing"),
                by=tuple(quantity.get("by", [])),
                test=entry["test"],
            )
        )
    names = [claim.name for claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: the name {name!r} is given to {names.count(name)} claims; give each its own")
    return claims


def untouched(claims: Sequence[Claim], overrides: Mapping[str, Any]) -> list[Claim]:
    """The claims that select no cells by a parameter which is overridden."""
    return [
        claim
        for claim in claims
        if not {*claim.of, *(claim.minus or ()), *(claim.over or ()), *claim.apart} & set(overrides)
    ]


def check(claims: Sequence[Claim], experiments: Mapping[str, Experiment], path: Path = CLAIMS) -> None:
    """Refuse claims about experiments, cells or columns that are not there, before anything runs: InputError."""
    for claim in claims:
        where = f"{path}: {claim.name}"
        least, most = _range(claim.test)
        if least >= most:
            raise InputError(f"{where}: test: {claim.test} holds for nothing; give the smaller number first")
        if claim.experiment not in experiments:
            raise InputError(f"{where}: experiment {claim.experiment!r} is not there (known: {', '.join(experiments)})")
        spec = experiments[claim.experiment]
        if claim.measurement != store.TRAINING:
            _check_on_probe(claim, [probe for probe in spec.probes if probe.name == claim.measurement], where)
            continue
        if not spec.cells:
            raise InputError(f"{where}: {claim.experiment} has no training runs; name one of its probes as measurement")
        _check_numeric((claim.column, claim.slope), set(store.NUMBERS), where)
        if claim.crossing is not None and claim.minus is None:
            raise InputError(f"{where}: minus is missing; a crossing is one of two families of cells")
        swept = next((key for key in claim.apart if key in claim.of and not isinstance(claim.of[key], list)), None)
        if swept is not None:
            raise InputError(
                f"{where}: of: {swept} is fixed here and swept under by; give a list of values or leave it out"
            )
        # In a run with other rounds, the last one that was recorded by then stands for a round that is named.
        named = {"rounds", "evaluate_every"}.isdisjoint(spec.overrides)
        groups = _groups(claim, spec.cells, claim.of, f"{where}: of", claim.at if named else "last")
        for part, chosen, at in (("minus", claim.minus, claim.minus_at), ("over", claim.over, claim.at)):
            if chosen is None:
                continue
            found = _groups(claim, spec.cells, chosen, f"{where}: {part}", at if named else "last")
            for group in groups:
                here = {key: group[key] for key in _apart(claim, chosen)}
                if here not in found:
                    raise InputError(f"{where}: {part}: no cell with {_listed(here)}, which `of` has")


def _check_numeric(names: Iterable[str | None], numbers: set[str], where: str) -> None:
    numeric = numbers | {name for name, (needed, _) in DERIVED.items() if needed <= numbers}
    for name in names:
        if name is not None and name not in numeric:
            raise InputError(f"{where}: {unknown('column', name, sorted(numeric))}")


def _check_on_probe(claim: Claim, asked: Sequence[Probe], where: str) -> None:
    """Refuse what no row of a probe will have."""
    if not asked:
        raise InputError(f"{where}: {claim.experiment} has no probe {claim.measurement!r}")
    columns = {"seed": int, **probes.PROBES[claim.measurement].columns}
    numbers = {name for name, kind in columns.items() if kind is not str}
    _check_numeric((claim.column, claim.slope, claim.crossing), numbers, where)
    for at in (claim.at, claim.minus_at):
        if isinstance(at, int) or at == "first":
            raise InputError(f"{where}: at: found {at!r}; rows of a probe are in no order: select some under of")
    options = [probes.all_options(probe.name, dict(probe.options)) for probe in asked]
    selections = {"of": claim.of, "minus": claim.minus or {}, "over": claim.over or {}}
    for part, keys in {**selections, "by": claim.by}.items():
        for key in keys:
            if key not in columns:
                raise InputError(f"{where}: {part}: {unknown('column', key, sorted(columns))}")
    for part, chosen in selections.items():
        fixed = {key: value for key, value in chosen.items() if key in options[0]}
        if not any(all(_equal(its[key], value) for key, value in fixed.items()) for its in options):
            raise InputError(
                f"{where}: {part}: no probe {claim.measurement} of {claim.experiment} has {_listed(fixed)}"
            )


def _apart(claim: Claim, chosen: Mapping[str, Any]) -> list[str]:
    """What tells the chosen cells apart; what a selection fixes, such as the attack of a reference, it does not."""
    return [key for key in claim.apart if not isinstance(chosen.get(key, []), str | int | float | Mapping)]


def _groups(
    claim: Claim, cells: Sequence[Cell], chosen: Mapping[str, Any], where: str, at: str | int
) -> list[dict[str, Any]]:
    """The values of `by` that the chosen cells have, one cell each; a round `at` must be recorded."""
    table = [store.constants(cell) for cell in cells]
    for key in (*chosen, *claim.apart):
        if key not in table[0]:
            raise InputError(f"{where}: rows have no column {key!r}")
    rows = [row for row in table if all(_equal(row[key], value) for key, value in chosen.items())]
    if not rows:
        raise InputError(f"{where}: no cell of {claim.experiment} has {_listed(chosen)}")
    if isinstance(at, int):
        for row in rows:
            if at > row["rounds"] or (at % row["evaluate_every"] and at != row["rounds"]):
                raise InputError(
                    f"{where}: round {at} is not recorded; cells are evaluated every {row['evaluate_every']}"
                )
    groups = [{key: row[key] for key in _apart(claim, chosen)} for row in rows]
    several = next((group for group in groups if groups.count(group) > 1), None)
    if several is not None:
        raise InputError(
            f"{where}: {groups.count(several)} cells of {claim.experiment} have {_listed(chosen)}; "
            f"say more, or name what they differ in under by"
        )
    return groups


def evaluate(claims: Sequence[Claim], results: Mapping[str, "pd.DataFrame"]) -> "pd.DataFrame":
    """One row per claim: its value, interval and verdict. `results`: the rows of each experiment that claims name."""
    import pandas as pd

    return pd.DataFrame([_evaluate(claim, results[claim.experiment]) for claim in claims], columns=list(COLUMNS))


def verdict(low: float, high: float, test: Mapping[str, Any]) -> str:
    """What an interval says about `{above: a}`, `{below: b}` or `{between: [a, b]}`."""
    least, most = _range(test)
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if (low > least or least == -math.inf) and (high < most or most == math.inf):
        return "holds"
    if high < least or low > most:
        return "fails"
    return "undecided"


def _range(test: Mapping[str, Any]) -> tuple[float, float]:
    if "between" in test:
        return test["between"][0], test["between"][1]
    return test.get("above", -math.inf), test.get("below", math.inf)


def _evaluate(claim: Claim, rows: "pd.DataFrame") -> dict[str, Any]:
    from krum.suite.statistics import band, crossing

    rows = store.of_measurement(rows, claim.measurement)
    if claim.column not in rows and claim.column not in DERIVED:
        raise InputError(f"claims: {claim.name}: rows of {claim.experiment} have no column {claim.column!r}")
    groups: list[tuple] = [()]
    if claim.by:
        groups = list(
            dict.fromkeys(_selected(claim, rows, claim.of)[list(claim.by)].itertuples(index=False, name=None))
        )
    found = []
    for group in groups:
        here = dict(zip(claim.by, group, strict=True))
        values = _per_seed(claim, rows, claim.of, here, claim.at)
        if claim.minus is not None:
            values, other = values.align(_per_seed(claim, rows, claim.minus, here, claim.minus_at), join="inner")
            values = values - other
        if claim.over is not None:
            values, other = values.align(_per_seed(claim, rows, claim.over, here, claim.at), join="inner")
            values = values / other
        if claim.crossing is None:
            value, low, high = (float(part[0]) for part in band(values.to_numpy()[:, None]))
        else:
            values = values.unstack(claim.crossing)
            value, low, high = crossing(values.columns.to_numpy(), values.to_numpy())
        found.append(
            (verdict(low, high, claim.test), _margin(low, high, claim.test), value, low, high, len(values), here)
        )
    order = {"fails": 0, "undecided": 1, "holds": 2}
    worst = min(found, key=lambda one: (order[one[0]], one[1]))
    return {
        "claim": claim.name,
        "experiment": claim.experiment,
        "source": claim.source,
        "sentence": claim.sentence,
        "quantity": claim.means,
        "test": ", ".join(f"{key} {value}" for key, value in claim.test.items()),
        "value": worst[2],
        "low": worst[3],
        "high": worst[4],
        "seeds": worst[5],
        "where": f"worst of {len(found)}: {_listed(worst[6])}" if len(found) > 1 else _listed(worst[6]),
        "verdict": worst[0],
    }


def _margin(low: float, high: float, test: Mapping[str, Any]) -> float:
    """How far inside the test's range the interval lies; negative outside."""
    least, most = _range(test)
    if math.isnan(low) or math.isnan(high):
        return -math.inf
    above, below = (
        math.inf if math.isinf(end) else inside for end, inside in ((least, low - least), (most, most - high))
    )
    return min(above, below)


def _selected(claim: Claim, rows: "pd.DataFrame", chosen: Mapping[str, Any]) -> "pd.DataFrame":
    for key, value in chosen.items():
        if key not in rows:
            raise InputError(f"claims: {claim.name}: rows of {claim.experiment} have no column {key!r}")
        rows = rows[[_equal(found, value) for found in rows[key]]]
    if not len(rows):
        raise InputError(f"claims: {claim.name}: no row of {claim.experiment} has {_listed(chosen)}")
    return rows


def _per_seed(
    claim: Claim,
    rows: "pd.DataFrame",
    chosen: Mapping[str, Any],
    here: Mapping[str, Any],
    at: str | int,
) -> "pd.Series":
    """One value per seed, in the order of seeds, of the chosen rows in one group of `by`."""
    apart = _apart(claim, chosen)
    rows = _selected(claim, rows, {**chosen, **{key: value for key, value in here.items() if key in apart}})
    values = DERIVED[claim.column][1](rows) if claim.column in DERIVED else rows[claim.column]
    rows = rows.assign(value_=values.astype(float))
    if claim.slope is not None:
        return rows.groupby("seed").apply(lambda of_seed: _slope(of_seed, claim.slope), include_groups=False)
    if claim.measurement == store.TRAINING:
        if at in ("last", "first") or isinstance(at, int):
            wanted = {"last": math.inf, "first": 0}.get(str(at), at)
            # In a run with fewer rounds, the last one that was recorded by then.
            rows = rows[rows["round"] == rows.loc[rows["round"] <= wanted, "round"].max()]
        elif at == "mean":
            rows = rows[rows["round"] > 0]
    reduce = {"least": "min", "greatest": "max"}.get(str(at), "mean")
    return rows.groupby(["seed"] if claim.crossing is None else ["seed", claim.crossing])["value_"].agg(reduce)


def _slope(rows: "pd.DataFrame", against: str | None) -> float:
    """The exponent e of `value ~ against^e`, by least squares on logarithms."""
    return float(np.polyfit(np.log(rows[against]), np.log(rows["value_"]), 1)[0])


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_equal(found, one) for one in wanted)
    if isinstance(wanted, Mapping):  # options, which rows hold as JSON text
        return found == json.dumps(dict(wanted), sort_keys=True)
    if isinstance(wanted, int | float) and isinstance(found, int | float):
        return math.isclose(found, wanted, rel_tol=1e-9)
    return bool(found == wanted)


def _listed(chosen: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items()
    )
