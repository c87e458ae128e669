"""Replicas that do not know of each other, and curves that are the same every time."""

import numpy as np
import pytest
import torch

from krum.errors import InputError
from krum.rules import distances
from krum.rules.aggregators import AGGREGATORS
from krum.simulation import datasets
from krum.simulation.attacks import ATTACKS
from krum.simulation.gradients import worker_gradients
from krum.simulation.run import COLUMNS, Simulation, one_thread, pick_device, simulate

PAIRS = [(a, b) for a in AGGREGATORS for b in ATTACKS]


def same(one, other, columns=COLUMNS):
    return all(np.array_equal(one[c], other[c], equal_nan=one[c].dtype.kind == "f") for c in columns)


@pytest.mark.parametrize(("aggregator", "attack"), PAIRS)
def test_a_curve_does_not_depend_on_its_neighbours(make_cell, few_samples, aggregator, attack):
    cell = make_cell(aggregator=aggregator, attack=attack)
    together = simulate(cell, few_samples)
    again = simulate(cell, few_samples)
    assert same(together, again)
    for seed in range(cell.seeds):
        alone = simulate(cell, few_samples, seeds=[seed])
        assert same({c: v[together["seed"] == seed] for c, v in together.items()}, alone)
    backwards = simulate(cell, few_samples, seeds=[2, 0])
    assert same({c: v[together["seed"] == 2] for c, v in together.items()}, {c: v[:3] for c, v in backwards.items()})


@pytest.mark.parametrize(
    ("attack", "options"),
    [("gaussian", {"standard_deviation": 0.01}), ("sign-flip", {"scale": 1.0}), ("omniscient", {"length": 1.0})],
)
@pytest.mark.parametrize("hidden", [(7, 5), (100, 100)])
def test_nor_on_whether_its_neighbours_choose_an_attacker(make_cell, few_samples, attack, options, hidden):
    """Attacks so weak that Krum chooses an attacker in some replicas and rounds, and not in others."""
    changes = {
        "attack_options": tuple(options.items()),
        "model_options": (("hidden", hidden),),
        "seeds": 5,
        "rounds": 60,
    }
    cell = make_cell(attack=attack, **changes)
    together = simulate(cell, few_samples)
    chosen = together["byzantine_weight"][together["round"] > 0]
    assert 0 < chosen.mean() < 1
    for seed in range(cell.seeds):
        alone = simulate(cell, few_samples, seeds=[seed])
        assert same({c: v[together["seed"] == seed] for c, v in together.items()}, alone)


@pytest.mark.parametrize(("aggregator", "attack"), PAIRS)
def test_a_curve_does_not_depend_on_how_often_it_is_evaluated(make_cell, few_samples, aggregator, attack):
    often = simulate(make_cell(aggregator=aggregator, attack=attack, evaluate_every=1), few_samples)
    seldom = simulate(make_cell(aggregator=aggregator, attack=attack, evaluate_every=10), few_samples)
    common = np.isin(often["round"], [0, 10, 20])
    columns = [c for c in COLUMNS if c not in ("byzantine_weight", "norm_ratio")]
    assert same({c: v[common] for c, v in often.items()}, seldom, columns)


def test_thread_count_does_not_matter(make_cell, few_samples):
    cell = make_cell(attack="gaussian", model_options=(("hidden", (100, 100)),))
    one = simulate(cell, few_samples)
    torch.set_num_threads(2)
    try:
        assert same(one, simulate(cell, few_samples))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("aggregator", "attack"), PAIRS)
def test_a_diverged_replica_is_recorded_and_harms_nobody(make_cell, few_samples, aggregator, attack):
    cell = make_cell(aggregator=aggregator, attack=attack)
    healthy, poisoned = (Simulation(cell, few_samples, seeds=range(3)) for _ in range(2))
    with torch.inference_mode():
        poisoned.parameters[0][0][1, 0, 0] = torch.nan
    for simulation in (healthy, poisoned):
        for _ in range(12):
            simulation.step()
    good, bad = healthy.record(), poisoned.record()
    assert bad["diverged"] == [good["diverged"][0], True, good["diverged"][2]]
    for column in COLUMNS:
        for replica in (0, 2):
            assert good[column][replica] == bad[column][replica] or np.isnan(good[column][replica])
    labels = poisoned._labels[poisoned._held_out[1]]
    assert bad["test_error"][1] == pytest.approx((labels != 0).double().mean().item())


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


def test_rounds_that_are_no_multiple_of_the_evaluation_end_with_one(make_cell, few_samples):
    columns = simulate(make_cell(rounds=17, evaluate_every=10, seeds=1), few_samples)
    assert columns["round"].tolist() == [0, 10, 17]


class TestTheDirectionThatIsNotNeeded:
    """Omniscient attackers whose gradient over the whole fold is computed only where their choice is in doubt."""

    def both(self, monkeypatch, cell, samples):
        """The curve, the curve of the plain computation, and how often the former needed the direction."""
        asked = []
        whole = Simulation._full_gradient

        def counted(simulation, replicas, samples=None):
            asked.append(len(replicas))
            return whole(simulation, replicas, samples)

        monkeypatch.setattr(Simulation, "_full_gradient", counted)
        short = simulate(cell, samples)
        needed, asked[:] = sum(asked), []

        def nothing_is_certain(simulation, honest, byzantine):
            certain, choice = choose(simulation, honest, byzantine)
            return torch.zeros_like(certain), choice

        choose = Simulation._choice_without_the_direction
        monkeypatch.setattr(Simulation, "_choice_without_the_direction", nothing_is_certain)
        plain = simulate(cell, samples)
        assert sum(asked) == cell.rounds * cell.seeds, "the plain computation takes it in every round"
        return short, plain, needed

    @pytest.mark.parametrize("aggregator", [name for name, rule in AGGREGATORS.items() if rule.selects])
    @pytest.mark.parametrize("length", [0.3, 1.0, 3.0, 10.0, 100.0])
    def test_the_curve_is_the_same(self, make_cell, few_samples, monkeypatch, aggregator, length):
        cell = make_cell(aggregator=aggregator, attack="omniscient", attack_options=(("length", length),), rounds=40)
        short, plain, needed = self.both(monkeypatch, cell, few_samples)
        assert same(short, plain)
        if length == 100.0 and "krum" in aggregator:
            assert needed == 0, "far attackers are nobody's neighbours, whatever their direction"
        if length == 0.3:
            assert needed > 0 and np.nanmean(short["byzantine_weight"]) > 0, "near ones may be, and are"

    def test_outside_the_guarantee(self, make_cell, few_samples, monkeypatch):
        """The paper's n = 20, f = 9: nine identical attackers lack one identical neighbour."""
        cell = make_cell(workers=20, byzantine=9, declared_f=9, byzantine_fraction=0.45, attack="omniscient")
        short, plain, needed = self.both(monkeypatch, cell, few_samples)
        assert same(short, plain) and needed == 0

    def test_a_diverged_replica_is_in_doubt(self, make_cell, few_samples):
        simulation = Simulation(make_cell(attack="omniscient"), few_samples, seeds=range(3))
        with torch.inference_mode():
            simulation.parameters[0][0][1, 0, 0] = torch.nan
            gradients, byzantine = simulation.send()
            gram = gradients.gram.new_zeros(3, 11, 11)
            gram[:, :7, :7] = gradients.gram
            certain, _ = simulation._choice_without_the_direction(distances.from_gram(gram), byzantine)
        assert certain.tolist() == [True, False, True]


def test_a_sampled_direction_stands_for_the_whole_folds(make_cell):
    """Estimated from 300 samples, the omniscient direction is the whole fold's up to a small angle, and as harmful."""
    samples = datasets.load("spambase")
    changes = {"aggregator": "average", "workers": 20, "byzantine": 9, "declared_f": 9, "folds": 10, "rounds": 100}
    simulation = Simulation(make_cell(attack="omniscient", **changes), samples, seeds=range(10))
    cosines = []
    with torch.inference_mode():
        for _ in range(20):
            everyone = torch.arange(10)
            whole, sampled = (simulation._full_gradient(everyone, count) for count in (None, 300))
            cosines.append(torch.cosine_similarity(whole, sampled))
            simulation.step()
    assert torch.stack(cosines).median() > 0.95
    for options in ((), (("samples", 300),)):
        cell = make_cell(attack="omniscient", attack_options=options, evaluate_every=100, seeds=10, **changes)
        columns = simulate(cell, samples)
        assert (columns["test_error"] - columns["majority_error"])[columns["round"] == 100].mean() > 0.1


def test_gradient_statistics(make_cell, few_samples):
    """Against every sample's gradient by itself."""
    cell = make_cell(measure_gradient=True, batch_size=4)
    simulation = Simulation(cell, few_samples, seeds=range(2), dtype=torch.float64)
    recorded = simulation.record()
    for replica, training in enumerate(simulation._training):
        own = [(w[replica : replica + 1], b[replica : replica + 1]) for w, b in simulation.parameters]
        x = simulation._samples(torch.from_numpy(training)[None], torch.tensor([replica]))
        each = worker_gradients(simulation.model, own, x, simulation._labels[training][None], len(training)).vectors()[
            0
        ]
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
    simulation = Simulation(cell, few_samples, seeds=[0])
    other = 0
    with torch.inference_mode():
        for _ in range(10):
            twin, byzantine = simulation.send()
            geometry = distances.from_gram(twin.gram)
            other += int(AGGREGATORS["krum"](geometry, 4).argmax() != AGGREGATORS["medoid"](geometry).argmax())
            weights = simulation.weigh(twin, byzantine)
            simulation._descend_by_samples(cell.learning_rate, twin, weights)
            simulation.round += 1
    assert columns["differs"][(columns["seed"] == 0) & (columns["round"] == 10)] == pytest.approx(other / 10)
    same_rule = simulate(make_cell(compare_with="krum"), few_samples)
    assert (same_rule["differs"][same_rule["round"] > 0] == 0).all()


def test_1_p_krum_tosses_a_coin_of_its_own_in_every_replica_and_round(make_cell, few_samples):
    cell = make_cell(aggregator="1-p-krum", aggregator_options=(("horizon", 1),), seeds=2)
    averaging = simulate(make_cell(aggregator="average", seeds=2), few_samples)
    assert np.array_equal(simulate(cell, few_samples)["test_error"], averaging["test_error"]), "p_t = 1 from round 1 on"
    simulation = Simulation(make_cell(aggregator="1-p-krum"), few_samples, seeds=range(3))
    coins = []
    for _ in range(20):
        simulation.step()
        coins.append(simulation._coin.tolist())
    assert len(set(np.ravel(coins))) == 60


def test_majority_error(make_cell, few_samples):
    columns = simulate(make_cell(), few_samples)
    simulation = Simulation(make_cell(), few_samples, seeds=range(3))
    for replica, training in enumerate(simulation._training):
        answer = few_samples.labels[training].mean() > 0.5
        held_out = few_samples.labels[simulation._held_out[replica].numpy()]
        expected = (held_out != int(answer)).mean()
        assert set(columns["majority_error"][columns["seed"] == replica]) == {expected}


def test_seeds_share_folds_in_turn(make_cell, few_samples):
    """Three seeds of a partition hold every sample out once; the next three, by another shuffle, too."""
    simulation = Simulation(make_cell(), few_samples, seeds=range(6))
    held_out = [set(range(90)) - set(training.tolist()) for training in simulation._training]
    for partition in (held_out[:3], held_out[3:]):
        assert sorted(sample for fold in partition for sample in fold) == list(range(90))
    assert held_out[0] != held_out[3]


def test_standardisation_is_fitted_on_the_training_fold(make_cell, few_samples):
    simulation = Simulation(make_cell(), few_samples, seeds=range(3))
    for replica, training in enumerate(simulation._training):
        prepared = simulation._samples(torch.from_numpy(training)[None], torch.tensor([replica]))[0].double()
        assert torch.allclose(prepared.mean(0), torch.zeros(57, dtype=torch.float64), atol=1e-5)
        assert torch.allclose(prepared.std(0, correction=0), torch.ones(57, dtype=torch.float64), atol=1e-5)
        held_out = simulation._samples(simulation._held_out[replica][None], torch.tensor([replica]))[0]
        assert held_out.mean(0).abs().max() > 1e-3


def test_no_array_of_all_gradients_is_formed(make_cell, few_samples):
    """A round of a Gram rule makes no tensor of n x d numbers."""
    from torch.utils._python_dispatch import TorchDispatchMode

    cell = make_cell(attack="gaussian", model_options=(("hidden", (400,)),))
    simulation = Simulation(cell, few_samples, seeds=[0])
    simulation.step()

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    with Largest() as largest:
        simulation.step()
    assert largest.numel <= simulation.dimension


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
    cell = make_cell(attack="gaussian")
    cpu, cuda = (simulate(cell, few_samples, device=device) for device in ("cpu", "cuda"))
    assert np.allclose(cpu["test_loss"], cuda["test_loss"], rtol=1e-3)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot set it")
@pytest.mark.parametrize("before", [False, True])
def test_numbers_too_small_for_all_digits_are_zeros_and_the_setting_is_put_back(before):
    least, threads = torch.tensor(torch.finfo(torch.float32).tiny), torch.get_num_threads()
    torch.set_flush_denormal(before)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1 and float(least / 2) == 0 and float(least) > 0
        assert torch.get_num_threads() == threads
        assert (float(least / 2) == 0) == before
    finally:
        torch.set_flush_denormal(False)
