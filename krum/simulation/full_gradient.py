"""The loss's gradient over whole training folds, which an omniscient attacker knows, and a model of wrong labels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from krum.simulation.draws import Folds, generators, initial_parameters
from krum.simulation.gradients import add_outer_sums, flatten, worker_gradients
from krum.simulation.models import Model, Parameters

SAMPLES_AT_ONCE = 512
WRONG_MODEL_ROUNDS, WRONG_MODEL_BATCH, WRONG_MODEL_RATE = 300, 50, 0.1


def full_gradient(model: Model, parameters: Parameters, folds: Folds, replicas: Tensor) -> Tensor:
    """The gradient of the mean loss over some replicas' training folds, `replicas [r]`: flat [r, d]."""
    return _mean_gradient(model, parameters, folds, replicas, *_whole_folds(folds, replicas))


def estimated_gradient(
    model: Model,
    parameters: Parameters,
    folds: Folds,
    replicas: Tensor,
    samples: int,
    rngs: Sequence[np.random.Generator],
) -> Tensor:
    """The same from that many samples of each fold, drawn with replacement by each replica's generator."""
    chosen = [(folds.training[replica], rngs[replica]) for replica in replicas.tolist()]
    drawn = np.stack([training[rng.integers(len(training), size=samples)] for training, rng in chosen])
    index = torch.from_numpy(drawn).to(replicas.device)
    shares = torch.full(index.shape, 1 / samples, dtype=parameters[0][0].dtype, device=index.device)
    return _mean_gradient(model, parameters, folds, replicas, index, shares)


def gradient_statistics(
    model: Model, parameters: Parameters, folds: Folds, batch_size: int
) -> tuple[list[float], list[float]]:
    """`||g||` and `sqrt(E ||G - g||^2)` per replica, from the gradient of every sample of its training fold.

    A mini-batch is b samples drawn with replacement, so that `E ||G - g||^2 = (E ||g_s||^2 - ||g||^2) / b`.
    """
    everyone = torch.arange(len(folds.training), device=folds.labels.device)
    squares = torch.zeros(len(everyone), dtype=torch.float64, device=everyone.device)
    gradient = _mean_gradient(model, parameters, folds, everyone, *_whole_folds(folds, everyone), squares)
    norm = gradient.double().square().sum(-1)
    noise = ((squares - norm) / batch_size).clamp(min=0)
    return norm.sqrt().tolist(), noise.sqrt().tolist()


def wrong_model(model: Model, folds: Folds, seeds: Sequence[int], classes: int) -> Tensor:
    """The parameters [R, d] of the same model, trained to answer the class after the right one."""
    device, dtype = folds.features.device, folds.features.dtype
    parameters = initial_parameters(model, seeds, device, dtype, "wrong model")
    rngs = generators(seeds, "wrong model's batches")
    ones = torch.ones(len(seeds), 1, dtype=dtype, device=device)
    for _ in range(WRONG_MODEL_ROUNDS):
        chosen = zip(folds.training, rngs, strict=True)
        drawn = [training[rng.integers(len(training), size=WRONG_MODEL_BATCH)] for training, rng in chosen]
        index = torch.from_numpy(np.stack(drawn)).to(device)
        wrong = (folds.labels[index] + 1) % classes
        gradients = worker_gradients(model, parameters, folds.samples(index), wrong, workers=1)
        gradients.descend(parameters, ones, WRONG_MODEL_RATE)
    return flatten(parameters)


def _whole_folds(folds: Folds, replicas: Tensor) -> tuple[Tensor, Tensor]:
    """Some replicas' training samples `[r, longest fold]` and their shares of the mean, 0 where a fold is shorter."""
    chosen = [folds.training[replica] for replica in replicas.tolist()]
    longest = max(len(training) for training in chosen)
    padded = [np.pad(training, (0, longest - len(training))) for training in chosen]
    index = torch.from_numpy(np.stack(padded)).to(replicas.device)
    lengths = torch.tensor([[len(training)] for training in chosen], device=index.device)
    inside = torch.arange(longest, device=index.device) < lengths
    return index, inside.to(folds.features.dtype) / lengths


def _mean_gradient(
    model: Model,
    parameters: Parameters,
    folds: Folds,
    replicas: Tensor,
    index: Tensor,
    shares: Tensor,
    squares: Tensor | None = None,
) -> Tensor:
    """`sum_s share_s g_s` over the samples `index [r, N]`, flat [r, d].

    `squares [r]` is increased by the mean squared length of a single sample's gradient.
    """
    parameters = [(weight[replicas], bias[replicas]) for weight, bias in parameters]
    totals = [(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in parameters]
    for numbers, share in zip(index.split(SAMPLES_AT_ONCE, 1), shares.split(SAMPLES_AT_ONCE, 1), strict=True):
        x, labels = folds.samples(numbers, replicas), folds.labels[numbers]
        each = worker_gradients(model, parameters, x, labels, workers=x.shape[1], shares=share)
        if squares is not None:
            squares += (each.squared_norms / share.where(share > 0, 1)).sum(-1)
        for (weight, bias), inputs, deltas in zip(totals, each.inputs, each.deltas, strict=True):
            add_outer_sums(weight, inputs, deltas, 1.0)
            bias += deltas.sum(1)
    return flatten(totals)
