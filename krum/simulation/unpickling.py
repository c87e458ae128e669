"""Pickles of numpy arrays, read without running anything that is in them.

A pickle is a program. Here its machine is Python's own, in Python, but every name that the program may look up stands
for a function of this module, and what comes out is arrays of plain numbers in tuples and lists, or an error.
"""

import pickle
from collections.abc import Callable
from typing import IO, Any

import numpy as np

NUMBERS = ("f4", "f8", "i4", "i8", "u1")


def load_arrays(file: IO[bytes], encoding: str = "latin1") -> Any:
    """The array, or the nested tuples and lists of arrays, that a pickle holds.

    `encoding` is that of the texts in which Python 2 kept bytes. Raises `pickle.UnpicklingError` for anything else.
    """
    try:
        return _only_arrays(_Machine(file, encoding=encoding).load(), {})
    except pickle.UnpicklingError:
        raise
    except Exception as error:
        raise pickle.UnpicklingError(f"no pickle of arrays ({type(error).__name__}: {str(error)[:100]})") from None


class _Machine(pickle._Unpickler):  # type: ignore[name-defined]  # the one in C reserves memory for any memo index
    def find_class(self, module: str, name: str) -> "_Named":
        """Only what an array's pickle names."""
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"refused: the pickle names {module}.{name}, which is no array")
        return _Named(_NAMES[module, name])


class _Stand:
    """Something that a pickle's program may hold, and by no means change."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("refused: the pickle changes what is no array")


class _Named(_Stand):
    """A function that the program may call."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Numbers(_Stand):
    """A dtype of plain numbers."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_: Any):
        if code not in NUMBERS:
            raise pickle.UnpicklingError(f"refused: an array of {code!r}; known: {', '.join(NUMBERS)}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(_Stand):
    """An array, empty until its state is there."""

    __slots__ = ("array",)

    def __init__(self, *_: Any):
        self.array = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, numbers, by_columns, content = state
        if not isinstance(numbers, _Numbers):
            raise pickle.UnpicklingError("refused: an array of what is no number")
        content = content.encode("latin1") if isinstance(content, str) else content
        self.array = np.frombuffer(content, numbers.dtype).reshape(shape, order="F" if by_columns else "C")


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,  # only handed to _reconstruct
    ("numpy", "dtype"): _Numbers,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how Python 3 writes bytes for Python 2
}


def _only_arrays(value: Any, known: dict[int, Any]) -> Any:
    """Arrays for their stands, each place visited once."""
    if isinstance(value, _Array):
        return value.array
    if type(value) not in (tuple, list):
        raise pickle.UnpicklingError(f"refused: the pickle holds a {type(value).__name__}, which is no array")
    if id(value) not in known:
        known[id(value)] = None
        known[id(value)] = type(value)(_only_arrays(item, known) for item in value)
    elif known[id(value)] is None:
        raise pickle.UnpicklingError("refused: the pickle holds a list that contains itself")
    return known[id(value)]
