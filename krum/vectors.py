"""The callers' n vectors, in whatever form they have them, as parts that rules read in place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krum.distances import Part
from krum.errors import InputError

FORMS = "give [n, d] as a torch tensor or a numpy array, or n of them, or n models' gradients, each a list or a dict"


@dataclass(frozen=True)
class Vectors:
    """n vectors in parts, and the way back from one vector's parts to the callers' form."""

    parts: list[Part]  # each [n, d_p], or n tensors [d_p]
    like_given: Callable[[list[Tensor]], Any]

    @property
    def n(self) -> int:
        """How many vectors there are."""
        return len(self.parts[0])

    def and_last(self, vector: Any) -> "Vectors":
        """With one vector more at the end, of the form of a result; zero where it is None. Raises InputError."""
        if vector is None:
            last = [part[0].new_zeros(part[0].shape) for part in self.parts]
        else:
            last = [leaf.reshape(-1) for leaf in _leaves(vector, "previous")]
        expected, found = ([leaf.shape for leaf in leaves] for leaves in ([part[0] for part in self.parts], last))
        if expected != found or not all(bool(leaf.isfinite().all()) for leaf in last):
            shapes = [tuple(shape) for shape in found]
            raise InputError(f"previous: found shapes {shapes}; give the last aggregate, finite numbers")
        parts: list[Part] = [[*part, row.to(part[0])] for part, row in zip(self.parts, last, strict=True)]
        return Vectors(parts, self.like_given)


def read(given: Any) -> Vectors:
    """The vectors that a caller gives. Raises TypeError, InputError."""
    if not isinstance(given, list | tuple):
        tensor = as_tensor(given, "vectors")
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise InputError(f"vectors: found shape {tuple(tensor.shape)}; give [n, d], one vector a row")
        return Vectors([tensor], lambda parts: parts[0].numpy() if isinstance(given, np.ndarray) else parts[0])
    if not given:
        raise InputError(f"vectors: found an empty {type(given).__name__}; {FORMS}")
    vectors = [_leaves(vector, f"vectors[{i}]") for i, vector in enumerate(given)]
    first = [(leaf.shape, leaf.dtype, leaf.device) for leaf in vectors[0]]
    for i, vector in enumerate(vectors):
        own = [(leaf.shape, leaf.dtype, leaf.device) for leaf in vector]
        names = list(given[0]) if isinstance(given[0], Mapping) else None
        if own != first or (names is not None and list(given[i]) != names):
            raise InputError(f"vectors[{i}]: found {_described(given[i], own)}, but vectors[0] is "
                             f"{_described(given[0], first)}; give n vectors of one form")  # fmt: skip
    if not any(leaf.numel() for leaf in vectors[0]):
        raise InputError(f"vectors: found no numbers in vectors[0]; {FORMS}")
    flat: list[Part] = [[leaf.reshape(-1) for leaf in part] for part in zip(*vectors, strict=True)]
    return Vectors(flat, lambda parts: _like(given[0], parts))


def _leaves(vector: Any, what: str) -> list[Tensor]:
    """The tensors of one vector, in order."""
    if isinstance(vector, Mapping):
        return [as_tensor(leaf, f"{what}[{name!r}]") for name, leaf in vector.items()]
    if isinstance(vector, list | tuple):
        return [as_tensor(leaf, f"{what}[{i}]") for i, leaf in enumerate(vector)]
    return [as_tensor(vector, what)]


def _like(vector: Any, parts: Sequence[Tensor]) -> Any:
    """The parts in the form of a vector."""
    if isinstance(vector, Mapping):
        return {name: _like(leaf, [part]) for (name, leaf), part in zip(vector.items(), parts, strict=True)}
    if isinstance(vector, list | tuple):
        return [_like(leaf, [part]) for leaf, part in zip(vector, parts, strict=True)]
    whole = parts[0].view(vector.shape)
    return whole.numpy() if isinstance(vector, np.ndarray) else whole


def _described(vector: Any, leaves: Sequence[tuple[torch.Size, torch.dtype, torch.device]]) -> str:
    shapes = ", ".join(f"{tuple(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype, _ in leaves[:4])
    names = f" with keys {list(vector)[:4]}" if isinstance(vector, Mapping) else ""
    return f"{len(leaves)} tensors ({shapes}{', ...' if len(leaves) > 4 else ''}){names} on {leaves[0][2]}" if leaves \
        else f"an empty {type(vector).__name__}"  # fmt: skip


def as_tensor(array: Any, what: str) -> Tensor:
    """A floating tensor or array as a tensor that shares its memory, off autograd. Raises TypeError."""
    if isinstance(array, np.ndarray):
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"{what}: found a numpy array of {array.dtype}; give float16, float32 or float64")
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch cannot share such memory
        return torch.from_numpy(array)
    if not isinstance(array, Tensor):
        raise TypeError(f"{what}: found {type(array).__name__}; give a torch tensor or a numpy array")
    if not array.is_floating_point():
        raise TypeError(f"{what}: found a tensor of {array.dtype}; give a floating dtype")
    return array.detach()
