"""The models: their layers, how they start, forward and backward for many replicas at once.

A model is a stack of layers that are linear in their parameters, of which `krum.simulation.gradients` needs each
layer's input and the loss's derivative at its output. Parameters are a list of `(weight [R, in, out], bias [R, out])`,
one pair per layer, R replicas. To add a model, write one function and decorate it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from krum.errors import InputError
from krum.registry import kebab, lookup

Parameters = list[tuple[Tensor, Tensor]]

# A matrix product whose result has fewer columns than this is several times faster the other way round.
FEW_COLUMNS = 16


class Model(Protocol):
    """What the simulation asks of a model."""

    layers: Sequence[tuple[int, int]]
    """Each layer's (in, out)."""

    def forward(self, parameters: Parameters, samples: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """From samples `[R, S, features]`: every layer's input `[R, S P, in]`, activations, logits `[R, S, classes]`.

        P is 1 for a fully connected layer, and the number of positions for an unfolded convolution. The activations
        are what `backward` needs: every layer's input before unfolding.
        """

    def backward(self, parameters: Parameters, activations: list[Tensor], at_logits: Tensor) -> list[Tensor]:
        """Each layer's `delta [R, S P, out]`, the loss's derivative at its output, given the one at the logits."""


MODELS: dict[str, Callable[..., Model]] = {}


def model(function: Callable[..., Model]) -> Callable[..., Model]:
    """Register a function `(features, classes, *, options) -> model`."""
    MODELS[kebab(function)] = function
    return function


def build(name: str, options: dict[str, Any], features: int, classes: int) -> Model:
    """The model of that name for a data set. Raises InputError where its sizes do not fit."""
    return lookup(MODELS, name, "model")(features, classes, **options)


def dimension(model: Model) -> int:
    """d, the number of parameters."""
    return sum(fan_in * fan_out + fan_out for fan_in, fan_out in model.layers)


def initialise(model: Model, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Initial weights and biases of one replica, uniform in +-1/sqrt(in), as torch.nn.Linear and Conv2d start."""
    start = []
    for fan_in, fan_out in model.layers:
        bound = fan_in**-0.5
        start.append((rng.uniform(-bound, bound, (fan_in, fan_out)), rng.uniform(-bound, bound, fan_out)))
    return start


class MLP:
    """Fully connected layers of the given sizes, ReLU between them."""

    def __init__(self, sizes: Sequence[int]):
        self.layers: Sequence[tuple[int, int]] = list(itertools.pairwise(sizes))

    def forward(self, parameters: Parameters, samples: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        inputs = [samples]
        for weight, bias in parameters[:-1]:
            inputs.append(affine(inputs[-1], weight, bias).relu_())
        return inputs, inputs, affine(inputs[-1], *parameters[-1])

    def backward(self, parameters: Parameters, activations: list[Tensor], at_logits: Tensor) -> list[Tensor]:
        deltas = [at_logits]
        for (weight, _), activation in zip(parameters[:0:-1], activations[:0:-1], strict=True):
            deltas.append(through_relu(deltas[-1].bmm(weight.mT), activation))
        return deltas[::-1]


class ConvNet:
    """Strided convolutions without padding, ReLU after each, then a fully connected layer to the logits.

    A map's memory is ordered `[R, S, height, width, channels]`. A convolution's input is unfolded: one row per position
    of its window, whose columns are (row in the window, column in the window, channel).
    """

    def __init__(self, features: int, classes: int, channels: Sequence[int], kernel: int, stride: int):
        side = math.isqrt(features)
        if side * side != features:
            raise InputError(f"convnet takes square images; found {features} features, which are none; use mlp")
        if not channels:
            raise InputError("convnet takes at least one convolution; found no channels; give some, or use mlp")
        self.kernel, self.stride = kernel, stride
        self.sides = [side]  # of the maps, before each convolution and after the last
        for _ in channels:
            if self.sides[-1] < kernel:
                raise InputError(
                    f"convnet: after {len(self.sides) - 1} of {len(channels)} convolutions the map is "
                    f"{self.sides[-1]} wide, less than the kernel's {kernel}; use fewer, a smaller kernel or stride"
                )
            self.sides.append((self.sides[-1] - kernel) // stride + 1)
        self.channels = [1, *channels]
        convolutions = [(fan_in * kernel**2, fan_out) for fan_in, fan_out in itertools.pairwise(self.channels)]
        self.layers: Sequence[tuple[int, int]] = [
            *convolutions,
            (self.channels[-1] * self.sides[-1] ** 2, classes),
        ]
        self._places: dict[int, Tensor] = {}  # see _unfold

    def forward(self, parameters: Parameters, samples: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        replicas, count, _ = samples.shape
        inputs, activations = [], [samples]
        for layer, (weight, bias) in enumerate(parameters[:-1]):
            inputs.append(self._unfold(activations[-1].view(replicas, count, -1), layer))
            activations.append(affine(inputs[-1], weight, bias).relu_())
        inputs.append(activations[-1].view(replicas, count, -1))
        return inputs, activations, affine(inputs[-1], *parameters[-1])

    def backward(self, parameters: Parameters, activations: list[Tensor], at_logits: Tensor) -> list[Tensor]:
        replicas, count, _ = at_logits.shape
        at_input = at_logits.bmm(parameters[-1][0].mT).view_as(activations[-1])
        deltas = [at_logits, through_relu(at_input, activations[-1])]
        for layer in range(len(self.channels) - 2, 0, -1):
            at_input = self._fold(deltas[-1].bmm(parameters[layer][0].mT), layer, replicas, count)
            deltas.append(through_relu(at_input, activations[layer]))
        return deltas[::-1]

    def _unfold(self, maps: Tensor, layer: int) -> Tensor:
        """`[R, S, side^2 C]` -> `[R, S P, kernel^2 C]`."""
        replicas, count, width = maps.shape
        if layer not in self._places:
            self._places[layer] = self._windows(layer).to(maps.device)
        places = self._places[layer]
        unfolded = maps.reshape(replicas * count, width).index_select(1, places)
        return unfolded.view(replicas, -1, self.layers[layer][0])

    def _windows(self, layer: int) -> Tensor:
        """Which number of a map stands where in its windows, one after the other."""
        side, depth = self.sides[layer], self.channels[layer]
        numbers = torch.arange(side * side * depth).view(side, side, depth)
        windows = numbers.unfold(0, self.kernel, self.stride).unfold(1, self.kernel, self.stride)
        return windows.permute(0, 1, 3, 4, 2).flatten()  # [down, across, C, kernel, kernel], channels last

    def _fold(self, unfolded: Tensor, layer: int, replicas: int, count: int) -> Tensor:
        """The reverse of `_unfold`, summing where windows overlap: `[R, S P, kernel^2 C]` -> `[R, S side^2, C]`."""
        before, after, depth = self.sides[layer], self.sides[layer + 1], self.channels[layer]
        windows = unfolded.view(replicas, count, after, after, self.kernel, self.kernel, depth)
        maps = unfolded.new_zeros((replicas, count, before, before, depth))
        for down, across in itertools.product(range(after), repeat=2):
            top, left = down * self.stride, across * self.stride
            maps[:, :, top : top + self.kernel, left : left + self.kernel] += windows[:, :, down, across]
        return maps.view(replicas, count * before**2, depth)


@model
def mlp(features: int, classes: int, *, hidden: Sequence[int]) -> MLP:
    """A multi-layer perceptron: fully connected layers with ReLU between them, one logit per class."""
    return MLP([features, *hidden, classes])


@model
def convnet(
    features: int, classes: int, *, channels: Sequence[int] = (8, 16), kernel: int = 5, stride: int = 3
) -> ConvNet:
    """A small convolutional network for square grey images: strided convolutions, ReLU, then one logit per class."""
    return ConvNet(features, classes, channels, kernel, stride)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x W + bias` for `x [R, S, in]`: [R, S, out]."""
    if weight.shape[-1] < FEW_COLUMNS:
        return torch.baddbmm(bias[..., None], weight.mT, x.mT).mT.contiguous()
    return x.bmm(weight).add_(bias[:, None])


def through_relu(delta: Tensor, activation: Tensor) -> Tensor:
    """delta where the activation is positive, 0 elsewhere, in place."""
    return torch.ops.aten.threshold_backward.grad_input(delta, activation, 0, grad_input=delta)
