"""Faults that come and go, bit flips, and endless points; equality with autograd is in tests/test_engine.py."""

from dataclasses import replace

import numpy as np
import torch

from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import Samples
from krum.simulation.deformations import deform
from krum.simulation.gradients import worker_gradients
from krum.simulation.round import send, start
from krum.simulation.run import simulate


def with_faults(cell, attack, rate):
    return replace(cell, attack=attack, fault_rate=rate)


def test_a_replica_with_faults_is_the_same_alone(make_cell, assert_same_alone):
    transient = [name for name, attack in ATTACKS.items() if attack.least == 1 and not attack.lasting]
    for aggregator in ("average", "multi-krum", "median"):
        for attack in transient:
            cell = with_faults(make_cell(aggregator=aggregator), attack, 0.1)
            assert_same_alone(cell, (aggregator, attack))


def test_what_is_recorded_sees_the_faulty(make_cell, few_samples):
    averaged = simulate(with_faults(make_cell(aggregator="average", rounds=200), "mimic", 0.2), few_samples)
    assert abs(averaged["byzantine_weight"][averaged["round"] > 0].mean() - 0.2) < 0.02
    chosen = simulate(with_faults(make_cell(compare_with="krum"), "nan", 0.2), few_samples)
    recorded = chosen["round"] > 0
    assert (chosen["differs"][recorded] == 0).all(), "the same rule sees the same vectors"
    assert (chosen["byzantine_weight"][recorded] == 0).all() and (chosen["norm_ratio"][recorded] > 0.5).all()


def test_a_worker_that_is_always_honest_never_misbehaves(make_cell, few_samples):
    cell = make_cell(aggregator="krum", rounds=10)
    plain, faulty = simulate(cell, few_samples), simulate(with_faults(cell, "crash", 1e-12), few_samples)
    assert np.array_equal(plain["test_error"], faulty["test_error"])


def test_a_bit_flip_flips_one_bit(make_cell, few_samples):
    honest, attacked = (start(make_cell(attack=a), few_samples, seeds=range(20)) for a in ("crash", "bit-flip"))
    samples, labels = honest.batches.of(0, slice(7, 11))
    before = worker_gradients(honest.model, honest.parameters, samples, labels, 4).vectors()
    bits = before.numpy().view(np.uint32) ^ send(attacked).byzantine.vectors().numpy().view(np.uint32)
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


def test_few_points_are_the_fold_itself(make_cell):
    """Numbers below the fold's size are its own images, in its order; more of them make new ones."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.random((90, 7, 7), np.float32), np.ones((4, 4), np.float32)).reshape(90, 784)
    images = Samples(smooth, np.arange(90) % 10)
    changes = {"dataset": "mnist", "model_options": (("hidden", (8,)),), "batch_size": 30}
    state = start(make_cell(**changes, points=50), images, seeds=range(2))
    samples, labels = state.batches.of(0, slice(None))
    numbers = state.batches.numbers(0)[1].flatten()
    assert int(numbers.max()) < 50
    first = torch.from_numpy(state.folds.training[1])[numbers]
    assert np.array_equal(samples[1].numpy(), smooth[first.numpy()])
    assert torch.equal(labels[1], state.folds.labels[first])
    endless = start(make_cell(**changes, points=10**9), images, seeds=range(2))
    samples, labels = endless.batches.of(0, slice(None))
    numbers = endless.batches.numbers(0)[1].flatten()
    source = endless.folds.training[1][numbers.numpy() % len(endless.folds.training[1])]
    assert np.array_equal(labels[1].numpy(), images.labels[source])
    difference = np.abs(samples[1].numpy() - smooth[source])
    assert 0 < difference.mean() < 0.2, "the same image, moved a little"
