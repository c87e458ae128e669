"""The scorecard: verdicts follow from intervals, quantities from the rows that a claim selects, and nothing else."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from krum.errors import InputError
from krum.suite import claims, experiment, planning
from krum.suite.experiment import EXPERIMENTS
from krum.suite.statistics import band


@pytest.fixture(scope="module")
def specs():
    return experiment.load_all()


def entry(**changes):
    """An entry of claims.yaml; `...` leaves a key out."""
    whole = {
        "name": "one",
        "experiment": "mine",
        "source": "paper",
        "sentence": "s",
        "means": "q",
        "quantity": {"column": "test_error", "of": {"aggregator": "krum"}},
        "test": {"below": 0.5},
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not ...}


def load(tmp_path, *entries):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": list(entries)}, sort_keys=False))
    return claims.load(path)


def refusal(function, *arguments):
    """The one line in which something is refused."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(errors):
    """Rows of one cell per aggregator: `errors[aggregator]`, one per seed, at round 10, and twice that at round 0."""
    constant = {"measurement": "training", "attack": "none", "attack_options": json.dumps({"scale": 0.5}), "folds": 10}
    return pd.DataFrame(
        {**constant, "aggregator": name, "majority_error": 0.4, "seed": seed, "round": number, "test_error": error}
        for name, values in errors.items()
        for seed, value in enumerate(values)
        for number, error in ((0, 2.0 * value), (10, 1.0 * value))
    )


def scored(tmp_path, frame, **changes):
    (row,) = claims.evaluate(load(tmp_path, entry(**changes)), {"mine": frame}).itertuples()
    return row


# ------------------------------------------------------------------------------------------- verdicts and quantities


def test_verdict_follows_from_where_the_interval_lies():
    inf, around_zero = math.inf, (-0.02, 0.02)
    for bounds, intervals in (
        ((0, inf), {"holds": [(0.1, 0.2), (0.1, inf)], "fails": [(-0.2, -0.1)], "undecided": [(-0.1, 0.1)]}),
        ((-inf, 0), {"holds": [(-0.2, -0.1)], "fails": [(0.1, 0.2), (inf, inf)], "undecided": [(-0.1, 0.1)]}),
        (around_zero, {"holds": [(-0.01, 0.01)], "fails": [(0.03, 0.04), (-0.04, -0.03)]}),
        (around_zero, {"undecided": [(-0.01, 0.03), (-0.04, 0.04), (math.nan, math.nan)]}),
        ((0.05, inf), {"undecided": [(0.01, inf)]}),
    ):
        for verdict, pairs in intervals.items():
            for low, high in pairs:
                assert claims.judged(low, high, bounds)[0] == verdict, (low, high, bounds)


def test_quantity_is_the_column_at_its_round_minus_or_over_another(tmp_path):
    frame = rows({"krum": [0.1, 0.2, 0.3, 0.4], "average": [0.1, 0.1, 0.1, 0.1]})
    krum, average = {"aggregator": "krum"}, {"aggregator": "average"}
    for quantity, value in (
        ({"of": krum}, 0.25),
        ({"of": krum, "at": "first"}, 0.5),
        ({"of": krum, "at": 10}, 0.25),
        ({"of": krum, "at": "mean"}, 0.25),
        ({"of": krum, "at": "greatest"}, 0.5),
        ({"of": krum, "at": "least"}, 0.25),
        ({"of": krum, "column": "above_majority"}, -0.15),
        ({"of": krum, "minus": average}, 0.15),
        ({"of": krum, "minus": average, "minus_at": "first"}, 0.05),
        ({"of": krum, "over": average}, 2.5),
        ({"of": {"attack_options": {"scale": 0.5}}, "by": ["aggregator"]}, 0.25),
    ):
        row = scored(tmp_path, frame, quantity={"column": "test_error", **quantity})
        assert row.value == pytest.approx(value), quantity
        assert row.low <= row.value <= row.high and row.seeds == 4


def test_differences_are_paired_by_seed_over_the_seeds_that_both_sides_have(tmp_path):
    quantity = {"column": "test_error", "of": {"aggregator": "krum"}, "minus": {"aggregator": "average"}}
    krum = np.linspace(0.1, 0.9, 10)  # seeds differ much, the rules on each of them little
    frame = rows({"krum": krum, "average": krum - 0.01}).sample(frac=1, random_state=0)
    row = scored(tmp_path, frame, quantity=quantity, test={"above": 0})
    assert row.high - row.low < 1e-12 and row.verdict == "holds"
    row = scored(tmp_path, rows({"krum": [0.3, 0.4, 0.5], "average": [0.1, 0.1, 0.1, 0.9, 0.9]}), quantity=quantity)
    assert row.value == pytest.approx(0.3) and row.seeds == 3


def test_slope_is_the_exponent_of_a_power(tmp_path):
    table = [
        {"measurement": "timing", "seed": seed, "workers": n, "seconds": (1 + seed) * n**2.0}
        for seed in range(3)
        for n in (10, 20, 40)
    ]
    quantity = {"column": "seconds", "measurement": "timing", "slope": "workers"}
    assert scored(tmp_path, pd.DataFrame(table), quantity=quantity).value == pytest.approx(2)


def test_crossing_is_where_the_difference_changes_its_sign(tmp_path):
    levels = {0.001: 0.1, 0.01: 0.2, 0.1: 0.5}
    frame = pd.concat(
        rows({"average": [level, level + 0.02, level], "krum": [0.35, 0.37, 0.35]}).assign(fault_rate=rate)
        for rate, level in levels.items()
    )
    quantity = {"column": "test_error", "crossing": "fault_rate", "of": {"aggregator": "average"}}
    row = scored(tmp_path, frame, quantity={**quantity, "minus": {"aggregator": "krum"}}, test={"above": 0.02})
    assert (row.value, row.low, row.high) == pytest.approx((10**-1.5,) * 3) and row.verdict == "holds"


def test_of_several_groups_the_worst_is_shown(tmp_path):
    frame = rows({"krum": [0.1, 0.1], "median": [0.7, 0.7], "average": [0.2, 0.3]})
    row = scored(tmp_path, frame, quantity={"column": "test_error", "by": ["aggregator"]})
    assert (row.verdict, row.where) == ("fails", "worst of 3: aggregator median")
    one_reference = {"of": {"aggregator": ["krum", "median"]}, "minus": {"aggregator": "average"}}
    row = scored(tmp_path, frame, quantity={"column": "test_error", **one_reference, "by": ["aggregator"]})
    assert row.value == pytest.approx(0.45) and row.where == "worst of 2: aggregator median"


def test_of_several_groups_the_intervals_hold_together(tmp_path):
    """Each of three may miss a third as often as one alone, so that the worst is no worse than it looks."""
    values = np.random.default_rng(0).normal(0.5, 0.1, (3, 10))
    frame = rows(dict(zip(("krum", "median", "average"), values, strict=True)))
    row = scored(tmp_path, frame, quantity={"column": "test_error", "by": ["aggregator"]})
    intervals = [band(one, 0.05 / 3) for one in values]
    assert (row.value, row.low, row.high) == pytest.approx(max(intervals, key=lambda one: one[2]))


def test_p_is_the_least_share_of_misses_at_which_a_claim_is_decided(tmp_path):
    values = np.random.default_rng(0).normal(0.5, 0.1, 10)
    for threshold in (0.4, 0.48, 0.52, 0.6):
        row = scored(tmp_path, rows({"krum": values}), test={"below": threshold})
        assert (row.p < 0.05) == (row.verdict != "undecided")
        _, low, high = band(values, row.p)
        assert min(abs(low - threshold), abs(high - threshold)) < 1e-6
        assert row.least_difference == pytest.approx((row.high - row.low) / 2)


def test_folds_that_share_data_widen_the_interval(tmp_path):
    """Ten folds: 1 / 10 becomes 1 / 10 + 1 / 9 in the variance."""
    row = scored(tmp_path, rows({"krum": np.linspace(0.1, 0.5, 10)}))
    assert row.value - row.low_corrected == pytest.approx((row.value - row.low) * (1 + 10 / 9) ** 0.5)
    assert row.high_corrected - row.value == pytest.approx((row.high - row.value) * (1 + 10 / 9) ** 0.5)


def test_verdicts_that_survive_all_others_of_their_source(tmp_path):
    """Holm: the least of four p against 0.05 / 4, the next against 0.05 / 3, until one is not below."""
    p = pd.Series([0.03, 0.001, 0.02, 0.012], index=list("abcd"))
    assert claims.surviving(p).to_dict() == {"a": True, "b": True, "c": True, "d": True}
    p["d"] = 0.018
    assert claims.surviving(p).to_dict() == {"a": False, "b": True, "c": False, "d": False}
    values = {"krum": np.linspace(0.1, 0.5, 10)}
    entries = [
        entry(name=f"{source}-{n}", source=source) for source, most in (("paper", 1), ("ours", 90)) for n in range(most)
    ]
    scorecard = claims.evaluate(load(tmp_path, *entries), {"mine": rows(values)})
    assert scorecard.groupby("source")["survives"].all().to_dict() == {"paper": True, "ours": False}


def test_one_seed_decides_nothing(tmp_path):
    row = scored(tmp_path, rows({"krum": [0.1]}))
    assert row.verdict == "undecided" and row.p == 1 and not row.survives


# --------------------------------------------------------------------------------------------------- claims.yaml


def test_an_entry_with_each_is_a_claim_per_value(tmp_path):
    loaded = load(
        tmp_path,
        entry(
            name="{dataset}-{aggregator}",
            each={"dataset": ["spambase", "mnist"], "aggregator": {"krum": "Krum", "median": "The median"}},
            source={"spambase": "paper", "mnist": "ours"},
            sentence="{Aggregator} learns ({Dataset}).",
            means="error of {aggregator}",
            quantity={"column": "test_error", "minus": {"aggregator": "average"}},
        ),
    )
    assert [(one.name, one.source) for one in loaded] == [
        ("spambase-krum", "paper"),
        ("spambase-median", "paper"),
        ("mnist-krum", "ours"),
        ("mnist-median", "ours"),
    ]
    last = loaded[-1]
    assert (last.sentence, last.description) == ("The median learns (MNIST).", "error of median")
    assert last.of == {"dataset": "mnist", "aggregator": "median"}
    assert last.minus == {"dataset": "mnist", "aggregator": "average"} and last.over is None


def test_malformed_claims_are_refused_in_one_line(tmp_path):
    each = {"dataset": ["spambase", "mnist"]}
    for changes, words in (
        ({"test": {"under": 3}}, "unknown key 'under'"),
        ({"test": {"above": 0, "below": 1}}, "test: found"),
        ({"source": "hearsay"}, "source: found 'hearsay'; give paper, supplement, review or ours"),
        ({"quantity": {"of": {}}}, "column is missing"),
        ({"quantity": {"column": "x", "at": "noon"}}, "at: found 'noon'"),
        ({"sentence": ...}, "sentence is missing"),
        ({"each": {"dataset": []}}, "each.dataset: found []; give a list of values"),
        ({"each": each}, "'one' is given to 2 claims"),
        ({"each": each, "name": "{datset}"}, "unknown word in braces 'datset'; did you mean 'dataset'?"),
        ({"each": each, "source": {"mnist": "ours"}}, "source: none for dataset spambase"),
    ):
        line = refusal(load, tmp_path, entry(**changes))
        assert words in line and "claims.yaml" in line
    assert "'one' is given to 2 claims" in refusal(load, tmp_path, entry(), entry())


def test_claims_about_what_is_not_there_are_refused_before_anything_runs(tmp_path, specs):
    krum, calm = {"aggregator": "krum"}, {"dataset": "spambase", "aggregator": "krum", "attack": "none"}
    mnist_only = {"aggregator": "krum", "attack": "none", "dataset": ["mnist"]}
    figure4 = [
        ({"of": {"agregator": "krum"}}, "unknown column 'agregator'"),
        ({"of": {"aggregator": "krun"}}, "of: no row has aggregator krun"),
        ({"of": krum}, "4 cells of figure4 have aggregator krum"),
        ({"of": calm, "column": "test_eror"}, "did you mean 'test_error'?"),
        ({"of": calm, "column": "dataset"}, "unknown column 'dataset'"),
        ({"of": calm, "column": "slack"}, "unknown column 'slack'"),
        ({"of": calm, "slope": "round_"}, "did you mean 'round'?"),
        ({"of": calm, "at": 499}, "round 499 is not recorded"),
        ({"of": calm, "minus": calm, "minus_at": 499}, "round 499 is not recorded"),
        ({"of": calm, "minus": {**calm, "dataset": "mnist"}, "by": ["workers"]}, None),
        (
            {"of": {"aggregator": "krum", "attack": "none"}, "minus": mnist_only, "by": ["dataset"]},
            "minus: no cell with dataset spambase, which `of` has",
        ),
        ({"measurement": "timing"}, "figure4 has no probe 'timing'"),
    ]
    crossing = {"crossing": "fault_rate", "of": {"aggregator": "average"}}
    transient = [
        (crossing, "minus is missing"),
        ({**crossing, "minus": krum}, "cells of transient have aggregator average"),
    ]
    timing = {"column": "seconds", "measurement": "timing", "of": krum, "slope": "workers"}
    complexity = [
        ({"column": "seconds"}, "has no training runs"),
        (timing, None),
        ({**timing, "column": "second"}, "did you mean 'seconds'?"),
        ({**timing, "column": "aggregator"}, "unknown column 'aggregator'"),
        ({**timing, "column": "slack"}, "unknown column 'slack'"),
        ({**timing, "slope": "worker"}, "did you mean 'workers'?"),
        ({**timing, "by": ["dimensions"]}, "unknown column 'dimensions'; did you mean 'dimension'?"),
        ({**timing, "of": {"agregator": "krum"}}, "unknown column 'agregator'; did you mean 'aggregator'?"),
        ({**timing, "over": {"aggregator": "krun"}}, "over: no row has aggregator krun"),
        ({**timing, "at": 500}, "rows of a probe are in no order"),
    ]
    nowhere = [({}, "unknown experiment 'figure9'")]
    cases = {"figure4": figure4, "transient": transient, "complexity": complexity, "figure9": nowhere}
    for name, quantities in cases.items():
        for quantity, words in quantities:
            loaded = load(tmp_path, entry(experiment=name, quantity={"column": "test_error", **quantity}))
            if words is None:
                claims.check(loaded, specs)
            else:
                assert words in refusal(claims.check, loaded, specs), quantity
    few = {"figure4": replace(specs["figure4"], cells=tuple(replace(cell, seeds=9) for cell in specs["figure4"].cells))}
    calm_krum = load(tmp_path, entry(experiment="figure4", quantity={"column": "test_error", "of": calm}))
    assert "figure4 has 9 seeds; give at least 10 for a verdict" in refusal(claims.check, calm_krum, few)
    claims.check(calm_krum, {"figure4": replace(few["figure4"], overrides={"seeds": 9})})
    nothing = load(tmp_path, entry(experiment="figure4", test={"between": [1, 0]}))
    assert "holds for nothing" in refusal(claims.check, nothing, specs)


def test_shipped_claims_fit_the_shipped_experiments(specs):
    """And cover the paper's and the supplement's figures, its lemma, its proposition and its cost."""
    shipped = planning.plan(EXPERIMENTS.parent, {}).claims
    assert len(shipped) >= 153
    covered = {claim.experiment for claim in shipped}
    assert {name for name, spec in specs.items() if spec.part in ("paper", "supplement")} <= covered
    names = {claim.name: claim.source for claim in shipped}
    assert (names["figure4-spambase-faster"], names["figure4-mnist-faster"]) == ("paper", "ours")


def test_claims_that_select_by_what_is_overridden_are_left_out(tmp_path):
    by_rounds = entry(name="two", quantity={"column": "test_error", "of": {"rounds": 500}})
    loaded = load(tmp_path, entry(), by_rounds)
    assert claims.untouched(loaded, {"seeds": 2}) == loaded
    assert [claim.name for claim in claims.untouched(loaded, {"rounds": 20})] == ["one"]
