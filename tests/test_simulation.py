"""Curves: what they record, what they depend on, and that they are the same every time."""

import numpy as np
import pytest
import torch

from krum.errors import InputError
from krum.rules import distances
from krum.rules.aggregators import AGGREGATORS
from krum.simulation import datasets, round
from krum.simulation.attacks import ATTACKS
from krum.simulation.full_gradient import mean_gradient
from krum.simulation.gradients import flatten, worker_gradients
from krum.simulation.recording import COLUMNS, Recorder
from krum.simulation.round import descend, send, start, step, weigh
from krum.simulation.run import one_thread, pick_device, simulate

# attacks in which all send the same vector
IDENTICAL = ("sign-flip", "omniscient", "inner-product-manipulation", "mimic", "crash", "steer", "a-little-is-enough")


def same(one, other, columns=COLUMNS):
    return all(np.array_equal(one[c], other[c], equal_nan=one[c].dtype.kind == "f") for c in columns)


def test_a_seed_alone_and_in_a_batch_agree_over_one_step(make_cell, assert_same_alone):
    """In float64 to 1e-9: what a seed draws does not depend on its neighbours, only its roundings may."""
    for aggregator in AGGREGATORS:
        for attack in ATTACKS:
            if aggregator == "bulyan" and attack in IDENTICAL:
                continue  # its many choices tie but for rounding
            changes = {"byzantine": 2} if attack != "none" else {}
            cell = make_cell(aggregator=aggregator, attack=attack, declared_f=2, **changes)
            assert_same_alone(cell, (aggregator, attack))


def test_draws_do_not_depend_on_neighbours(make_cell, few_samples):
    cell = make_cell(attack="gaussian", fault_rate=0.0, aggregator="1-p-krum")
    together, alone = start(cell, few_samples, seeds=[5, 1, 0]), start(cell, few_samples, seeds=[1])
    assert torch.equal(flatten(together.parameters)[1], flatten(alone.parameters)[0])
    assert np.array_equal(together.folds.training[1], alone.folds.training[0])
    for round_ in (0, 1, 49, 50, 120):
        assert torch.equal(together.batches.numbers(round_)[1], alone.batches.numbers(round_)[0])
    step(together), step(alone)
    assert together.coin[1] == alone.coin[0]
    for kind in ("attacks", "coins", "faults"):
        assert getattr(together, kind)[1].uniform() == getattr(alone, kind)[0].uniform()
    assert torch.equal(together.noise[1].get_state(), alone.noise[0].get_state())


def test_the_same_call_gives_the_same_bytes_however_often_it_evaluates(make_cell, few_samples):
    columns = [c for c in COLUMNS if c not in ("byzantine_weight", "norm_ratio")]
    for aggregator in ("average", "krum", "1-p-krum", "geometric-median", "median", "centred-clipping"):
        for attack in ("none", "gaussian", "omniscient", "stale"):
            changes = {"aggregator": aggregator, "attack": attack, "declared_f": 2, "seeds": 2}
            changes |= {"byzantine": 2} if attack != "none" else {}
            seldom = simulate(make_cell(**changes), few_samples)
            assert same(seldom, simulate(make_cell(**changes), few_samples)), (aggregator, attack)
            often = simulate(make_cell(evaluate_every=1, **changes), few_samples)
            common = np.isin(often["round"], [0, 10, 20])
            assert same({c: v[common] for c, v in often.items()}, seldom, columns), (aggregator, attack)


def test_a_diverged_replica_is_recorded_and_harms_nobody(make_cell, few_samples):
    for aggregator in AGGREGATORS:
        for attack in ("none", "gaussian", "omniscient"):
            changes = {"byzantine": 2} if attack != "none" else {}
            cell = make_cell(aggregator=aggregator, attack=attack, declared_f=2, **changes)
            healthy, poisoned = (start(cell, few_samples, seeds=range(3), dtype=torch.float64) for _ in range(2))
            poisoned.parameters[0][0][1, 0, 0] = torch.nan
            recorders = [Recorder(healthy), Recorder(poisoned)]
            for recorder in recorders:
                for _ in range(3):
                    recorder.add(step(recorder.state))
            good, bad = (recorder.record() for recorder in recorders)
            assert bad["diverged"] == [False, True, False], (aggregator, attack)
            for replica in (0, 2):
                assert good["test_loss"][replica] == pytest.approx(bad["test_loss"][replica], rel=1e-9)
            labels = few_samples.labels[poisoned.folds.held_out[1]]
            assert bad["test_error"][1] == pytest.approx((labels != 0).mean())


def test_an_overflow_is_recorded_at_the_error_its_predictions_give(make_cell, few_samples):
    columns = simulate(make_cell(aggregator="average", learning_rate=1e30), few_samples)
    assert columns["diverged"][-1]
    assert np.isfinite(columns["test_error"]).all()


def test_byzantine_weight_says_who_is_chosen(make_cell, few_samples):
    averaged = simulate(make_cell(aggregator="average", attack="gaussian"), few_samples)
    assert np.isnan(averaged["byzantine_weight"][averaged["round"] == 0]).all()
    assert np.allclose(averaged["byzantine_weight"][averaged["round"] > 0], 4 / 11)
    chosen = simulate(make_cell(attack="gaussian"), few_samples)
    assert (chosen["byzantine_weight"][chosen["round"] > 0] == 0).all()
    weak = simulate(make_cell(attack="sign-flip", rounds=60), few_samples)
    assert 0 < np.nanmean(weak["byzantine_weight"]) < 1


def test_rounds_that_are_no_multiple_of_the_evaluation_end_with_one(make_cell, few_samples):
    told = []
    columns = simulate(make_cell(rounds=17, evaluate_every=10, seeds=1), few_samples, progress=told.append)
    assert columns["round"].tolist() == [0, 10, 17] and told == [10, 17]


def test_seeds_that_do_not_fit_side_by_side_run_one_after_the_other(make_cell, few_samples, monkeypatch):
    expected, told = simulate(make_cell(), few_samples), []
    monkeypatch.setattr("krum.simulation.run.NUMBERS_AT_ONCE", 1)
    columns = simulate(make_cell(), few_samples, progress=told.append)
    assert columns["seed"].tolist() == expected["seed"].tolist() and told == sorted(told) and told[-1] == 20
    assert np.allclose(columns["test_loss"], expected["test_loss"], rtol=1e-3)


class TestTheDirectionThatIsNotNeeded:
    """Omniscient attackers whose gradient over the whole fold is computed only where their choice is in doubt."""

    def both(self, monkeypatch, cell, samples):
        """The curve, the curve with the direction in every round, and how often the former needed it."""
        asked = []

        def counted(*arguments):
            asked.append(arguments)
            return mean_gradient(*arguments)

        monkeypatch.setattr(round, "mean_gradient", counted)
        short = simulate(cell, samples)
        needed = len(asked)
        monkeypatch.setattr(round, "choice_without_the_direction", lambda state, byzantine: None)
        whole = simulate(cell, samples)
        monkeypatch.undo()
        assert len(asked) == needed + cell.rounds
        return short, whole, needed

    def test_the_curve_is_the_same(self, make_cell, few_samples, monkeypatch):
        for aggregator in ("krum", "multi-krum", "medoid", "nearest-to-barycentre", "krum-unsquared"):
            for length in (0.3, 3.0, 100.0):
                options = {"attack": "omniscient", "attack_options": (("length", length),), "rounds": 20, "seeds": 2}
                short, whole, needed = self.both(monkeypatch, make_cell(aggregator=aggregator, **options), few_samples)
                columns = [c for c in COLUMNS if c not in ("test_loss", "norm_ratio")]
                assert same(short, whole, columns), (aggregator, length)
                assert np.allclose(short["test_loss"], whole["test_loss"], rtol=1e-4)
                if length == 100.0 and "krum" in aggregator:
                    assert needed == 0, "far attackers are nobody's neighbours, whatever their direction"
                if length == 0.3:
                    assert needed > 0 and np.nanmean(short["byzantine_weight"]) > 0, "near ones may be, and are"

    def test_outside_the_guarantee(self, make_cell, few_samples, monkeypatch):
        """The paper's n = 20, f = 9: nine identical attackers lack one identical neighbour."""
        cell = make_cell(workers=20, byzantine=9, declared_f=9, byzantine_fraction=0.45, attack="omniscient")
        short, whole, needed = self.both(monkeypatch, cell, few_samples)
        assert same(short, whole) and needed == 0

    def test_a_diverged_replica_is_in_doubt(self, make_cell, few_samples):
        state = start(make_cell(attack="omniscient"), few_samples, seeds=range(3))
        assert round.choice_without_the_direction(state, send(state).byzantine) is not None
        state.parameters[0][0][1, 0, 0] = torch.nan
        assert round.choice_without_the_direction(state, send(state).byzantine) is None


def test_a_sampled_direction_stands_for_the_whole_folds(make_cell):
    """Estimated from 300 samples, the omniscient direction is the whole fold's up to a small angle, and as harmful."""
    samples = datasets.load("spambase")
    changes = {"aggregator": "average", "workers": 20, "byzantine": 9, "declared_f": 9, "folds": 10, "rounds": 60}
    state = start(make_cell(attack="omniscient", **changes), samples, seeds=range(5))
    cosines = []
    for _ in range(10):
        sample = (state.folds.draw(300, state.attacks), torch.full((5, 300), 1 / 300))
        whole, sampled = (
            mean_gradient(state.model, state.parameters, state.folds, *samples)
            for samples in (state.folds.whole_training, sample)
        )
        cosines.append(torch.cosine_similarity(whole, sampled))
        step(state)
    assert torch.stack(cosines).median() > 0.95
    for options in ((), (("samples", 300),)):
        cell = make_cell(attack="omniscient", attack_options=options, evaluate_every=60, seeds=5, **changes)
        columns = simulate(cell, samples)
        assert (columns["test_error"] - columns["majority_error"])[columns["round"] == 60].mean() > 0.1


def test_gradient_statistics_are_those_of_every_samples_gradient(make_cell, few_samples):
    state = start(make_cell(measure_gradient=True, batch_size=4), few_samples, seeds=range(2), dtype=torch.float64)
    recorded = Recorder(state).record()
    for replica, training in enumerate(state.folds.training):
        layers = [(w[replica, None], b[replica, None]) for w, b in state.parameters]
        x = state.folds.of(slice(replica, replica + 1)).samples(torch.from_numpy(training)[None])
        each = worker_gradients(state.model, layers, x, state.folds.labels[training][None], len(training)).vectors()[0]
        mean = each.mean(0)
        noise = ((each - mean).square().sum(-1).mean() / 4).sqrt()
        assert recorded["gradient_norm"][replica] == pytest.approx(mean.norm().item(), rel=1e-9)
        assert recorded["gradient_noise"][replica] == pytest.approx(noise.item(), rel=1e-9)


def test_one_worker_makes_averaging_any_model(make_cell, few_samples):
    cell = make_cell(aggregator="average", attack="steer", byzantine=1, seeds=2)
    columns = simulate(cell, few_samples)
    late = columns["round"] > 0
    assert np.isnan(columns["distance_to_target"][~late]).all()
    assert (columns["distance_to_target"][late] < 1e-4).all()
    assert columns["test_error"][late].min() > 0.6, "the target was trained on wrong labels"


def test_differs_is_the_share_of_other_choices(make_cell, few_samples):
    cell = make_cell(aggregator="medoid", compare_with="krum", rounds=40)
    columns = simulate(cell, few_samples)
    state, other = start(cell, few_samples, seeds=[0]), 0
    for _ in range(10):
        sent = send(state)
        geometry = distances.from_gram(sent.gradients.gram)
        other += int(AGGREGATORS["krum"](geometry, 4).argmax() != AGGREGATORS["medoid"](geometry).argmax())
        descend(state, sent, weigh(state, sent))
    assert columns["differs"][(columns["seed"] == 0) & (columns["round"] == 10)] == pytest.approx(other / 10)
    same_rule = simulate(make_cell(compare_with="krum"), few_samples)
    assert (same_rule["differs"][same_rule["round"] > 0] == 0).all()


def test_1_p_krum_tosses_a_coin_of_its_own_in_every_replica_and_round(make_cell, few_samples):
    cell = make_cell(aggregator="1-p-krum", aggregator_options=(("horizon", 1),), seeds=2)
    averaging = simulate(make_cell(aggregator="average", seeds=2), few_samples)
    assert np.array_equal(simulate(cell, few_samples)["test_error"], averaging["test_error"]), "p_t = 1 from round 1 on"
    state, coins = start(make_cell(aggregator="1-p-krum"), few_samples, seeds=range(3)), []
    for _ in range(20):
        step(state)
        coins.append(state.coin.tolist())
    assert len(set(np.ravel(coins))) == 60


def test_folds(make_cell, few_samples):
    """Three seeds of a partition hold every sample out once; the next three, by another shuffle, too.

    What is learned from, the most frequent class, mini-batches and standardisation, is the training fold alone.
    """
    state, columns = (
        start(make_cell(), few_samples, seeds=range(6)),
        simulate(make_cell(rounds=1, seeds=6), few_samples),
    )
    folds, labels = state.folds, few_samples.labels
    for partition in (folds.held_out[:3], folds.held_out[3:]):
        assert sorted(np.concatenate(partition).tolist()) == list(range(90))
    assert folds.held_out[0].tolist() != folds.held_out[3].tolist()
    drawn = torch.cat([state.batches.numbers(round_) for round_ in range(45)], 1).flatten(1).numpy()
    for replica, (training, held_out) in enumerate(zip(folds.training, folds.held_out, strict=True)):
        assert sorted([*training, *held_out]) == list(range(90))
        assert set(drawn[replica]) == set(training)
        answer = int(labels[training].mean() > 0.5)
        assert set(columns["majority_error"][columns["seed"] == replica]) == {(labels[held_out] != answer).mean()}
        inside, outside = (folds.features[replica][fold].double() for fold in (training, held_out))
        assert torch.allclose(inside.mean(0), torch.zeros(57, dtype=torch.float64), atol=1e-5)
        assert torch.allclose(inside.std(0, correction=0), torch.ones(57, dtype=torch.float64), atol=1e-5)
        assert outside.mean(0).abs().max() > 1e-3


def test_no_array_of_all_gradients_is_formed(make_cell, few_samples):
    """A round of a Gram rule makes no tensor of n x d numbers."""
    from torch.utils._python_dispatch import TorchDispatchMode

    cell = make_cell(attack="gaussian", model_options=(("hidden", (400,)),))
    state = start(cell, few_samples, seeds=[0])
    step(state)

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    with Largest() as largest:
        step(state)
    assert largest.numel <= state.previous.shape[1]


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            pick_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(make_cell, few_samples):
    """The same mini-batches and, without large noise, the same curves up to rounding."""
    for aggregator in ("krum", "average", "median", "centred-clipping"):
        for attack in ("gaussian", "omniscient", "label-flip"):
            cell = make_cell(attack=attack, aggregator=aggregator, rounds=5, evaluate_every=5)
            if (aggregator, attack) == ("average", "gaussian"):
                continue
            cpu, cuda = (simulate(cell, few_samples, device=device) for device in ("cpu", "cuda"))
            assert np.allclose(cpu["test_loss"], cuda["test_loss"], rtol=1e-3), (aggregator, attack)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot set it")
def test_numbers_too_small_for_all_digits_are_zeros_and_the_setting_is_put_back():
    least, threads = torch.tensor(torch.finfo(torch.float32).tiny), torch.get_num_threads()
    for before in (False, True):
        torch.set_flush_denormal(before)
        try:
            with one_thread():
                assert torch.get_num_threads() == 1 and float(least / 2) == 0 and float(least) > 0
            assert torch.get_num_threads() == threads
            assert (float(least / 2) == 0) == before
        finally:
            torch.set_flush_denormal(False)
