"""Normalises a matrix, a list or state dicts to flat row blocks without copying, and gives the result their form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from krum.errors import InputError
from krum.rules.distances import RowBlock

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FORMS = "give [n, d] as a torch tensor or a numpy array, or n of them, or n models' gradients, each a list or a dict"


@dataclass(frozen=True)
class Vectors:
    """n vectors in row blocks, and the way back from one vector in such pieces to the caller's form."""

    blocks: list[RowBlock]
    like_given: Callable[[list[Tensor], Tensor | None], Any]  # (the vector's pieces, the n vectors' weights)
    in_numpy: bool = False
    sum_over_processes: Callable[[Tensor], Tensor] | None = None  # where others hold more coordinates of these vectors

    @property
    def n(self) -> int:
        """How many vectors there are."""
        return len(self.blocks[0])

    @property
    def is_part(self) -> bool:
        """Other processes hold more coordinates."""
        return self.sum_over_processes is not None

    def over_processes(self, numbers: Tensor) -> Tensor:
        """The sum of what all processes have in this place; may be computed in place."""
        return numbers if self.sum_over_processes is None else self.sum_over_processes(numbers)

    def and_last(self, vector: Any) -> Self:
        """With one vector more at the end, of the form of a result; zero where it is None. Raises InputError."""
        if vector is None:
            last = [block[0].new_zeros(block[0].shape) for block in self.blocks]
        else:
            last = [_flat(leaf) for leaf in _leaves(vector, "previous") if leaf.is_floating_point()]
        shapes = [tuple(leaf.shape) for leaf in last]
        expected = [tuple(block[0].shape) for block in self.blocks]
        if shapes != expected or not all(bool(leaf.isfinite().all()) for leaf in last):
            raise InputError(f"previous: found shapes {shapes}; give the last aggregate, finite numbers")
        blocks: list[RowBlock] = [[*block, row.to(block[0])] for block, row in zip(self.blocks, last, strict=True)]
        return replace(self, blocks=blocks)


def read(given: Any) -> Vectors:
    """The vectors that a caller gives. Raises TypeError, InputError."""
    if not isinstance(given, list | tuple):
        tensor = as_tensor(given, "vectors")
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise InputError(f"vectors: found shape {tuple(tensor.shape)}; give [n, d], one vector a row")
        in_numpy = isinstance(given, np.ndarray)
        return Vectors([tensor], lambda parts, weights: parts[0].numpy() if in_numpy else parts[0], in_numpy)
    if not given:
        raise InputError(f"vectors: found an empty {type(given).__name__}; {FORMS}")
    vectors = [_leaves(vector, f"vectors[{i}]") for i, vector in enumerate(given)]
    names = _names(given[0])
    for i, vector in enumerate(vectors):
        alike = len(vector) == len(vectors[0]) and all(map(_alike, vector, vectors[0]))
        if not alike or names != _names(given[i]):
            raise InputError(
                f"vectors[{i}]: found {_described(given[i], vector)}, but vectors[0] is "
                f"{_described(given[0], vectors[0])}; give n vectors of one form"
            )
    if not any(leaf.numel() for leaf in vectors[0] if leaf.is_floating_point()):
        raise InputError(f"vectors: found no floating-point numbers in vectors[0]; {FORMS}")
    columns = list(zip(*vectors, strict=True))  # of each leaf, all n
    blocks: list[RowBlock] = [[_flat(leaf) for leaf in leaves] for leaves in columns if leaves[0].is_floating_point()]

    def like_given(parts: list[Tensor], weights: Tensor | None) -> Any:
        rest = iter(parts)
        whole = [next(rest) if leaves[0].is_floating_point() else _one_of(leaves, weights) for leaves in columns]
        return _like(given[0], whole)

    first = given[0] if names is None else given[0][names[0]]
    in_numpy = isinstance(first[0] if isinstance(first, list | tuple) else first, np.ndarray)
    return Vectors(blocks, like_given, in_numpy)


def _one_of(leaves: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Integers or booleans: the vector's of greatest weight, or without weights the (lower) middle one of each."""
    if weights is None:
        return torch.stack(list(leaves)).long().median(0).values.to(leaves[0].dtype)
    factors = weights.tolist()
    return leaves[factors.index(max(factors))].clone()


def read_slices(given: Any, sum_over_processes: Callable[[Tensor], Tensor]) -> Vectors:
    """A process's part of n vectors: a tensor `[n, ...]`, or a list or a dict of such. Raises TypeError, InputError."""
    leaves = _leaves(given, "slices")
    for leaf in leaves:
        as_tensor(leaf, "slices")  # no integers: a part is no whole model
    if not leaves:
        raise InputError("slices: found none; a rank without parameters gives an empty tensor, [n, 0]")
    counts = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
    if len(counts) > 1 or counts == {0}:
        raise InputError(f"slices: found {sorted(counts)} vectors; give tensors [n, ...] with the same n > 0")
    blocks: list[RowBlock] = [leaf[:, None].flatten(1) for leaf in leaves]
    first = each(lambda leaf: leaf[0], given)
    return Vectors(blocks, lambda parts, _: _like(first, parts), sum_over_processes=sum_over_processes)


def each(function: Callable[..., Any], given: Any, *others: Any) -> Any:
    """What a function makes of a tensor, or of each in a list or a dict of them, with those of others like it."""
    names = _names(given)
    if names is not None:
        return {name: function(given[name], *(other[name] for other in others)) for name in names}
    if isinstance(given, list | tuple):
        return [function(*leaves) for leaves in zip(given, *others, strict=True)]
    return function(given, *others)


def _names(vector: Any) -> list[Any] | None:
    """The keys of one vector, if it has any."""
    return list(vector) if not isinstance(vector, Tensor) and isinstance(vector, Mapping) else None


def _leaves(vector: Any, what: str) -> list[Tensor]:
    """The tensors of one vector, in order."""
    if isinstance(vector, list | tuple):
        return [_leaf(leaf, f"{what}[{i}]") for i, leaf in enumerate(vector)]
    names = _names(vector)
    if names is not None:
        return [_leaf(vector[name], f"{what}[{name!r}]") for name in names]
    return [as_tensor(vector, what)]


def _leaf(array: Any, what: str) -> Tensor:
    """A part of a model, which may also be of integers or booleans."""
    if isinstance(array, np.ndarray) and array.dtype.kind in "biu":
        return torch.from_numpy(array.copy())
    if isinstance(array, Tensor) and array.dtype in INTEGERS and array.layout == torch.strided:
        return array
    return as_tensor(array, what)


def _like(vector: Any, parts: Sequence[Tensor]) -> Any:
    """The parts in the form of a vector."""
    remaining = iter(parts)

    def shaped(leaf: Any) -> Any:
        whole = next(remaining).reshape(leaf.shape)
        return whole.numpy() if isinstance(leaf, np.ndarray) else whole

    return each(shaped, vector)


def _flat(leaf: Tensor) -> Tensor:
    return leaf if leaf.ndim == 1 else leaf.reshape(-1)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _described(vector: Any, leaves: Sequence[Tensor]) -> str:
    if not leaves:
        return f"an empty {type(vector).__name__}"
    shapes = ", ".join(f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}" for leaf in leaves[:4])
    names = f" with keys {list(vector)[:4]}" if isinstance(vector, Mapping) else ""
    return f"{len(leaves)} tensors ({shapes}{', ...' if len(leaves) > 4 else ''}){names} on {leaves[0].device}"


def as_tensor(array: Any, what: str) -> Tensor:
    """A floating tensor or array as a tensor that shares its memory, off autograd. Raises TypeError."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what}: found a masked array; fill it, or leave out what is masked")
    if isinstance(array, np.ndarray):
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"{what}: found a numpy array of {array.dtype}; give float16, float32 or float64")
        if not array.flags.writeable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
            array = array.copy()  # torch cannot share such memory
        return torch.from_numpy(array)
    if not isinstance(array, Tensor):
        raise TypeError(f"{what}: found {type(array).__name__}; give a torch tensor or a numpy array")
    if array.dtype not in DTYPES:
        raise TypeError(f"{what}: found a tensor of {array.dtype}; give float16, bfloat16, float32 or float64")
    if array.layout != torch.strided or array.is_nested or array.device.type == "meta":
        raise TypeError(f"{what}: found a tensor without numbers side by side in memory; give a dense one")
    return array.detach() if array.requires_grad else array
