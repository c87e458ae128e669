"""What aggregators, attacks and models have in common: a kebab-case name and keyword options."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

import numpy as np

from krum.errors import InputError, unknown

LARGEST = 1e30
NUMBER = (float, int, np.floating, np.integer)
LIST = "a list of positive integers"
Entry = TypeVar("Entry")


def kebab(function: Callable) -> str:
    """The public name of a registered function: `multi_krum` is called "multi-krum"."""
    return function.__name__.replace("_", "-")


def lookup(registry: Mapping[str, Entry], name: object, what: str) -> Entry:
    """The entry of that name; InputError with the nearest known name otherwise."""
    if not isinstance(name, str) or name not in registry:
        raise InputError(unknown(what, name, registry))
    return registry[name]


def check_options(name: str, function: Callable, options: Mapping[str, Any]) -> None:
    """Refuse options that `function` does not have, lacks, or that are not what it declares.

    Options are the keyword-only parameters of the function. Every number among them is positive and at most
    1e30 (or zero where the default is zero); a list is a list of positive integers.
    """
    parameters = _options_of(function)
    for key, value in options.items():
        if key not in parameters:
            raise InputError(f"{name}: {unknown('option', key, parameters)}")
        _check_value(f"{name}: option {key}", parameters[key], value)
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise InputError(f"{name}: option {key} is missing")


@cache
def _options_of(function: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.items()
    return {key: parameter for key, parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def _check_value(where: str, parameter: inspect.Parameter, value: Any) -> None:
    declared = [kind for kind in (get_args(parameter.annotation) or (parameter.annotation,)) if kind is not NoneType]
    if get_origin(parameter.annotation) is Sequence:
        fits, wanted = isinstance(value, list | tuple) and all(_positive(item, Integral) for item in value), LIST
    elif declared == [str]:
        fits, wanted = isinstance(value, str), "a text"
    elif declared == [float]:
        fits, wanted = _positive(value, NUMBER), f"a positive number of at most {LARGEST:g}"
    else:
        fits, wanted = _positive(value, Integral), "a positive integer"
    if not fits and not (type(value) in (int, NoneType) and value == parameter.default):
        raise InputError(f"{where}: found {value!r:.60}; give {wanted}")


def _positive(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and bool(0 < value <= LARGEST)
