"""The engine that draws the figures against autograd, vector by vector (tests/reference.py)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import Reference

import krum
from krum.rules.aggregators import AGGREGATORS
from krum.simulation import models
from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import Samples
from krum.simulation.gradients import cheaper_branch, flatten, worker_gradients
from krum.simulation.recording import Recorder
from krum.simulation.round import send, start, step

# float32 and the figures, float64 and the formulas: the tolerance is that of one step, relative to the aggregate's size
DTYPES = [(torch.float32, 3e-5), (torch.float64, 1e-9)]
CONVNETS = [
    (("channels", (3, 4)), ("kernel", 5), ("stride", 2)),
    (("channels", (3,)), ("kernel", 4), ("stride", 3)),
    (("channels", (2, 3, 4)), ("kernel", 3), ("stride", 2)),
]


def steps_equal_autograd(cell, samples, rounds=3, standardise=True):
    """Every round of two seeds side by side, from the engine's own parameters, then the recorded error and loss."""
    for dtype, tolerance in DTYPES:
        state = start(cell, samples, seeds=[0, 4], dtype=dtype)
        if cell.aggregator == "geometric-median":
            tolerance = max(tolerance, 1e-5)  # where its iteration ends
        recorder = Recorder(state)
        references = [Reference(cell, samples, seed, dtype, standardise) for seed in state.seeds]
        for round_ in range(rounds):
            before = flatten(state.parameters).double().numpy()
            for reference, flat in zip(references, before, strict=True):
                reference.set_parameters(flat)
            recorder.add(step(state))
            moved = (before - flatten(state.parameters).double().numpy()) / cell.learning_rate
            for replica, reference in enumerate(references):
                expected = reference.step(None if state.target is None else state.target[replica].double().numpy())
                scale = max(1.0, float(np.abs(expected).max()))
                where = f"{cell.aggregator}, {cell.attack}, {dtype}, round {round_}, replica {replica}"
                assert np.allclose(moved[replica], expected, rtol=0, atol=tolerance * scale), where
        errors, losses = (recorder.record()[column] for column in ("test_error", "test_loss"))
        expected = [reference.evaluate() for reference in references]
        assert np.allclose(losses, [loss for _, loss in expected], rtol=1e-3)
        assert np.allclose(errors, [error for error, _ in expected], atol=1.01 / 30), "one of thirty held-out samples"


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_rule_equals_autograd_under_three_attacks(make_cell, few_samples, aggregator):
    # Among identical vectors Bulyan's many choices tie but for rounding.
    several = {"byzantine": 2, "declared_f": 2} if aggregator == "bulyan" else {}
    for attack in ("none", "wrong-scale" if aggregator == "bulyan" else "sign-flip", "label-flip"):
        changes = {**several, "byzantine": 0} if attack == "none" and several else several
        steps_equal_autograd(make_cell(aggregator=aggregator, attack=attack, **changes), few_samples)


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "bit-flip"])
def test_every_attack_equals_autograd_under_three_rules(make_cell, few_samples, attack):
    for aggregator in ("average", "krum", "median"):
        if (aggregator, attack) != ("average", "nan"):
            steps_equal_autograd(make_cell(aggregator=aggregator, attack=attack), few_samples)


@pytest.fixture(params=["sample pairs", "formed gradients"])
def branch(request, monkeypatch):
    """One way to the Gram matrix for all layers."""
    monkeypatch.setattr("krum.simulation.gradients.cheaper_branch", lambda *sizes: request.param)


def test_every_model_and_branch_equals_autograd(make_cell, few_samples, branch):
    for hidden in ((7, 5), (20,), ()):
        for aggregator, attack in (("krum", "none"), ("multi-krum", "omniscient")):
            options = {"model_options": (("hidden", hidden),), "batch_size": 3}
            steps_equal_autograd(make_cell(aggregator=aggregator, attack=attack, **options), few_samples, 2)


def test_images_equal_autograd(make_cell):
    """Mostly black, ten classes, batches large enough that gradients are formed; not standardised."""
    rng = np.random.default_rng(0)
    pixels = rng.random((90, 784), np.float32) * (rng.random((90, 784)) < 0.2)
    samples = Samples(pixels, rng.permutation(np.arange(90) % 10))
    changes = {"dataset": "mnist", "batch_size": 30, "model_options": (("hidden", (20,)),)}
    for aggregator in ("krum", "average"):
        steps_equal_autograd(make_cell(aggregator=aggregator, **changes), samples, 2, standardise=False)


def test_transient_faults_equal_autograd(make_cell, few_samples):
    """A worker misbehaves with its probability, and what it sends looks at those that do not."""
    for aggregator in ("average", "krum", "multi-krum", "geometric-median", "median", "centred-clipping"):
        for attack in ("inner-product-manipulation", "mimic", "wrong-scale"):
            cell = make_cell(aggregator=aggregator, declared_f=2, fault_rate=0.2)
            steps_equal_autograd(replace(cell, attack=attack), few_samples)


def test_worker_momentum_equals_autograd(make_cell, few_samples):
    """`m <- beta m + (1 - beta) g`, from m = g; the attackers look at what the honest send."""
    for aggregator in ("average", "krum", "median"):
        for attack in ("none", "mimic", "sign-flip"):
            steps_equal_autograd(make_cell(aggregator=aggregator, attack=attack, worker_momentum=0.8), few_samples)


def convolution_gradient(model, parameters, replica, samples, labels):
    """One replica's flat gradient of the mean cross-entropy, written with torch's own convolution."""
    layers = [(w[replica].clone().requires_grad_(), b[replica].clone().requires_grad_()) for w, b in parameters]
    side = int(samples.shape[1] ** 0.5)
    maps = samples.view(-1, 1, side, side)
    for weight, bias in layers[:-1]:
        kernel = weight.view(model.kernel, model.kernel, maps.shape[1], -1).permute(3, 2, 0, 1)
        maps = torch.nn.functional.conv2d(maps, kernel, bias, stride=model.stride).relu()
    logits = maps.permute(0, 2, 3, 1).flatten(1) @ layers[-1][0] + layers[-1][1]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, [part for pair in layers for part in pair])
    return torch.cat([part.flatten() for part in gradients])


def test_convolutions_equal_torchs(branch):
    generator = torch.Generator().manual_seed(0)
    for options in CONVNETS:
        model = models.build("convnet", dict(options), 20 * 20, 7)
        parameters = [
            tuple(torch.from_numpy(np.stack([part, part + 0.1])) for part in layer)
            for layer in models.initialise(model, np.random.default_rng(0))
        ]
        samples = torch.rand(2, 12, 400, dtype=torch.float64, generator=generator)
        labels = torch.randint(7, (2, 12), generator=generator)
        expected = torch.stack(
            [
                convolution_gradient(model, parameters, r, samples[r, i : i + 3], labels[r, i : i + 3])
                for r in range(2)
                for i in range(0, 12, 3)
            ]
        ).view(2, 4, -1)
        assert expected.shape[-1] == models.dimension(model)
        close = {"rtol": 1e-10, "atol": 1e-12}
        gradients = worker_gradients(model, parameters, samples, labels, 4)
        assert torch.allclose(gradients.vectors(), expected, **close)
        assert torch.allclose(gradients.gram, expected @ expected.mT, **close)
        assert torch.allclose(gradients.squared_norms, expected.square().sum(-1), **close)
        other = torch.randn(2, 3, expected.shape[-1], dtype=torch.float64, generator=generator)
        assert torch.allclose(gradients.inner_products(other), expected @ other.mT, rtol=1e-9, atol=1e-10)
        for weights in ([[0.5, 0.0, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]], [[0.25] * 4] * 2, [[0.0] * 4] * 2):
            moved = [(weight.clone(), bias.clone()) for weight, bias in parameters]
            of_workers = torch.tensor(weights, dtype=torch.float64)
            gradients.descend(moved, of_workers, 0.1)
            step_ = (flatten(parameters) - flatten(moved)) / 0.1
            assert torch.allclose(step_, (of_workers[:, None] @ expected).squeeze(1), **close)


def test_without_weight_not_even_a_nan_counts(make_cell, few_samples):
    state = start(make_cell(), few_samples, seeds=range(2))
    with torch.inference_mode():
        gradients = send(state).gradients
        gradients.inputs[0][0, :2] = torch.nan  # the first worker's
        weights = torch.zeros(2, 11)
        weights[0, 3] = weights[1, 0] = weights[1, 1] = 0.5
        gradients.descend(state.parameters, weights, 0.1)
        assert flatten(state.parameters).isfinite().all()


def test_convnet_takes_squares_of_a_sufficient_size_only():
    with pytest.raises(krum.InputError, match="square images; found 57 features"):
        models.build("convnet", {}, 57, 2)
    with pytest.raises(krum.InputError, match="less than the kernel's 9"):
        models.build("convnet", {"channels": (2, 2), "kernel": 9, "stride": 3}, 400, 2)


def test_inner_products_are_those_of_the_vectors(make_cell, few_samples, branch):
    gradients = send(start(make_cell(batch_size=3), few_samples, seeds=range(2), dtype=torch.float64)).gradients
    vectors = gradients.vectors()
    assert torch.allclose(gradients.gram, vectors @ vectors.mT, rtol=1e-12, atol=1e-14)
    other = torch.randn(2, 4, vectors.shape[-1], dtype=torch.float64)
    assert torch.allclose(gradients.inner_products(other), vectors @ other.mT, rtol=1e-12, atol=1e-12)


def test_the_branch_follows_the_batch():
    assert cheaper_branch(20, 3, 784, 100) == "sample pairs"
    assert cheaper_branch(20, 100, 784, 100) == "formed gradients"


class TestGaussian:
    """The Gaussian attack, known first by its inner products."""

    def drawn(self, make_cell, few_samples, seeds, **changes):
        cell = make_cell(attack="gaussian", attack_options=(("standard_deviation", 2.0),), **changes)
        sent = send(start(cell, few_samples, seeds=seeds, dtype=torch.float64))
        return sent.gradients, sent.byzantine

    def test_what_is_formed_has_the_drawn_inner_products(self, make_cell, few_samples):
        """The vectors, and the one vector that is drawn for a sum of several."""
        for batch_size in (1, 2):
            gradients, byzantine = self.drawn(make_cell, few_samples, range(3), batch_size=batch_size)
            with_honest, among = byzantine.inner_products()
            honest, weights = gradients.vectors(), torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 1, -1)
            coefficients, vector = byzantine.weighted(weights[:, 0])
            every = torch.eye(4, dtype=torch.float64).expand(3, -1, -1)
            total = coefficients[:, None] @ honest + vector[:, None]
            for formed, sums in ((byzantine.vectors(), every), (total, weights)):
                close = {"rtol": 1e-9, "atol": 1e-9}
                assert torch.allclose(honest @ formed.mT, with_honest @ sums.mT, **close)
                assert torch.allclose(formed @ formed.mT, sums @ among @ sums.mT, **close)

    def test_identical_and_zero_honest_gradients(self, make_cell, few_samples):
        gradients, byzantine = self.drawn(make_cell, few_samples, range(2))
        with torch.inference_mode():
            for delta in gradients.deltas:
                delta[:, 2:4] = delta[:, 0:2]
                delta[:, 4:6] = 0
            for x in gradients.inputs:
                x[:, 2:4] = x[:, 0:2]
            with_honest, among = byzantine.inner_products()
            assert torch.allclose(with_honest[:, 0], with_honest[:, 1], atol=1e-6)
            assert torch.allclose(with_honest[:, 2], torch.zeros_like(with_honest[:, 2]), atol=1e-6)
            vectors = byzantine.vectors()
            assert torch.allclose(vectors @ vectors.mT, among, rtol=1e-6, atol=1e-6)

    def test_coordinates_and_lengths_are_normal(self, make_cell, few_samples):
        """Those of N(0, 4 I): 400 replicas, bounds at five standard errors."""
        gradients, byzantine = self.drawn(make_cell, few_samples, range(400))
        with_honest, among = byzantine.inner_products()
        vectors, variance = byzantine.vectors() / 2, 4.0
        d = vectors.shape[-1]
        lengths = among.diagonal(dim1=1, dim2=2).flatten() / variance
        assert abs(lengths.mean() - d) < 5 * np.sqrt(2 * d / lengths.numel())
        assert abs(lengths.std() / np.sqrt(2 * d) - 1) < 0.15
        crossed = among[:, 0, 1] / variance
        assert abs(crossed.mean()) < 5 * np.sqrt(d / 400)
        assert abs(crossed.std() / np.sqrt(d) - 1) < 0.2
        normalised = with_honest / (2 * gradients.gram.diagonal(dim1=1, dim2=2).sqrt()[..., None])
        assert abs(normalised.mean()) < 5 / np.sqrt(normalised.numel() / 7)
        assert abs(normalised.std() - 1) < 0.1
        assert abs(vectors.mean()) < 5 / np.sqrt(vectors.numel())
        assert abs(vectors.std() - 1) < 5 / np.sqrt(vectors.numel())
        each = vectors.flatten(0, 1)
        assert each.mean(0).abs().max() < 5.5 / np.sqrt(len(each))

    def test_few_dimensions(self, make_cell, few_samples):
        """Fewer parameters than workers: the vectors are drawn outright."""
        cell = make_cell(attack="gaussian", workers=200, byzantine=80, declared_f=80, model_options=(("hidden", ()),))
        state = start(cell, few_samples, seeds=range(2))
        step(state)
        assert flatten(state.parameters).isfinite().all()
