"""The models: their layers, how they start, forward and backward for many replicas at once.

A model here is a stack of layers that are linear in their parameters, for which `krum.gradients` needs no more than
each layer's input and the loss's derivative at its output. Parameters are a list of `(weight [R, in, out],
bias [R, out])`, one pair per layer, R replicas. To add a model, write one function here and decorate it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from krum.errors import InputError
from krum.registry import kebab, lookup
from krum.simulation.datasets import LEVELS

if TYPE_CHECKING:
    from torch import Tensor

Parameters = list[tuple["Tensor", "Tensor"]]

MODELS: dict[str, Callable[..., "Model"]] = {}


class Model(Protocol):
    """What the simulation asks of a model."""

    layers: Sequence[tuple[int, int]]
    """Each layer's (in, out)."""

    def forward(self, parameters: "Parameters", samples: "Tensor") -> tuple[list["Tensor"], list["Tensor"], "Tensor"]:
        """From samples `[R, S, features]`: every layer's input `[R, S P, in]`, activations, logits `[R, S, classes]`.

        Samples may be bytes (see `as_floats`). P is 1 for a fully connected layer, and the number of positions for an
        unfolded convolution. The activations are what `backward` needs: every layer's input before unfolding.
        """

    def backward(self, parameters: "Parameters", activations: list["Tensor"], at_logits: "Tensor") -> list["Tensor"]:
        """Each layer's `delta [R, S P, out]`, the loss's derivative at its output, given the one at the logits."""


def model(function: Callable[..., Model]) -> Callable[..., Model]:
    """Register a function `(features, classes, *, options) -> model`."""
    MODELS[kebab(function)] = function
    return function


@model
def mlp(features: int, classes: int, *, hidden: Sequence[int]) -> "MLP":
    """A multi-layer perceptron: fully connected layers with ReLU between them, one logit per class."""
    return MLP([features, *hidden, classes])


@model
def convnet(
    features: int, classes: int, *, channels: Sequence[int] = (8, 16), kernel: int = 5, stride: int = 3
) -> "ConvNet":
    """A small convolutional network for square grey images: strided convolutions, ReLU, then one logit per class."""
    return ConvNet(features, classes, channels, kernel, stride)


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
        self.layers = list(itertools.pairwise(sizes))

    def forward(self, parameters: "Parameters", samples: "Tensor") -> tuple[list["Tensor"], list["Tensor"], "Tensor"]:
        inputs = [samples]
        for weight, bias in parameters[:-1]:
            inputs.append(affine(inputs[-1], weight, bias, rectify=True))
        return inputs, inputs, affine(inputs[-1], *parameters[-1])

    def backward(self, parameters: "Parameters", activations: list["Tensor"], at_logits: "Tensor") -> list["Tensor"]:
        deltas = [at_logits]
        for (weight, _), activation in zip(parameters[:0:-1], activations[:0:-1], strict=True):
            deltas.append(through_relu(deltas[-1], weight, activation))
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
        self.layers = [(fan_in * kernel**2, fan_out) for fan_in, fan_out in itertools.pairwise(self.channels)]
        self.layers.append((self.channels[-1] * self.sides[-1] ** 2, classes))
        self._places: dict[int, Tensor] = {}  # see _unfold

    def forward(self, parameters: "Parameters", samples: "Tensor") -> tuple[list["Tensor"], list["Tensor"], "Tensor"]:
        replicas, count, _ = samples.shape
        inputs, activations = [], [as_floats(samples)]
        for layer, (weight, bias) in enumerate(parameters[:-1]):
            inputs.append(self._unfold(activations[-1].view(replicas, count, -1), layer))
            activations.append(affine(inputs[-1], weight, bias, rectify=True))
        inputs.append(activations[-1].view(replicas, count, -1))
        return inputs, activations, affine(inputs[-1], *parameters[-1])

    def backward(self, parameters: "Parameters", activations: list["Tensor"], at_logits: "Tensor") -> list["Tensor"]:
        replicas, count, _ = at_logits.shape
        at_input = product(at_logits, parameters[-1][0].mT).view_as(activations[-1])
        deltas = [at_logits, _masked(at_input, activations[-1])]
        for layer in range(len(self.channels) - 2, 0, -1):
            at_input = self._fold(product(deltas[-1], parameters[layer][0].mT), layer, replicas, count)
            deltas.append(_masked(at_input, activations[layer]))
        return deltas[::-1]

    def _unfold(self, maps: "Tensor", layer: int) -> "Tensor":
        """`[R, S, side^2 C]` -> `[R, S P, kernel^2 C]`."""
        replicas, count, width = maps.shape
        if layer not in self._places:
            self._places[layer] = self._windows(layer).to(maps.device)
        places = self._places[layer]
        taken = maps.reshape(replicas * count, width).index_select(1, places)
        return taken.view(replicas, -1, self.layers[layer][0])

    def _windows(self, layer: int) -> "Tensor":
        """Which number of a map stands where in its windows, one after the other."""
        import torch

        side, depth = self.sides[layer], self.channels[layer]
        numbers = torch.arange(side * side * depth).view(side, side, depth)
        windows = numbers.unfold(0, self.kernel, self.stride).unfold(1, self.kernel, self.stride)
        return windows.permute(0, 1, 3, 4, 2).flatten()  # [down, across, C, kernel, kernel], channels last

    def _fold(self, unfolded: "Tensor", layer: int, replicas: int, count: int) -> "Tensor":
        """The reverse of `_unfold`, summing where windows overlap: `[R, S P, kernel^2 C]` -> `[R, S side^2, C]`."""
        before, after, depth = self.sides[layer], self.sides[layer + 1], self.channels[layer]
        windows = unfolded.view(replicas, count, after, after, self.kernel, self.kernel, depth)
        maps = unfolded.new_zeros((replicas, count, before, before, depth))
        for down, across in itertools.product(range(after), repeat=2):
            top, left = down * self.stride, across * self.stride
            maps[:, :, top : top + self.kernel, left : left + self.kernel] += windows[:, :, down, across]
        return maps.view(replicas, count * before**2, depth)


# Matrix products whose result has fewer columns than this are several times faster the other way round.
NARROW = 16


def product(one: "Tensor", other: "Tensor") -> "Tensor":
    """`one @ other` for stacks of matrices [R, m, k] and [R, k, n], each with the bytes that it has in any stack.

    MKL takes another way for a stack of one whose product is a single row or column: it is put into a stack of two.
    """
    if len(one) > 1 or (one.shape[1] > 1 and other.shape[2] > 1):
        return one.bmm(other)
    return one.expand(2, -1, -1).bmm(other.expand(2, -1, -1))[:1]


# Rows at least this long, of products at least this wide, are first asked for zeros.
LONG, WIDE = 128, 32
LINE = 16  # numbers of a line of a CPU's cache


def affine(x: "Tensor", weight: "Tensor", bias: "Tensor", rectify: bool = False) -> "Tensor":
    """`x W + bias` for `x [R, S, in]`, at least 0 with `rectify`: [R, S, out], contiguous.

    Rows x may be zeros mostly, as an image's are: what is zero is left out.
    """
    if not _may_be_sparse(x, weight):
        return _dense_affine(x, weight, bias, rectify)
    from krum.rules import kernels

    out = weight.new_empty((*x.shape[:2], weight.shape[-1]))
    for replica in _left(kernels.sparse_affine(out, x, weight, bias.contiguous(), rectify)):
        out[replica] = _dense_affine(x[replica], weight[replica], bias[replica], rectify)
    return out


def _dense_affine(x: "Tensor", weight: "Tensor", bias: "Tensor", rectify: bool) -> "Tensor":
    if weight.shape[-1] >= NARROW:
        out = product(as_floats(x), weight).add_(bias[:, None])  # baddbmm would first write the bias everywhere
    else:
        out = product(weight.mT, as_floats(x).mT).add_(bias[..., None]).mT.contiguous()
    return out.relu_() if rectify else out


def spaced(weight: "Tensor") -> "Tensor":
    """`weight [R, in, out]`, whose rows `krum.kernels` may read, in memory where each begins with a line of a cache."""
    fan_in, fan_out = weight.shape[1:]
    if fan_in < LONG or fan_out < WIDE or not compiled(weight):
        return weight
    return weight.new_empty((len(weight), fan_in, fan_out + -fan_out % LINE))[..., :fan_out].copy_(weight)


def through_relu(delta: "Tensor", weight: "Tensor", activation: "Tensor") -> "Tensor":
    """`delta W^T` where the activation is positive, 0 elsewhere: [R, S, out] and [R, in, out] -> [R, S, in]."""
    if delta.shape[-1] < NARROW and compiled(delta):  # so short a sum is sooner taken, and masked at once, by ours
        from krum.rules import kernels

        out = activation.new_empty(activation.shape)
        kernels.through_relu(out, delta, weight, activation)
        return out
    return _masked(product(delta, weight.mT), activation)


def outer_sums(x: "Tensor", delta: "Tensor") -> "Tensor":
    """`x^T delta`, the sum of the rows' outer products: [k, S, in] and [k, S, out] -> [k, in, out]."""
    if _may_be_sparse(x, delta):
        from krum.rules import kernels

        out = delta.new_empty((len(x), x.shape[-1], delta.shape[-1]))
        for replica in _left(kernels.sparse_outer_sums(out, x, delta)):
            out[replica] = product(as_floats(x[replica]).mT, delta[replica])
        return out
    x = as_floats(x)
    return product(x.mT, delta) if delta.shape[-1] >= NARROW else product(delta.mT, x).mT


def add_outer_sums(total: "Tensor", x: "Tensor", delta: "Tensor", scale: float = 1.0) -> "Tensor":
    """Add `scale x^T delta` to `total [k, in, out]`, in place."""
    if _may_be_sparse(x, delta):
        from krum.rules import kernels

        for replica in _left(kernels.sparse_outer_sums(total, x, delta, scale, add=True)):
            total[replica].baddbmm_(as_floats(x[replica]).mT, delta[replica], alpha=scale)
        return total
    x = as_floats(x)
    if delta.shape[-1] >= NARROW and x.shape[-1] > 1:
        return total.baddbmm_(x.mT, delta, alpha=scale)
    return total.add_(outer_sums(x, delta), alpha=scale)


def _may_be_sparse(x: "Tensor", other: "Tensor") -> bool:
    """`krum.kernels` can leave out the zeros of x, and it may pay."""
    return x.shape[-1] >= LONG and other.shape[-1] >= WIDE and compiled(other) and x.stride(-1) == other.stride(-1) == 1


def compiled(x: "Tensor") -> bool:
    """`krum.kernels` computes with such numbers, and with bytes beside them: float32 on the CPU."""
    import torch

    return x.device.type == "cpu" and x.dtype == torch.float32


def as_floats(x: "Tensor") -> "Tensor":
    """The numbers that bytes stand for, 255ths, as float32; others as they are."""
    import torch

    return x if x.is_floating_point() else torch.div(x, LEVELS)


def _left(done: np.ndarray) -> list[slice]:
    """The replicas that are not done, all at once if none is."""
    return [slice(None)] if not done.any() else [slice(k, k + 1) for k in (~done).nonzero()[0].tolist()]


def _masked(delta: "Tensor", activation: "Tensor") -> "Tensor":
    """delta where the activation is positive, 0 elsewhere, in place and in one pass."""
    import torch

    return torch.ops.aten.threshold_backward.grad_input(delta, activation, 0, grad_input=delta)
