"""The loss's gradient over whole training folds, which an omniscient attacker knows, and a model of wrong labels."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from krum.simulation.draws import Folds, generators, initial_parameters
from krum.simulation.gradients import WorkerGradients, add_outer_sums, flatten, worker_gradients
from krum.simulation.models import Model, Parameters

SAMPLES_AT_ONCE = 512
WRONG_MODEL_ROUNDS, WRONG_MODEL_BATCH, WRONG_MODEL_RATE = 300, 50, 0.1


def mean_gradient(model: Model, parameters: Parameters, folds: Folds, index: Tensor, shares: Tensor) -> Tensor:
    """`sum_s share_s g_s` over the samples with numbers `index [R, N]`, flat [R, d]."""
    totals = [(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in parameters]
    for each, _ in _gradients_of_samples(model, parameters, folds, index, shares):
        for (weight, bias), x, delta in zip(totals, each.inputs, each.deltas, strict=True):
            add_outer_sums(weight, x, delta, 1.0)
            bias += delta.sum(1)
    return flatten(totals)


def gradient_statistics(
    model: Model, parameters: Parameters, folds: Folds, batch_size: int
) -> tuple[list[float], list[float]]:
    """`||g||` and `sqrt(E ||G - g||^2)` per replica, from the gradient of every sample of its training fold.

    A mini-batch is b samples drawn with replacement, so that `E ||G - g||^2 = (E ||g_s||^2 - ||g||^2) / b`.
    """
    of_fold = (model, parameters, folds, *folds.whole_training)
    square = mean_gradient(*of_fold).double().square().sum(-1)
    mean_square = torch.zeros_like(square)
    for each, share in _gradients_of_samples(*of_fold):
        mean_square += (each.squared_norms / share.where(share > 0, 1)).sum(-1)  # they hold the share's square
    noise = ((mean_square - square) / batch_size).clamp(min=0)
    return square.sqrt().tolist(), noise.sqrt().tolist()


def _gradients_of_samples(
    model: Model, parameters: Parameters, folds: Folds, index: Tensor, shares: Tensor
) -> Iterator[tuple[WorkerGradients, Tensor]]:
    """`share_s g_s` of some samples at a time, as if each were a worker, and their shares."""
    for numbers, share in zip(index.split(SAMPLES_AT_ONCE, 1), shares.split(SAMPLES_AT_ONCE, 1), strict=True):
        samples, labels = folds.samples(numbers), folds.labels[numbers]
        yield worker_gradients(model, parameters, samples, labels, samples.shape[1], share), share


def wrong_model(model: Model, folds: Folds, seeds: Sequence[int], classes: int) -> Tensor:
    """The parameters [R, d] of the same model, trained to answer the class after the right one."""
    device, dtype = folds.features.device, folds.features.dtype
    parameters = initial_parameters(model, seeds, device, dtype, "wrong model")
    rngs = generators(seeds, "wrong model's batches")
    ones = torch.ones(len(seeds), 1, dtype=dtype, device=device)
    for _ in range(WRONG_MODEL_ROUNDS):
        index = folds.draw(WRONG_MODEL_BATCH, rngs)
        wrong = (folds.labels[index] + 1) % classes
        gradients = worker_gradients(model, parameters, folds.samples(index), wrong, workers=1)
        gradients.descend(parameters, ones, WRONG_MODEL_RATE)
    return flatten(parameters)
