"""The models: their layers, how they start, forward and backward for many replicas at once.

A model here is a stack of layers that are linear in their parameters, for which `krum.gradients` needs no more than
each layer's input and the loss's derivative at its output. Parameters are a list of `(weight [R, in, out],
bias [R, out])`, one pair per layer, R replicas.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from krum.registry import kebab, lookup

if TYPE_CHECKING:
    from torch import Tensor

    Parameters = list[tuple[Tensor, Tensor]]

MODELS: dict[str, Callable[..., "MLP"]] = {}


def model(function: Callable[..., "MLP"]) -> Callable[..., "MLP"]:
    """Register a function `(features, classes, *, options) -> model`."""
    MODELS[kebab(function)] = function
    return function


@model
def mlp(features: int, classes: int, *, hidden: Sequence[int]) -> "MLP":
    """A multi-layer perceptron: fully connected layers with ReLU between them, one logit per class."""
    return MLP([features, *hidden, classes])


def build(name: str, options: dict[str, Any], features: int, classes: int) -> "MLP":
    """The model of that name for a data set."""
    return lookup(MODELS, name, "model")(features, classes, **options)


class MLP:
    """Fully connected layers of the given sizes, ReLU between them."""

    def __init__(self, sizes: Sequence[int]):
        self.layers = list(itertools.pairwise(sizes))
        self.dimension = sum(fan_in * fan_out + fan_out for fan_in, fan_out in self.layers)

    def initialise(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """Initial weights and biases of one replica, uniform in +-1/sqrt(in), as `torch.nn.Linear` starts."""
        start = []
        for fan_in, fan_out in self.layers:
            bound = fan_in**-0.5
            start.append((rng.uniform(-bound, bound, (fan_in, fan_out)), rng.uniform(-bound, bound, fan_out)))
        return start

    def forward(self, parameters: "Parameters", samples: "Tensor") -> tuple[list["Tensor"], "Tensor"]:
        """From samples `[R, S, features]`: every layer's input `[R, S, in]`, and the logits `[R, S, classes]`."""
        inputs = [samples]
        for weight, bias in parameters[:-1]:
            inputs.append(bias[:, None].baddbmm(inputs[-1], weight).relu_())
        weight, bias = parameters[-1]
        return inputs, bias[:, None].baddbmm(inputs[-1], weight)

    def backward(self, parameters: "Parameters", inputs: list["Tensor"], at_logits: "Tensor") -> list["Tensor"]:
        """Each layer's `delta [R, S, out]`, the loss's derivative at its output, given the one at the logits."""
        deltas = [at_logits]
        for (weight, _), activation in zip(parameters[:0:-1], inputs[:0:-1], strict=True):
            deltas.append(deltas[-1].bmm(weight.mT).mul_(activation > 0))
        return deltas[::-1]
