"""Probes: what they measure, against the paper's statements and against their own definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest

from krum.errors import InputError
from krum.simulation.cell import make_cell
from krum.suite import experiment, probes, theory


def eta_as_written(n, f):
    """Proposition 1's eta, term by term."""
    first = n - f
    second = (f * (n - f - 2) + f * f * (n - f - 1)) / (n - 2 * f - 2)
    return (2 * (first + second)) ** 0.5


@pytest.mark.parametrize("n, f", [(20, 0), (20, 6), (20, 8), (40, 18), (5, 1)])
def test_eta(n, f):
    assert theory.eta(n, f) == pytest.approx(eta_as_written(n, f))


@pytest.mark.parametrize("n, f", [(20, 9), (4, 1), (2, 0)])
def test_eta_where_the_proposition_says_nothing(n, f):
    assert theory.eta(n, f) == math.inf


@pytest.mark.parametrize("seed", range(5))
def test_the_plane(seed):
    rows = probes.plane(seed, workers=20, byzantine=3)
    points = np.array([[row["x"], row["y"]] for row in rows])
    near = [row for row in rows if row["role"] == "at the barycentre"]
    assert len(rows) == 20 and len(near) == 2
    assert np.allclose(points.mean(0), [near[0]["x"], near[0]["y"]])
    chosen = [row["role"] for row in rows if row["chosen_by_nearest_to_barycentre"]]
    assert chosen == ["at the barycentre"]
    assert [row["role"] for row in rows if row["chosen_by_krum"]] == ["honest"]


@pytest.mark.parametrize("f", [0, 6, 8])
def test_the_bound_holds_where_it_should_and_nowhere_else_is_one(f):
    rows = probes.resilience(0, workers=20, byzantine=f, dimension=50)
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


def test_the_attackers_are_those_of_an_omniscient_adversary():
    """One attack at least beats Krum where nothing protects it: the probe can fail."""
    rows = [row for row in probes.resilience(0, byzantine=8, dimension=1000) if row["noise"] == 4.0]
    assert min(row["inner_product"] for row in rows) < 0.2
    assert max(row["attacker_chosen"] for row in rows) > 0.9
    assert {"gaussian", "worst-honest", "minus-1-mean"} <= {row["attack"] for row in rows}


def test_honest_noise_has_the_length_that_is_asked_for():
    rng = np.random.default_rng(0)
    noise, d = 0.5, 400
    honest = noise / math.sqrt(d) * rng.standard_normal((200, d))
    assert np.sqrt((honest**2).sum(1).mean()) == pytest.approx(noise, rel=0.02)


def test_steering():
    (averaged,) = probes.steering(0, dimension=200, aggregator="average")
    (chosen,) = probes.steering(0, dimension=200, aggregator="krum")
    assert averaged["distance"] < 1e-5 < 0.5 < chosen["distance"]


def test_timing():
    (row,) = probes.taken("timing", 0, {"workers": 10, "dimension": 100})
    assert row["seconds"] > 0


def test_choices_are_those_of_a_loop_over_explicit_vectors():
    """Whom Krum chooses in three rounds, by plain lists of numbers: gradients, scores, ranks and lengths."""
    import oracle
    import torch

    from krum.simulation import datasets
    from krum.simulation.gradients import subtract
    from krum.simulation.round import send, start

    rounds, f = 3, 6
    found = probes.choices(1, rounds=rounds, declared_f=f)
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
        shares = {row["rank"]: row["share"] for row in found if row["order"] == order}
        assert shares == pytest.approx({rank: ranks.count(rank) / rounds for rank in range(1, 21)})
    assert found[0]["norm_ratio"] == pytest.approx(np.mean(ratios), rel=1e-3)
    assert all(row["attacker_chosen"] == 0 for row in found)


def test_choices_under_attack_are_shares_of_the_honest():
    found = probes.choices(0, rounds=3, byzantine=6, declared_f=0, aggregator="multi-krum")
    assert sum(row["share"] for row in found if row["order"] == "length") == pytest.approx(1)
    assert max(row["rank"] for row in found) == 14 and found[0]["attacker_chosen"] == pytest.approx(0.3)


@pytest.mark.parametrize("name", [name for name, probe in probes.PROBES.items() if not probe.alone])
def test_a_seed_gives_the_same_rows_every_time(name):
    first, again, other = (probes.taken(name, seed, {}) for seed in (1, 1, 2))
    assert repr(first) == repr(again) != repr(other)


def test_a_row_that_its_decorator_does_not_describe_is_refused(monkeypatch):
    steering = probes.PROBES["steering"]
    right = {"workers": 3, "dimension": 5, "aggregator": "average", "distance": 0.5}
    for wrong in ({**right, "distance": 1}, {**right, "more": 2}, {k: v for k, v in right.items() if k != "workers"}):
        monkeypatch.setitem(
            probes.PROBES, "steering", replace(steering, function=lambda seed, wrong=wrong: [right, wrong])
        )
        with pytest.raises(InputError, match=r"probe steering: .* differ in (distance|more|workers)$"):
            probes.taken("steering", 0, {})
    monkeypatch.setitem(probes.PROBES, "steering", replace(steering, function=lambda seed: [right]))
    assert probes.taken("steering", 0, {}) == [right]


GOOD = {"name": "resilience", "byzantine": 6}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "resilence"}, "unknown probe 'resilence'; did you mean 'resilience'?"),
        ({"name": ...}, "name is missing"),
        ({"byzantin": 3}, "unknown option 'byzantin'; did you mean 'byzantine'?"),
        ({"byzantine": 9}, "needs 2f + 2 < n: found n = 20, f = 9; use at least 21 workers"),
        ({"byzantine": -1}, "found -1; give a positive integer"),
        ({"dimension": "high"}, "found 'high'; give a positive integer"),
        ({"dimension": float("nan")}, "found nan"),
        ({"dimension": []}, "found an empty list"),
        ({"name": "plane", "distance": -1.0}, "found -1.0; give a positive number"),
        ({"seeds": 0}, "seeds: found 0; give a positive integer"),
        ({"name": "steering", "byzantine": ..., "aggregator": "krun"}, "did you mean 'krum'?"),
        ({"name": "steering", "byzantine": ..., "aggregator": "1-p-krum"}, "depends on chance"),
        ({"name": "steering", "byzantine": ..., "workers": 4, "aggregator": "krum"}, "found n = 4, f = 1"),
        ({"name": "timing", "byzantine": ..., "workers": 2}, "workers: found 2; give at least 3"),
        ({"name": "plane", "byzantine": 1}, "found 1; give at least 2 colluders"),
        ({"name": "steering", "byzantine": ..., "aggregator": 3}, "found 3; give a text"),
        ({"name": "choices", "dataset": "spambas"}, "unknown data set 'spambas'; did you mean 'spambase'?"),
        ({"name": "choices", "aggregator": "median"}, "median does not choose vectors"),
        ({"name": "exchange", "byzantine": ..., "ranks": 1}, "ranks: found 1; give at least 2"),
        ({"name": "split", "slices": "both"}, "slices: found 'both'; give together or apart"),
        ({"name": "choices", "declared_f": 9}, "found n = 20, f = 9"),
    ],
)
def test_bad_probes(changes, words, tmp_path):
    import shutil

    import yaml

    for file in ("defaults.yaml", "schema.yaml"):
        shutil.copy(experiment.EXPERIMENTS / file, tmp_path)
    block = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    document = {"title": "t", "claim": "c", "figure": {"kind": "resilience"}, "probes": [block]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(InputError) as caught:
        experiment.load(tmp_path / "mine.yaml")
    assert words in str(caught.value) and "probes[0]" in str(caught.value) and "\n" not in str(caught.value)


def test_probes_survive_their_text():
    for spec in experiment.load_all().values():
        for probe in spec.probes:
            assert experiment.Probe.from_json(probe.to_json()) == probe
