"""Probes: what they measure, against the paper's statements and against their own definitions."""

import math
import shutil

import numpy as np
import oracle
import pytest
import torch
import yaml

from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.gradients import subtract
from krum.simulation.parameters import make_cell
from krum.simulation.round import send, start
from krum.suite import experiment, probes, theory

SHORT = {"choices": {"rounds": 2}, "exchange": {"ranks": 2, "dimension": 1_000}}


def eta_as_written(n, f):
    """Proposition 1's eta, term by term."""
    first = n - f
    second = (f * (n - f - 2) + f * f * (n - f - 1)) / (n - 2 * f - 2)
    return (2 * (first + second)) ** 0.5


def test_eta_is_the_propositions_and_infinite_outside_it():
    for n, f in ((20, 0), (20, 6), (20, 8), (40, 18), (5, 1)):
        assert theory.eta(n, f) == pytest.approx(eta_as_written(n, f))
    for n, f in ((20, 9), (4, 1), (2, 0)):
        assert theory.eta(n, f) == math.inf


def test_every_probe_gives_rows_of_its_columns_and_the_same_for_a_seed():
    for name, registered in probes.PROBES.items():
        if name == "split":  # see test_sharded
            continue
        first = probes.run_probe(name, 1, SHORT.get(name, {}))
        assert first and set(first[0]) == set(registered.columns) >= set(registered.options)
        if not registered.exclusive:  # measures time
            again, other = (probes.run_probe(name, seed, SHORT.get(name, {})) for seed in (1, 2))
            assert repr(first) == repr(again) != repr(other)


def test_plane_puts_the_colluders_at_the_barycentre():
    for seed in range(5):
        rows = probes.run_probe("plane", seed, {"byzantine": 3})
        points = np.array([[row["x"], row["y"]] for row in rows])
        near = [row for row in rows if row["role"] == "at the barycentre"]
        assert len(rows) == 20 and len(near) == 2
        assert np.allclose(points.mean(0), [near[0]["x"], near[0]["y"]])
        # Both rules again, from the points themselves: least sum to all, and to the n - f - 2 nearest.
        squared = ((points[:, None] - points) ** 2).sum(-1)
        nearest = np.sort(squared, 1)[:, 1 : 20 - 3 - 1].sum(1)
        for column, scores, role in (
            ("chosen_by_nearest_to_barycentre", squared.sum(1), "at the barycentre"),
            ("chosen_by_krum", nearest, "honest"),
        ):
            (chosen,) = [number for number, row in enumerate(rows) if row[column]]
            assert rows[chosen]["role"] == role and scores[chosen] == pytest.approx(scores.min())


def test_resilience_stays_above_the_bound_where_the_proposition_holds():
    for f in (0, 6, 8):
        rows = probes.run_probe("resilience", 0, {"byzantine": f, "dimension": 50})
        assert {row["noise"] for row in rows} == set(probes.NOISES)
        assert {row["condition_holds"] for row in rows} == {True, False}
        for row in rows:
            sine = eta_as_written(20, f) * row["noise"]
            assert row["condition_holds"] == (sine < 1)
            if row["condition_holds"]:
                assert row["bound"] == pytest.approx(1 - sine)
                assert row["inner_product"] > row["bound"]
            else:
                assert math.isnan(row["bound"])


def test_resilience_can_fail_where_nothing_protects_krum():
    rows = probes.run_probe("resilience", 0, {"byzantine": 8, "dimension": 1000})
    loudest = [row for row in rows if row["noise"] == 4.0]
    assert min(row["inner_product"] for row in loudest) < 0.2
    assert max(row["attacker_chosen"] for row in loudest) > 0.9
    assert {"gaussian", "worst-honest", "minus-1-mean"} <= {row["attack"] for row in rows}


def test_steering_moves_averaging_to_any_vector_and_not_krum():
    averaged, chosen = (
        probes.run_probe("steering", 0, {"dimension": 200, "aggregator": rule})[0] for rule in ("average", "krum")
    )
    assert averaged["distance"] < 1e-5 < 0.5 < chosen["distance"]


def test_timing_leaves_the_number_of_threads_as_it_was():
    threads = torch.get_num_threads()
    (row,) = probes.run_probe("timing", 0, {"workers": 10, "dimension": 100})
    assert row["seconds"] > 0 and torch.get_num_threads() == threads


def test_choices_are_those_of_a_loop_over_explicit_vectors():
    """Whom Krum chooses in three rounds, by plain lists of numbers: gradients, scores, ranks and lengths."""
    rounds, f = 3, 6
    rows = probes.run_probe("choices", 1, {"rounds": rounds, "declared_f": f})
    cell = make_cell({"dataset": "spambase", "aggregator": "krum", "declared_f": f})
    state = start(cell, datasets.load("spambase"), seeds=[1], dtype=torch.float64)
    by_length, by_distance, ratios = [], [], []
    for _ in range(rounds):
        vectors = send(state).gradients.vectors()[0].numpy()
        (winner,) = oracle.chosen(oracle.SCORES["krum"](vectors.tolist(), f), 1)
        mean = vectors.mean(0)
        lengths, distances = np.linalg.norm(vectors, axis=1), np.linalg.norm(vectors - mean, axis=1)
        by_length.append(int((lengths < lengths[winner]).sum()) + 1)
        by_distance.append(int((distances < distances[winner]).sum()) + 1)
        ratios.append(lengths[winner] / np.linalg.norm(mean))
        subtract(state.parameters, torch.from_numpy(vectors[None, winner]), cell.learning_rate)
        state.round += 1
    for order, ranks in (("length", by_length), ("distance", by_distance)):
        shares = {row["rank"]: row["share"] for row in rows if row["order"] == order}
        assert shares == pytest.approx({rank: ranks.count(rank) / rounds for rank in range(1, 21)})
    assert rows[0]["norm_ratio"] == pytest.approx(np.mean(ratios), rel=1e-3)
    assert all(row["attacker_chosen"] == 0 for row in rows)


def test_choices_under_attack_are_shares_of_the_honest():
    rows = probes.run_probe("choices", 0, {"rounds": 3, "byzantine": 6, "declared_f": 0, "aggregator": "multi-krum"})
    assert sum(row["share"] for row in rows if row["order"] == "length") == pytest.approx(1)
    assert max(row["rank"] for row in rows) == 14 and rows[0]["attacker_chosen"] == pytest.approx(0.3)


def test_bad_probes_are_refused_in_one_line(tmp_path):
    for file in ("fidelity.yaml", "schema.yaml"):
        shutil.copy(experiment.EXPERIMENTS / file, tmp_path)
    for block, words in (
        ({"name": "resilence"}, "unknown probe 'resilence'; did you mean 'resilience'?"),
        ({"workers": 20}, "name is missing"),
        ({"name": "resilience", "byzantin": 3}, "unknown option 'byzantin'; did you mean 'byzantine'?"),
        ({"name": "resilience", "byzantine": 9}, "needs 2f + 2 < n: found n = 20, f = 9; use at least 21 workers"),
        ({"name": "resilience", "byzantine": 20}, "found 20 of 20 workers; give fewer"),
        ({"name": "resilience", "byzantine": -1}, "found -1; give a positive integer"),
        ({"name": "resilience", "dimension": "high"}, "found 'high'; give a positive integer"),
        ({"name": "resilience", "dimension": []}, "found []"),
        ({"name": "resilience", "dimension": 10**10}, "dimension: found 10,000,000,000; the vectors hold"),
        ({"name": "resilience", "seeds": 0}, "seeds: found 0; give an integer, at least 1"),
        ({"name": "plane", "distance": -1.0}, "found -1.0; give a positive number"),
        ({"name": "steering", "aggregator": "krun"}, "did you mean 'krum'?"),
        ({"name": "steering", "aggregator": "1-p-krum"}, "depends on chance"),
        ({"name": "steering", "aggregator": 3}, "found 3; give a text"),
        ({"name": "steering", "workers": 4, "aggregator": "krum"}, "found n = 4, f = 1"),
        ({"name": "timing", "workers": 2}, "found n = 2, f = 0"),
        ({"name": "choices", "dataset": "spambas"}, "unknown data set 'spambas'; did you mean 'spambase'?"),
        ({"name": "choices", "batch_size": 5_000}, "batch_size: found 5000; spambase holds 4601 samples"),
        ({"name": "choices", "aggregator": "median"}, "median does not choose vectors"),
        ({"name": "choices", "declared_f": 9}, "found n = 20, f = 9"),
        ({"name": "exchange", "ranks": 1}, "ranks: found 1; give 2 to 64 processes"),
        ({"name": "exchange", "ranks": 65}, "ranks: found 65; give 2 to 64 processes"),
        ({"name": "split", "slices": "both"}, "slices: found 'both'; give together or apart"),
    ):
        document = {"title": "t", "claim": "c", "figure": {"kind": "resilience"}, "probes": [block]}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
        with pytest.raises(InputError) as caught:
            experiment.load(tmp_path / "mine.yaml")
        line = str(caught.value)
        assert words in line and "probes[0]" in line and "\n" not in line, block


def test_probes_survive_their_text():
    for spec in experiment.load_all().values():
        for probe in spec.probes:
            assert experiment.Probe.from_json(probe.to_json()) == probe
