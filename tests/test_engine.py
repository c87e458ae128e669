"""The Gram-space engine against gradients materialised one by one with autograd, in float64."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

import krum
from krum.rules.aggregators import AGGREGATORS
from krum.simulation import models
from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import Samples
from krum.simulation.gradients import cheaper_branch, worker_gradients
from krum.simulation.run import Simulation

MODELS = [(("hidden", (7, 5)),), (("hidden", (6,)),), (("hidden", ()),)]
CONVNETS = [
    (("channels", (3, 4)), ("kernel", 5), ("stride", 2)),
    (("channels", (3,)), ("kernel", 4), ("stride", 3)),
    (("channels", (2, 3, 4)), ("kernel", 3), ("stride", 2)),
]
BRANCHES = ["samples", "gradients", None]


def autograd_gradient(parameters, replica, samples, labels):
    """One replica's flat gradient of the mean cross-entropy, written with torch.nn."""
    layers = []
    for weight, bias in parameters:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[2], dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight[replica].T)
            layer.bias.copy_(bias[replica])
        layers += [layer, torch.nn.ReLU()]
    loss = torch.nn.functional.cross_entropy(torch.nn.Sequential(*layers[:-1])(samples), labels)
    gradients = torch.autograd.grad(loss, [p for layer in layers[:-1:2] + layers[-2:-1] for p in layer.parameters()])
    flat = []
    for weight, bias in zip(gradients[: 2 * len(parameters) : 2], gradients[1::2], strict=False):
        flat += [weight.T.flatten(), bias]
    return torch.cat(flat[: 2 * len(parameters)])


def flat_parameters(simulation):
    return torch.cat([part.flatten(1) for pair in simulation.parameters for part in pair], 1).clone()


def honest_gradients(simulation):
    """What the honest workers of every replica send next, by autograd: [R, h, d]; draws the mini-batch."""
    samples, labels = simulation._next_batch()
    h, b = simulation.honest, simulation.cell.batch_size
    return torch.stack(
        [
            torch.stack(
                [
                    autograd_gradient(
                        simulation.parameters, r, samples[r, i * b : (i + 1) * b], labels[r, i * b : (i + 1) * b]
                    )
                    for i in range(h)
                ]
            )
            for r in range(simulation.replicas)
        ]
    )


def own_gradients(simulation, attack):
    """Gradients of the Byzantine workers' own mini-batches, by autograd, as these attacks change them."""
    if attack == "stale" and simulation.round % 50:
        return simulation.kept_by_the_test
    h, b, f = simulation.honest, simulation.cell.batch_size, simulation.cell.byzantine
    rows = []
    for r in range(simulation.replicas):
        index = simulation._drawn[simulation.round % 50, r].view(-1, b)[h:]
        for worker in index:
            labels = simulation._labels[worker]
            labels = 1 - labels if attack == "label-flip" else labels
            samples = simulation._samples(worker[None], torch.tensor([r]))[0]
            rows.append(autograd_gradient(simulation.parameters, r, samples, labels))
    found = torch.stack(rows).view(simulation.replicas, f, -1) * (100 if attack == "wrong-scale" else 1)
    simulation.kept_by_the_test = found
    return found


def plain_byzantine(simulation, honest):
    """The deterministic attacks by their definitions, on materialised vectors."""
    f, attack = simulation.cell.byzantine, simulation.cell.attack
    mean, n, h = honest.mean(1, keepdim=True), simulation.cell.workers, simulation.honest
    if attack == "sign-flip":
        return -mean.expand(-1, f, -1)
    if attack == "barycentre-collusion":
        far = n * -mean - honest.sum(1, keepdim=True) - (f - 1) * -mean
        return torch.cat([-mean.expand(-1, f - 1, -1), far], 1)
    if attack == "steer":
        chosen = (flat_parameters(simulation) - simulation._wrong_model()) / simulation.cell.learning_rate
        return ((n * chosen - honest.sum(1)) / f)[:, None].expand(-1, f, -1)
    if attack == "inner-product-manipulation":
        return -0.5 * mean.expand(-1, f, -1)
    if attack == "mimic":
        return honest[:, :1].expand(-1, f, -1)
    if attack == "crash":
        return torch.zeros_like(honest[:, :f])
    if attack == "nan":
        return torch.full_like(honest[:, :f], torch.nan)
    if attack == "a-little-is-enough":
        z = NormalDist().inv_cdf((h - (n // 2 + 1 - f)) / h)
        return (mean - z * honest.std(1, correction=0, keepdim=True)).expand(-1, f, -1)
    if attack in ("label-flip", "wrong-scale", "stale"):
        return own_gradients(simulation, attack)
    if attack == "omniscient":
        rows = []
        for replica, training in enumerate(simulation._training):
            samples = simulation._samples(torch.from_numpy(training)[None], torch.tensor([replica]))[0]
            gradient = autograd_gradient(simulation.parameters, replica, samples, simulation._labels[training])
            rows.append(-100 * gradient / gradient.norm())
        return torch.stack(rows)[:, None].expand(-1, f, -1)
    raise NotImplementedError(attack)


EVERYWHERE = ("none", "gaussian", "omniscient", "sign-flip", "barycentre-collusion", "steer")
CASES = [
    (aggregator, attack, model, branch)
    for aggregator, rule in AGGREGATORS.items()
    for attack in ATTACKS
    for model in (MODELS if attack in EVERYWHERE else MODELS[:1])
    for branch in (BRANCHES if attack in EVERYWHERE and rule.sees != "vectors" and not rule.previous else [None])
    if attack != "bit-flip" and not (attack == "nan" and rule.fixed_weights)
    # Among identical vectors Bulyan's many choices tie but for rounding.
    if aggregator != "bulyan" or attack in ("none", "gaussian", "label-flip", "wrong-scale", "stale", "nan")
]


def decided_by_rounding(vectors, f):
    """Bulyan meets two vectors whose scores differ by no more than rounding, but not each other's nearest ones."""
    n = len(vectors)
    between = (
        torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").square().fill_diagonal_(torch.inf)
    )
    left = list(range(n))
    for count in range(n, 2 * f, -1):
        nearest = between[left][:, left].sort(-1).values[:, : max(1, count - f - 2)]
        scores, order = nearest.sum(-1).sort(stable=True)
        if nearest.shape[1] > 1 and scores[1] - scores[0] < 1e-12 * scores[1]:
            return True
        left.pop(int(order[0]))
    return False


@pytest.mark.parametrize(("aggregator", "attack", "model", "branch"), CASES, ids=str)
def test_step_equals_autograd(make_cell, few_samples, aggregator, attack, model, branch):
    fewer = {"byzantine": 2 if attack != "none" else 0, "declared_f": 2} if aggregator == "bulyan" else {}
    cell = make_cell(aggregator=aggregator, attack=attack, model_options=model, **fewer)
    build = {"samples": few_samples, "seeds": range(2), "dtype": torch.float64, "branch": branch, "device": "cpu"}
    simulation, twin = Simulation(cell, **build), Simulation(cell, **build)
    for _ in range(3):
        before = flat_parameters(simulation)
        assert torch.equal(before, flat_parameters(twin))
        if attack == "gaussian":
            with torch.inference_mode():
                gradients, byzantine = twin.send()
                rule = AGGREGATORS[aggregator]
                if not rule.fixed_weights and rule.sees == "distances" and not rule.previous:
                    twin.weigh(gradients, byzantine)
                if aggregator == "average":  # the sum of the Byzantine vectors is all that averaging needs
                    _, total = byzantine.weighted(torch.ones(2, cell.byzantine, dtype=torch.float64))
                    sent = (total / cell.byzantine)[:, None].expand(-1, cell.byzantine, -1)
                else:
                    sent = byzantine.vectors()
            fresh = Simulation(cell, **build)
            fresh.parameters = [(w.clone(), b.clone()) for w, b in twin.parameters]
            fresh.round, fresh._drawn = twin.round, twin._drawn
            honest = honest_gradients(fresh)
            vectors = torch.cat([honest, sent.clone()], 1)
        else:
            honest = honest_gradients(twin)
            vectors = honest if attack == "none" else torch.cat([honest, plain_byzantine(twin, honest)], 1)
        previous = simulation._previous
        simulation.step()
        with torch.no_grad():
            moved = (before - flat_parameters(simulation)) / cell.learning_rate
        for replica in range(2):
            context = {}
            if aggregator == "1-p-krum":
                context = {"round": simulation.round, "coin": float(simulation._coin[replica])}
            if AGGREGATORS[aggregator].previous:
                context = {"previous": previous[replica]}
            expected = krum.aggregate(vectors[replica], aggregator, f=cell.declared_f, **context)
            if aggregator == "bulyan" and decided_by_rounding(vectors[replica], cell.declared_f):
                continue
            found, tolerance = moved[replica], 1e-10 * max(1, float(expected.abs().max()))
            if attack == "gaussian" and aggregator == "geometric-median":
                # The step is drawn as one sum, not as several vectors: equal up to a turn about the honest gradients.
                found, expected = (torch.cat([honest[replica] @ v, v.norm()[None]]) for v in (found, expected))
                tolerance = 1e-8 * float(expected.abs().max())
            assert torch.allclose(found, expected, rtol=1e-10, atol=tolerance)
        twin.parameters = [(w.clone(), b.clone()) for w, b in simulation.parameters]
        twin.round = simulation.round


def convolution_gradient(model, parameters, replica, samples, labels):
    """One replica's flat gradient of the mean cross-entropy, written with torch's own convolution."""
    own = [(w[replica].clone().requires_grad_(), b[replica].clone().requires_grad_()) for w, b in parameters]
    side = int(samples.shape[1] ** 0.5)
    maps = samples.view(-1, 1, side, side)
    for weight, bias in own[:-1]:
        kernel = weight.view(model.kernel, model.kernel, maps.shape[1], -1).permute(3, 2, 0, 1)
        maps = torch.nn.functional.conv2d(maps, kernel, bias, stride=model.stride).relu()
    logits = maps.permute(0, 2, 3, 1).flatten(1) @ own[-1][0] + own[-1][1]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, [part for pair in own for part in pair])
    return torch.cat([part.flatten() for part in gradients])


@pytest.mark.parametrize("options", CONVNETS, ids=str)
@pytest.mark.parametrize("branch", BRANCHES)
def test_convolutions_equal_torchs(options, branch):
    model = models.build("convnet", dict(options), 20 * 20, 7)
    generator = torch.Generator().manual_seed(0)
    parameters = [
        tuple(torch.from_numpy(np.stack([part, part + 0.1])) for part in layer)
        for layer in models.initialise(model, np.random.default_rng(0))
    ]
    samples = torch.rand(2, 12, 400, dtype=torch.float64, generator=generator)
    labels = torch.randint(7, (2, 12), generator=generator)
    gradients = worker_gradients(model, parameters, samples, labels, 4, branch)
    expected = torch.stack(
        [
            torch.stack(
                [
                    convolution_gradient(
                        model, parameters, r, samples[r, 3 * i : 3 * i + 3], labels[r, 3 * i : 3 * i + 3]
                    )
                    for i in range(4)
                ]
            )
            for r in range(2)
        ]
    )
    assert expected.shape[-1] == models.dimension(model)
    close = {"rtol": 1e-10, "atol": 1e-12}
    assert torch.allclose(gradients.vectors(), expected, **close)
    assert torch.allclose(gradients.gram, expected @ expected.mT, **close)
    assert torch.allclose(gradients.squared_norms, expected.square().sum(-1), **close)
    other = torch.randn(2, 3, expected.shape[-1], dtype=torch.float64, generator=generator)
    assert torch.allclose(gradients.inner_products(other), expected @ other.mT, rtol=1e-9, atol=1e-10)
    weights = torch.tensor([[0.5, 0.0, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    for part in gradients.weighted(weights):
        total = torch.cat([torch.cat([(x.mT @ d).flatten(1), d.sum(1)], 1) for x, d in part.factors], 1)
        assert torch.allclose(part.scale * total, (weights[:, None] @ expected).squeeze(1)[part.replicas], **close)
    (whole,) = gradients.weighted(torch.full((2, 4), 0.25, dtype=torch.float64), common=True)
    total = torch.cat([torch.cat([(x.mT @ d).flatten(1), d.sum(1)], 1) for x, d in whole.factors], 1)
    assert torch.allclose(whole.scale * total, expected.mean(1), **close)


def test_a_convnet_trains_on_squares_only():
    with pytest.raises(krum.InputError, match="square images; found 57 features"):
        models.build("convnet", {}, 57, 2)
    with pytest.raises(krum.InputError, match="less than the kernel's 9"):
        models.build("convnet", {"channels": (2, 2), "kernel": 9, "stride": 3}, 400, 2)


@pytest.mark.parametrize("branch", BRANCHES)
def test_gram_matrix_and_inner_products(make_cell, few_samples, branch):
    simulation = Simulation(make_cell(batch_size=3), few_samples, seeds=range(2), dtype=torch.float64, branch=branch)
    with torch.inference_mode():
        gradients, _ = simulation.send()
        vectors = gradients.vectors()
        assert torch.allclose(gradients.gram, vectors @ vectors.mT, rtol=1e-12, atol=1e-14)
        other = torch.randn(2, 4, simulation.dimension, dtype=torch.float64)
        assert torch.allclose(gradients.inner_products(other), vectors @ other.mT, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def few_images():
    """90 images of MNIST's shape, four fifths of them black, whose label depends on the pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(90, 784), dtype=np.uint8) * (rng.random((90, 784)) < 0.2)
    return Samples(pixels.astype(np.uint8), pixels[:, :200].sum(1, dtype=np.int64) % 10)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("batch_size", [2, 12])
@pytest.mark.parametrize("attack", ["none", "sign-flip", "omniscient"])
@pytest.mark.parametrize("aggregator", ["average", "krum", "multi-krum"])
def test_images_in_float32_follow_float64(make_cell, few_images, aggregator, attack, batch_size, branch):
    """What leaves out zeros, and what float64 does not take, against the engine that autograd proves."""
    cell = make_cell(
        dataset="mnist", aggregator=aggregator, attack=attack, batch_size=batch_size, learning_rate=0.01,
        model_options=(("hidden", (40,)),), measure_gradient=True,
    )  # fmt: skip
    build = {"samples": few_images, "seeds": range(2), "branch": branch, "device": "cpu"}
    exact, ours = (Simulation(cell, **build, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for _ in range(3):
        for simulation in (exact, ours):
            simulation.step()
        assert torch.allclose(flat_parameters(ours).double(), flat_parameters(exact), rtol=1e-3, atol=1e-5)
    for column in ("test_loss", "byzantine_weight", "gradient_norm", "gradient_noise"):
        found, expected = ours.record()[column], exact.record()[column]
        assert np.allclose(found, expected, rtol=1e-3, equal_nan=True), column


def test_both_branches_are_chosen():
    assert cheaper_branch(20, 3, 784, 100) == "samples"
    assert cheaper_branch(20, 100, 784, 100) == "gradients"


class TestGaussian:
    """The Gaussian attack, known first by its inner products."""

    def drawn(self, make_cell, few_samples, seeds, **changes):
        cell = make_cell(attack="gaussian", attack_options=(("standard_deviation", 2.0),), **changes)
        simulation = Simulation(cell, few_samples, seeds=seeds, dtype=torch.float64)
        with torch.inference_mode():
            gradients, byzantine = simulation.send()
            products = byzantine.inner_products()
            return simulation, gradients, byzantine, products

    @pytest.mark.parametrize("batch_size", [2, 1])
    def test_formed_vectors_have_the_drawn_inner_products(self, make_cell, few_samples, batch_size):
        _, gradients, byzantine, (with_honest, among) = self.drawn(
            make_cell, few_samples, range(3), batch_size=batch_size
        )
        with torch.inference_mode():
            vectors, honest = byzantine.vectors(), gradients.vectors()
            assert torch.allclose(honest @ vectors.mT, with_honest, rtol=1e-9, atol=1e-9)
            assert torch.allclose(vectors @ vectors.mT, among, rtol=1e-9, atol=1e-9)

    def test_a_weighted_sum_has_the_drawn_inner_products(self, make_cell, few_samples):
        """One vector is drawn for the sum of several; its products follow from theirs."""
        _, gradients, byzantine, (with_honest, among) = self.drawn(make_cell, few_samples, range(3))
        with torch.inference_mode():
            weights = torch.linspace(0, 1, 3 * byzantine.adversary.byzantine, dtype=torch.float64).view(3, -1)
            honest = gradients.vectors()
            coefficients, vector = byzantine.weighted(weights)
            total = (coefficients[:, None] @ honest)[:, 0] + vector
            assert torch.allclose((honest @ total[..., None]), with_honest @ weights[..., None], rtol=1e-9, atol=1e-9)
            expected = (weights[:, None] @ among @ weights[..., None]).flatten()
            assert torch.allclose(total.square().sum(-1), expected, rtol=1e-9)

    def test_singular_honest_gradients(self, make_cell, few_samples):
        """Workers with identical gradients, and with zero ones."""
        _, gradients, byzantine, _ = self.drawn(make_cell, few_samples, range(2))
        with torch.inference_mode():
            for delta in gradients.deltas:
                delta[:, 2:4] = delta[:, 0:2]
                delta[:, 4:6] = 0
            for x in gradients.inputs:
                x[:, 2:4] = x[:, 0:2]
            for cached in (gradients, byzantine):
                cached.__dict__.pop("gram", None)
                cached.__dict__.pop("_drawn", None)
            with_honest, among = byzantine.inner_products()
            assert torch.allclose(with_honest[:, 0], with_honest[:, 1], atol=1e-6)
            assert torch.allclose(with_honest[:, 2], torch.zeros_like(with_honest[:, 2]), atol=1e-6)
            vectors = byzantine.vectors()
            assert torch.allclose(vectors @ vectors.mT, among, rtol=1e-6, atol=1e-6)

    def test_distribution(self, make_cell, few_samples):
        """Coordinates and squared lengths are those of N(0, 4 I): 400 replicas, bounds at five standard errors."""
        simulation, gradients, byzantine, (with_honest, among) = self.drawn(make_cell, few_samples, range(400))
        d, variance = simulation.dimension, 4.0
        lengths = among.diagonal(dim1=1, dim2=2).flatten() / variance
        assert abs(lengths.mean() - d) < 5 * np.sqrt(2 * d / lengths.numel())
        assert abs(lengths.std() / np.sqrt(2 * d) - 1) < 0.15
        crossed = among[:, 0, 1] / variance
        assert abs(crossed.mean()) < 5 * np.sqrt(d / 400)
        assert abs(crossed.std() / np.sqrt(d) - 1) < 0.2
        normalised = with_honest / (2 * gradients.gram.diagonal(dim1=1, dim2=2).sqrt()[..., None])
        assert abs(normalised.mean()) < 5 / np.sqrt(normalised.numel() / 7)
        assert abs(normalised.std() - 1) < 0.1
        with torch.inference_mode():
            vectors = byzantine.vectors() / 2
        assert abs(vectors.mean()) < 5 / np.sqrt(vectors.numel())
        assert abs(vectors.std() - 1) < 5 / np.sqrt(vectors.numel())
        each = vectors.flatten(0, 1)
        assert each.mean(0).abs().max() < 5.5 / np.sqrt(len(each))

    def test_sum_for_fixed_weights(self, make_cell, few_samples):
        """Averaging draws one vector for the sum of all: N(0, 4 sum w^2 I)."""
        cell = make_cell(attack="gaussian", attack_options=(("standard_deviation", 2.0),))
        simulation = Simulation(cell, few_samples, seeds=range(50), dtype=torch.float64)
        with torch.inference_mode():
            _, byzantine = simulation.send()
            _, total = byzantine.weighted(torch.full((50, 4), 0.25, dtype=torch.float64))
        assert abs(total.std() - 1) < 5 / np.sqrt(total.numel())

    def test_few_dimensions(self, make_cell, few_samples):
        """Fewer parameters than workers: the vectors are drawn outright."""
        cell = make_cell(attack="gaussian", workers=200, byzantine=80, declared_f=80, model_options=(("hidden", ()),))
        simulation = Simulation(cell, few_samples, seeds=range(2))
        simulation.step()
        assert all(torch.isfinite(part).all() for pair in simulation.parameters for part in pair)
