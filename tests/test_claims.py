"""The scorecard: verdicts follow from intervals, quantities from the rows that a claim names, and from nothing else."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml

from krum.errors import InputError
from krum.suite import claims, experiment, planning, report, store
from krum.suite.experiment import EXPERIMENTS

ROOT = EXPERIMENTS.parent


@pytest.mark.parametrize(
    "low, high, test, expected",
    [
        (0.1, 0.2, {"above": 0}, "holds"),
        (-0.2, -0.1, {"above": 0}, "fails"),
        (-0.1, 0.1, {"above": 0}, "undecided"),
        (-0.2, -0.1, {"below": 0}, "holds"),
        (0.1, 0.2, {"below": 0}, "fails"),
        (-0.1, 0.1, {"below": 0}, "undecided"),
        (-0.01, 0.01, {"between": [-0.02, 0.02]}, "holds"),
        (-0.01, 0.03, {"between": [-0.02, 0.02]}, "undecided"),
        (0.03, 0.04, {"between": [-0.02, 0.02]}, "fails"),
        (-0.04, -0.03, {"between": [-0.02, 0.02]}, "fails"),
        (-0.04, 0.04, {"between": [-0.02, 0.02]}, "undecided"),
        (math.nan, math.nan, {"above": 0}, "undecided"),
        (0.0, 0.0, {"below": 0.001}, "holds"),
        (0.1, math.inf, {"above": 0.05}, "holds"),
        (0.01, math.inf, {"above": 0.05}, "undecided"),
        (math.inf, math.inf, {"below": 0.05}, "fails"),
    ],
)
def test_verdicts(low, high, test, expected):
    assert claims.verdict(low, high, test) == expected


def rows(errors):
    """A frame of two cells, `errors[aggregator]` one value per seed at round 10; twice that at round 0."""
    table = []
    for aggregator, values in errors.items():
        for seed, value in enumerate(values):
            for round_, factor in ((0, 2.0), (10, 1.0)):
                table.append(
                    {
                        "measurement": "training",
                        "aggregator": aggregator,
                        "attack": "none",
                        "attack_options": json.dumps({"scale": 0.5}),
                        "batch_size": 3,
                        "seed": seed,
                        "round": round_,
                        "test_error": factor * value,
                        "majority_error": 0.4,
                    }
                )
    return pd.DataFrame(table)


def claim(**changes):
    entry = {
        "name": "one",
        "experiment": "mine",
        "source": "paper",
        "sentence": "s",
        "means": "q",
        "quantity": {"column": "test_error", "of": {"aggregator": "krum"}},
        "test": {"below": 0.5},
        **changes,
    }
    return entry


def load(tmp_path, *entries):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": list(entries)}))
    return claims.load(path)


DIFFERENCE = {"of": {"aggregator": "krum"}, "minus": {"aggregator": "average"}}
SEEDS = {"krum": [0.1, 0.2, 0.3, 0.4], "average": [0.1, 0.1, 0.1, 0.1]}


@pytest.mark.parametrize(
    "quantity, value",
    [
        ({"column": "test_error", "of": {"aggregator": "krum"}}, 0.25),
        ({"column": "test_error", "at": "first", "of": {"aggregator": "krum"}}, 0.5),
        ({"column": "test_error", "at": 10, "of": {"aggregator": "krum"}}, 0.25),
        ({"column": "test_error", "at": "mean", "of": {"aggregator": "krum"}}, 0.25),
        ({"column": "test_error", "at": "greatest", "of": {"aggregator": "krum"}}, 0.5),
        ({"column": "test_error", "at": "least", "of": {"aggregator": "krum"}}, 0.25),
        ({"column": "above_majority", "of": {"aggregator": "krum"}}, -0.15),
        ({"column": "test_error", "of": {"aggregator": "krum"}, "minus": {"aggregator": "average"}}, 0.15),
        ({"column": "test_error", "of": {"aggregator": "krum"}, "over": {"aggregator": "average"}}, 2.5),
        ({"column": "test_error", "of": {"attack_options": {"scale": 0.5}}, "by": ["aggregator"]}, 0.25),
        (
            {
                "column": "test_error",
                "minus_at": "first",
                "of": {"aggregator": "krum"},
                "minus": {"aggregator": "average"},
            },
            0.05,
        ),
    ],
)
def test_quantities(tmp_path, quantity, value):
    (row,) = claims.evaluate(load(tmp_path, claim(quantity=quantity)), {"mine": rows(SEEDS)}).itertuples()
    assert row.value == pytest.approx(value)
    assert row.low <= row.value <= row.high and row.seeds == 4


def test_differences_are_paired_by_seed(tmp_path):
    """Seeds that differ much, and two rules that differ little on each of them: the interval is narrow."""
    krum = np.linspace(0.1, 0.9, 10)
    quantity = {"column": "test_error", "of": {"aggregator": "krum"}, "minus": {"aggregator": "average"}}
    frame = rows({"krum": krum, "average": krum - 0.01}).sample(frac=1, random_state=0)
    (row,) = claims.evaluate(load(tmp_path, claim(quantity=quantity, test={"above": 0})), {"mine": frame}).itertuples()
    assert row.high - row.low < 1e-12 and row.verdict == "holds"


def test_slope(tmp_path):
    table = [
        {"measurement": "timing", "seed": seed, "workers": n, "seconds": (1 + seed) * n**2.0}
        for seed in range(3)
        for n in (10, 20, 40)
    ]
    quantity = {"column": "seconds", "measurement": "timing", "slope": "workers"}
    (row,) = claims.evaluate(load(tmp_path, claim(quantity=quantity)), {"mine": pd.DataFrame(table)}).itertuples()
    assert row.value == pytest.approx(2)


def test_the_worst_of_several_is_shown(tmp_path):
    frame = rows({"krum": [0.1, 0.1], "median": [0.7, 0.7], "average": [0.2, 0.3]})
    quantity = {"column": "test_error", "by": ["aggregator"]}
    (row,) = claims.evaluate(load(tmp_path, claim(quantity=quantity)), {"mine": frame}).itertuples()
    assert (row.verdict, row.where) == ("fails", "worst of 3: aggregator median")


def test_a_reference_may_be_the_same_for_all_groups(tmp_path):
    frame = rows({"krum": [0.2, 0.2], "median": [0.7, 0.7], "average": [0.1, 0.1]})
    quantity = {"column": "test_error", "of": {"aggregator": ["krum", "median"]}, "minus": {"aggregator": "average"}}
    quantity["by"] = ["aggregator"]
    (row,) = claims.evaluate(load(tmp_path, claim(quantity=quantity)), {"mine": frame}).itertuples()
    assert row.value == pytest.approx(0.6) and row.where == "worst of 2: aggregator median"


CROSSING = {"column": "test_error", "crossing": "fault_rate", "of": {"aggregator": "average"}}


def test_a_crossing_is_the_rate_at_which_the_difference_changes_its_sign(tmp_path):
    frames = []
    for rate, level in ((0.001, 0.1), (0.01, 0.2), (0.1, 0.5)):
        frames.append(
            rows({"average": [level, level + 0.02, level], "krum": [0.35, 0.37, 0.35]}).assign(fault_rate=rate)
        )
    quantity = {**CROSSING, "minus": {"aggregator": "krum"}}
    entry = claim(quantity=quantity, test={"above": 0.02})
    (row,) = claims.evaluate(load(tmp_path, entry), {"mine": pd.concat(frames)}).itertuples()
    assert (row.value, row.low, row.high) == pytest.approx((10**-1.5,) * 3) and row.verdict == "holds"


def test_one_seed_decides_nothing(tmp_path):
    (row,) = claims.evaluate(load(tmp_path, claim()), {"mine": rows({"krum": [0.1]})}).itertuples()
    assert row.verdict == "undecided"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"test": {"under": 3}}, "unknown key 'under'"),
        ({"test": {"above": 0, "below": 1}}, "test: found"),
        ({"source": "hearsay"}, "source: found 'hearsay'; give paper, supplement, review or ours"),
        ({"quantity": {"of": {}}}, "column is missing"),
        ({"quantity": {"column": "x", "at": "noon"}}, "at: found 'noon'"),
        ({"sentence": ...}, "sentence is missing"),
    ],
)
def test_bad_claims(tmp_path, changes, words):
    entry = {key: value for key, value in claim(**changes).items() if value is not ...}
    with pytest.raises(InputError) as caught:
        load(tmp_path, entry)
    assert words in str(caught.value) and "claims.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_unique(tmp_path):
    with pytest.raises(InputError, match="'one' is given to 2 claims"):
        load(tmp_path, claim(), claim())


TIMING = {"column": "seconds", "measurement": "timing", "of": {"aggregator": "krum"}, "slope": "workers"}
CALM = {"dataset": "spambase", "aggregator": "krum", "attack": "none"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"experiment": "figure9"}, "experiment 'figure9' is not there"),
        ({"quantity": {"column": "test_error", "of": {"agregator": "krum"}}}, "no column 'agregator'"),
        (
            {"quantity": {"column": "test_error", "of": {"aggregator": "krun"}}},
            "no cell of figure4 has aggregator krun",
        ),
        (
            {"quantity": {"column": "test_error", "of": {"aggregator": "krum"}}},
            "4 cells of figure4 have aggregator krum",
        ),
        ({"quantity": {"column": "test_eror"}}, "did you mean 'test_error'?"),
        ({"quantity": {"column": "dataset"}}, "unknown column 'dataset'"),
        ({"quantity": {"column": "test_error", "at": 499, "of": CALM}}, "round 499 is not recorded"),
        ({"test": {"between": [1, 0]}}, "holds for nothing"),
        (
            {"quantity": {"column": "test_error", "of": {"attack": "none"}, "by": ["attack"]}},
            "attack is fixed here and swept under by",
        ),
        (
            {
                "quantity": {
                    "column": "test_error",
                    "of": CALM,
                    "minus": {**CALM, "dataset": "mnist"},
                    "by": ["workers"],
                }
            },
            None,
        ),
        (
            {
                "quantity": {
                    "column": "test_error",
                    "of": {"aggregator": "krum", "attack": "none"},
                    "minus": {"aggregator": "krum", "attack": "none", "dataset": ["mnist"]},
                    "by": ["dataset"],
                }
            },
            "minus: no cell with dataset spambase, which `of` has",
        ),
        ({"experiment": "transient", "quantity": CROSSING}, "minus is missing"),
        (
            {"experiment": "transient", "quantity": {**CROSSING, "minus": {"aggregator": "krum"}}},
            "cells of transient have aggregator average",
        ),
        (
            {"quantity": {"column": "test_error", "of": CALM, "minus": CALM, "minus_at": 499}},
            "round 499 is not recorded",
        ),
        ({"experiment": "complexity", "quantity": {"column": "seconds"}}, "has no training runs"),
        ({"quantity": {"column": "x", "measurement": "timing"}}, "figure4 has no probe 'timing'"),
        ({"quantity": {"column": "slack", "of": CALM}}, "unknown column 'slack'"),
        ({"quantity": {"column": "test_error", "of": CALM, "slope": "round_"}}, "did you mean 'round'?"),
        ({"experiment": "complexity", "quantity": TIMING}, None),
        ({"experiment": "complexity", "quantity": {**TIMING, "column": "second"}}, "did you mean 'seconds'?"),
        ({"experiment": "complexity", "quantity": {**TIMING, "column": "aggregator"}}, "unknown column 'aggregator'"),
        ({"experiment": "complexity", "quantity": {**TIMING, "column": "slack"}}, "unknown column 'slack'"),
        ({"experiment": "complexity", "quantity": {**TIMING, "slope": "worker"}}, "did you mean 'workers'?"),
        ({"experiment": "complexity", "quantity": {**TIMING, "by": ["dimensions"]}}, "did you mean 'dimension'?"),
        (
            {"experiment": "complexity", "quantity": {**TIMING, "of": {"agregator": "krum"}}},
            "of: unknown column 'agregator'; did you mean 'aggregator'?",
        ),
        (
            {"experiment": "complexity", "quantity": {**TIMING, "over": {"aggregator": "krun"}}},
            "over: no probe timing of complexity has aggregator krun",
        ),
        ({"experiment": "complexity", "quantity": {**TIMING, "at": 500}}, "rows of a probe are in no order"),
    ],
)
def test_claims_about_nothing_are_heard_before_anything_runs(tmp_path, changes, words):
    if words is None:
        claims.check(load(tmp_path, claim(**{"experiment": "figure4", **changes})), experiment.load_all())
        return
    with pytest.raises(InputError) as caught:
        claims.check(load(tmp_path, claim(**{"experiment": "figure4", **changes})), experiment.load_all())
    assert words in str(caught.value)


def test_every_figure_of_the_paper_has_claims():
    """The scorecard covers the paper's and the supplement's figures, its lemma, its proposition and its cost."""
    of = {claim.experiment for claim in planning.plan(ROOT, {}).claims}
    specs = experiment.load_all()
    assert {name for name, spec in specs.items() if spec.part in ("paper", "supplement")} <= of
    assert {"figure2", "figure3", "figure4", "figure5", "figure6", "lemma1", "complexity", "variants", "convnet"} <= of


def test_the_scorecards_tables(tmp_path):
    frame = claims.evaluate(load(tmp_path, claim(sentence="a < b & c")), {"mine": rows(SEEDS)})
    page, table = report.page(frame), report.markdown(frame)
    assert "a &lt; b &amp; c" in page and "http" not in page
    assert "1 claims: 1 hold, 0 fail, 0 undecided." in table and "0.25 [" in table
    store_columns = ["claim", "value", "low", "high", "seeds", "verdict", "experiment", "sentence"]
    assert set(store_columns) <= set(frame.columns)
    assert store.TRAINING == "training"


def test_claims_that_select_by_what_is_overridden_are_left_out(tmp_path):
    entries = load(tmp_path, claim(), claim(name="two", quantity={"column": "test_error", "of": {"rounds": 500}}))
    assert claims.untouched(entries, {"seeds": 2}) == entries
    assert [entry.name for entry in claims.untouched(entries, {"rounds": 20})] == ["one"]


def test_a_difference_is_over_the_seeds_that_both_sides_have(tmp_path):
    entry = claim(quantity={"column": "test_error", **DIFFERENCE}, test={"above": 0})
    frame = rows({"krum": [0.3, 0.4, 0.5], "average": [0.1, 0.1, 0.1, 0.9, 0.9]})
    (row,) = claims.evaluate(load(tmp_path, entry), {"mine": frame}).itertuples()
    assert row.value == pytest.approx(0.3) and row.seeds == 3
