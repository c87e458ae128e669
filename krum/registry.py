"""What aggregators, attacks and models have in common: a kebab-case name and keyword options."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Integral
from typing import Any, TypeVar

import numpy as np

from krum.errors import InputError, unknown

LARGEST = 1e30
NUMBER = (float, int, np.floating, np.integer)
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
    declared = str(parameter.annotation)
    if value is None and parameter.default is None:
        return
    if "Sequence" in declared:
        if not isinstance(value, list | tuple) or not all(_positive(item, Integral) for item in value):
            raise InputError(f"{where}: found {value!r:.60}; give a list of positive integers")
    elif "float" in declared:
        if not _positive(value, NUMBER):
            raise InputError(f"{where}: found {value!r:.60}; give a positive number of at most {LARGEST:g}")
    elif declared == "<class 'str'>":
        if not isinstance(value, str):
            raise InputError(f"{where}: found {value!r:.60}; give a text")
    elif parameter.default == 0 and value == 0 and not isinstance(value, bool):
        return
    elif not _positive(value, Integral):
        raise InputError(f"{where}: found {value!r:.60}; give a positive integer")


def _positive(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and bool(0 < value <= LARGEST)
