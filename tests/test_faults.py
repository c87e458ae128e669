"""Faults that come and go, worker momentum, and endless points, against their definitions."""

import numpy as np
import pytest
import torch
from test_engine import flat_parameters, honest_gradients

import krum
from krum.simulation import datasets
from krum.simulation.attacks import ATTACKS, LASTING, LEAST_BYZANTINE
from krum.simulation.deformations import deform
from krum.simulation.run import Simulation, simulate, stream

TRANSIENT = [name for name in ATTACKS if LEAST_BYZANTINE[name] == 1 and name not in LASTING]


@pytest.mark.parametrize("aggregator", ["average", "krum", "geometric-median", "median", "bulyan", "centred-clipping"])
@pytest.mark.parametrize("attack", ["crash", "inner-product-manipulation", "mimic"])
def test_transient_faults_equal_the_definition(make_cell, few_samples, aggregator, attack):
    """A worker misbehaves with its probability, and what it sends looks at those that do not."""
    cell = make_cell(aggregator=aggregator, declared_f=2, fault_rate=0.2)
    cell = type(cell)(**{**cell.__dict__, "attack": attack})
    build = {"samples": few_samples, "seeds": range(3), "dtype": torch.float64, "device": "cpu"}
    simulation, twin = Simulation(cell, **build), Simulation(cell, **build)
    generators = [np.random.default_rng(stream(seed, "faults")) for seed in range(3)]
    seen = 0
    for _ in range(4):
        before, previous = flat_parameters(simulation), simulation._previous.clone()
        vectors = honest_gradients(twin)
        simulation.step()
        moved = (before - flat_parameters(simulation)) / cell.learning_rate
        for replica, rng in enumerate(generators):
            faulty = torch.from_numpy(rng.random(cell.workers) < 0.2)
            own = vectors[replica].clone()
            honest = own[~faulty]
            own[faulty] = {"crash": 0 * own[0], "mimic": honest[0]}.get(attack, -0.5 * honest.mean(0))
            context = {"previous": previous[replica]} if aggregator == "centred-clipping" else {}
            expected = krum.aggregate(own, aggregator, f=2, **context)
            assert torch.allclose(moved[replica], expected, rtol=1e-9, atol=1e-10)
            seen += int(faulty.sum())
        twin.parameters = [(w.clone(), b.clone()) for w, b in simulation.parameters]
        twin.round = simulation.round
    assert seen > 10


@pytest.mark.parametrize(
    "aggregator", ["average", "krum", "multi-krum", "median", "geometric-median", "centred-clipping"]
)
@pytest.mark.parametrize("attack", TRANSIENT)
def test_a_replica_with_faults_is_the_same_alone(make_cell, few_samples, aggregator, attack):
    cell = make_cell(aggregator=aggregator, fault_rate=0.0 if attack == "none" else 0.1, rounds=10, evaluate_every=5)
    cell = type(cell)(**{**cell.__dict__, "attack": attack})
    together = simulate(cell, few_samples)
    alone = simulate(cell, few_samples, seeds=[1])
    for column, values in together.items():
        assert np.array_equal(values[together["seed"] == 1], alone[column], equal_nan=True), column


def test_a_worker_that_is_always_honest_never_misbehaves(make_cell, few_samples):
    cell = make_cell(aggregator="krum", rounds=10)
    never = type(cell)(**{**cell.__dict__, "attack": "crash", "fault_rate": 1e-12})
    plain, faulty = simulate(cell, few_samples), simulate(never, few_samples)
    assert np.array_equal(plain["test_error"], faulty["test_error"])


@pytest.mark.parametrize("aggregator", ["average", "krum", "median"])
@pytest.mark.parametrize("attack", ["none", "mimic"])
def test_worker_momentum_equals_the_definition(make_cell, few_samples, aggregator, attack):
    """`m <- beta m + (1 - beta) g`, from m = g; the attackers look at what the honest send."""
    cell = make_cell(aggregator=aggregator, attack=attack, worker_momentum=0.8)
    build = {"samples": few_samples, "seeds": range(2), "dtype": torch.float64, "device": "cpu"}
    simulation, twin = Simulation(cell, **build), Simulation(cell, **build)
    momentum = None
    for _ in range(4):
        before = flat_parameters(simulation)
        gradients = honest_gradients(twin)
        momentum = gradients if momentum is None else 0.8 * momentum + 0.2 * gradients
        simulation.step()
        moved = (before - flat_parameters(simulation)) / cell.learning_rate
        for replica in range(2):
            sent = momentum[replica]
            sent = torch.cat([sent, sent[:1].expand(cell.byzantine, -1)])
            expected = krum.aggregate(sent, aggregator, f=cell.declared_f)
            assert torch.allclose(moved[replica], expected, rtol=1e-9, atol=1e-10)
        twin.parameters = [(w.clone(), b.clone()) for w, b in simulation.parameters]
        twin.round = simulation.round


def test_a_bit_flip_flips_one_bit(make_cell, few_samples):
    simulation = Simulation(make_cell(attack="bit-flip"), few_samples, seeds=range(20))
    with torch.inference_mode():
        simulation.send()
        workers = np.arange(7, 11)
        own = simulation._own_vectors(slice(None), workers, False)
        _, byzantine = Simulation(make_cell(attack="bit-flip"), few_samples, seeds=range(20)).send()
        sent = byzantine.vectors()
    bits = own.numpy().view(np.uint32) ^ sent.numpy().view(np.uint32)
    changed = bits[bits != 0]
    assert len(changed) == 80 and (np.bitwise_count(changed) == 1).all()
    assert len(set(changed.tolist())) > 20, "any of the 32"
    assert ((bits != 0).sum(-1) == 1).all()


def test_points_are_functions_of_their_numbers():
    images = torch.rand(6, 784)
    numbers = torch.tensor([0, 1, 2, 10**12, 1, 7])
    made = deform(images, numbers)
    assert torch.equal(made[0], images[0])
    assert all(not torch.equal(made[i], images[i]) for i in range(1, 6))
    assert torch.equal(made, deform(images, numbers))
    assert torch.allclose(made[3:4], deform(images[3:4], numbers[3:4]), atol=1e-4), "whatever is made beside it"
    same = deform(images[:1].expand(3, -1), torch.tensor([1, 2, 1]))
    assert torch.equal(same[0], same[2]) and not torch.equal(same[0], same[1])
    assert made.min() >= 0 and made.max() <= 1 + 1e-5


def test_a_deformation_is_small():
    """A dot in the middle moves by no more than shift, turn and bend allow, and keeps most of its ink."""
    image = torch.zeros(28, 28)
    image[13:15, 13:15] = 1
    made = deform(image.view(1, -1).expand(2000, -1), torch.arange(1, 2001)).view(-1, 28, 28)
    ink = made.sum((1, 2))
    rows = (made.sum(2) * torch.arange(28.0)).sum(1) / ink - 13.5
    assert abs(rows.mean()) < 5 * rows.std() / 2000**0.5
    assert 0.5 < rows.std() < 2 and rows.abs().max() < 6
    assert abs(ink.mean() / 4 - 1) < 0.05


@pytest.mark.skipif(not (datasets.DATA / "MNIST").exists(), reason="MNIST is not there")
def test_few_points_are_the_fold_itself(make_cell):
    """Numbers below the fold's size are its own images, in its order; more of them make new ones."""
    changes = {"dataset": "mnist", "model_options": (("hidden", (8,)),), "folds": 10}
    simulation = Simulation(make_cell(**changes, points=50), seeds=range(2))
    samples, labels = simulation._next_batch()
    index = simulation._drawn[0, 0]
    assert int(index.max()) < 50
    first = torch.from_numpy(simulation._training[0])[index]
    assert torch.equal(samples[0], simulation._samples(first[None])[0])
    assert torch.equal(labels[0], simulation._labels[first])
    endless = Simulation(make_cell(**changes, points=10**9), seeds=range(2))
    samples, labels = endless._next_batch()
    index = endless._drawn[0, 0]
    source = torch.from_numpy(endless._training[0])[index % len(endless._training[0])]
    assert torch.equal(labels[0], endless._labels[source])
    images = endless._samples(source[None])[0]
    assert not torch.equal(samples[0], images)
    assert (samples[0] - images).abs().mean() < 0.15, "the same digit, moved a little"
