"""What aggregators, attacks and models have in common: a kebab-case name and keyword options."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from numbers import Integral
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

import numpy as np

from krum.errors import InputError, unknown

LARGEST = 1e30
NUMBER = (int, float, np.integer, np.floating)  # what torch computes with; no fractions
Entry = TypeVar("Entry")

# What papers and other libraries call them, in small letters and digits alone -> the public name here.
SYNONYMS = {
    "avg": "average",
    "mean": "average",
    "fedavg": "average",
    "mkrum": "multi-krum",
    "comed": "median",
    "cwmed": "median",
    "coordinatemedian": "median",
    "coordinatewisemedian": "median",
    "cwtm": "trimmed-mean",
    "trmean": "trimmed-mean",
    "coordinatewisetrimmedmean": "trimmed-mean",
    "geomed": "geometric-median",
    "rfa": "geometric-median",
    "cc": "centred-clipping",
    "cclip": "centred-clipping",
    "centeredclipping": "centred-clipping",
    "alie": "a-little-is-enough",
    "lie": "a-little-is-enough",
    "littleisenough": "a-little-is-enough",
    "foe": "inner-product-manipulation",
    "ipm": "inner-product-manipulation",
    "fallofempires": "inner-product-manipulation",
    "bitflipping": "bit-flip",
    "labelflipping": "label-flip",
    "signflipping": "sign-flip",
    "cnn": "convnet",
}


def kebab(function: Callable) -> str:
    """The public name of a registered function: `multi_krum` is called "multi-krum"."""
    return function.__name__.replace("_", "-")


def canonical(name: object, registered: Collection[str], what: str) -> str:
    """The public name that is meant: however it is spelled, `MultiKrum` or `multi_krum`, or a synonym.

    Raises InputError with the nearest known name.
    """
    if isinstance(name, str) and name in registered:
        return name
    known = {synonym: public for synonym, public in SYNONYMS.items() if public in registered}
    known |= {_letters(public): public for public in registered}
    if not isinstance(name, str) or _letters(name) not in known:
        raise InputError(unknown(what, name, registered, known))
    return known[_letters(name)]


def _letters(name: str) -> str:
    """A name's letters and digits, in small."""
    return "".join(character for character in name.lower() if character.isalnum())


def lookup(registry: Mapping[str, Entry], name: object, what: str) -> Entry:
    """The entry of that name or synonym; InputError with the nearest known name otherwise."""
    return registry[canonical(name, registry, what)]


def check_options(name: str, function: Callable, options: Mapping[str, Any]) -> None:
    """Refuse options that `function` does not have, lacks, or that are not what it declares.

    Options are the keyword-only parameters of the function. Every number among them is positive and at most
    1e30 (or zero where the default is zero); a list is a list of positive integers.
    """
    parameters = _options_of(function)
    for key, value in options.items():
        if key not in parameters:
            raise InputError(f"{name}: {unknown('option', key, parameters)}")
        fits, wanted = _check(parameters[key], value)
        if not fits:
            raise InputError(f"{name}: option {key}: found {value!r:.60}; give {wanted}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise InputError(f"{name}: option {key} is missing")


@cache
def _options_of(function: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.items()
    return {key: parameter for key, parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def _check(parameter: inspect.Parameter, value: Any) -> tuple[bool, str]:
    """Whether a value is what the parameter's annotation declares, and what that is, in words."""
    annotation, default = parameter.annotation, parameter.default
    declared = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not NoneType]
    absent = value is None and default is None
    if get_origin(annotation) is Sequence:
        is_list = isinstance(value, list | tuple) and all(_positive(item, Integral) for item in value)
        return absent or is_list, "a list of positive integers"
    if declared == [str]:
        return isinstance(value, str), "a text"
    kind, words = (NUMBER, "number") if declared == [float] else (Integral, "integer")
    return absent or _positive(value, kind, default), f"a positive {words} of at most {LARGEST:g}"


def _positive(value: Any, kind: Any, default: Any = None) -> bool:
    """A number above zero, or zero where that is the default."""
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    return is_number and bool(0 < value <= LARGEST or value == default == 0)
