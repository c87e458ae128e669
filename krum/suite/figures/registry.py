"""Figure kinds: functions from rows to a figure. Their signatures say what an experiment's `figure` entry may ask for.

The positional parameters of a kind are the measurements that it draws: `training`, or the name of a probe. Its
keyword-only parameters are its options.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NewType, TypedDict, TypeVar, get_args, get_origin

from matplotlib.figure import Figure

from krum.errors import InputError, located, unknown
from krum.registry import canonical, kebab, lookup
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.parameters import Cell
from krum.suite.store import TRAINING

COMMON_KEYS = ("kind", "note")  # of a `figure` entry of any kind

# Options are texts of a Literal, true or false, positive numbers, lists of these, or one of:
RuleName = NewType("RuleName", str)  # an aggregator of the grid


class Reference(TypedDict):
    """An aggregator whose unattacked curve is drawn in every attacked panel."""

    aggregator: str


@dataclass(frozen=True)
class FigureKind:
    """A kind: the function that draws it, and what its signature says."""

    name: str
    function: Callable[..., Figure]
    measurements: tuple[str, ...]
    options: Mapping[str, inspect.Parameter]


FIGURE_KINDS: dict[str, FigureKind] = {}
Function = TypeVar("Function", bound=Callable[..., Figure])


def figure_kind(function: Function) -> Function:
    """Register a function as the figure kind of its name."""
    parameters = inspect.signature(function).parameters
    options = {name: one for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    measurements = tuple(name for name in parameters if name not in options)
    name = kebab(function)
    FIGURE_KINDS[name] = FigureKind(name, function, measurements, options)
    return function


def kind_and_options(where: str, figure: Mapping[str, Any]) -> tuple[FigureKind, dict[str, Any]]:
    """The kind that a `figure` entry names, and the options that it gives, checked against the kind's signature.

    Raises InputError for the first option that the kind does not have, lacks, or declares to be something else.
    """
    with located(f"{where}.kind"):
        kind = lookup(FIGURE_KINDS, figure["kind"], "figure kind")
    options = {name: value for name, value in figure.items() if name not in COMMON_KEYS}
    for name, value in options.items():
        if name not in kind.options:
            raise InputError(f"{where}: {unknown(f'key of {kind.name}', name, (*COMMON_KEYS, *kind.options))}")
        _check_value(f"{where}.{name}", kind.options[name].annotation, value)
    for name, parameter in kind.options.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise InputError(f"{where}.{name} is missing; give one of {', '.join(get_args(parameter.annotation))}")
    if "rounds_to_target" in options.get("quantities", ()) and "target" not in options:
        raise InputError(f"{where}.target is missing; it is the error that rounds_to_target counts to")
    return kind, options


def check(where: str, figure: Mapping[str, Any], cells: Sequence[Cell], measured: set[str]) -> dict[str, Any]:
    """A `figure` entry, with the public names of rules.

    Raises InputError for one that could not be drawn from these training runs and probes.
    """
    kind, options = kind_and_options(where, figure)
    checked = dict(figure)
    for measurement in kind.measurements:
        if measurement == TRAINING and not cells:
            raise InputError(f"{where}.kind: {kind.name} draws training runs, and there is no grid; add one")
        if measurement != TRAINING and measurement not in measured:
            raise InputError(
                f"{where}.kind: {kind.name} draws the probe {measurement!r}, which is not among the probes; add it"
            )
    rules = {cell.aggregator for cell in cells}
    unattacked = {cell.aggregator for cell in cells if not cell.byzantine}
    for name, value in options.items():
        declared = (kind.options[name].annotation, *get_args(kind.options[name].annotation))
        with located(f"{where}.{name}"):
            if RuleName in declared and value is not None:
                checked[name] = canonical(value, sorted(rules), "aggregator")
            if Reference in declared and value is not None:
                reference = canonical(value["aggregator"], AGGREGATORS, "aggregator")
                if reference not in unattacked:
                    raise InputError(
                        f"{reference!r} has no unattacked curve in the grid; "
                        f"give one that has ({', '.join(sorted(unattacked)) or 'none has'})"
                    )
                checked[name] = {"aggregator": reference}
    return checked


def _check_value(where: str, declared: Any, value: Any) -> None:
    alternatives = get_args(declared)
    if type(None) in alternatives:
        declared = alternatives[0]
    if get_origin(declared) is Literal:
        if value not in get_args(declared):
            raise InputError(f"{where}: {unknown('value', value, get_args(declared))}")
    elif get_origin(declared) is Sequence:
        if not isinstance(value, list) or not value:
            raise InputError(f"{where}: found {value!r:.60}; give a list")
        for item in value:
            _check_value(where, get_args(declared)[0], item)
    else:
        fits, wanted = VALUES[declared]
        if not fits(value):
            raise InputError(f"{where}: found {value!r:.60}; give {wanted}")


VALUES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    float: (lambda value: type(value) in (int, float) and value > 0, "a positive number"),
    RuleName: (lambda value: isinstance(value, str), "the name of an aggregator"),
    Reference: (lambda value: isinstance(value, dict) and set(value) == {"aggregator"}, "{aggregator: name}"),
}
