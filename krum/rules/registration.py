"""How a rule becomes an aggregator: its decorator, what the decorator says of it, and for which n and f it is defined.

A *Gram rule* sees the vectors V_1 ... V_n only through their squared distances, which follow from the n x n Gram
matrix of inner products, and returns one weight per vector: the aggregate is `sum_i weights_i V_i`. It takes
`squared_distances [..., n, n]` (float64, symmetric, zero diagonal; a non-finite vector is at distance `inf` from
everything, itself included) and returns `weights [..., n]`; leading dimensions are independent problems. Distances
rather than the Gram matrix itself, since a floating-point Gram matrix of vectors with a large common part no longer
holds their differences. One that begins at the last round's aggregate (`previous`) sees it as one vector more, the
last of n + 1, and gives it a weight, too.

A *selection rule* is a Gram rule that takes the mean of the m vectors of least score: it returns the scores
`[..., n]`, and the rest is done here. Ties go to the smallest index, and vectors that are not finite come last. Its
scores must not fall when a distance grows: bounds on distances then are bounds on scores.

A *vector rule* needs the coordinates: it takes `vectors [..., n, d]` and returns the aggregate `[..., d]`. It works
coordinate by coordinate; what it must know of whole vectors, it learns from a function of their squared distances, its
`select`, whose result is its parameter `chosen`.

Parameters called `f`, `round` and `coin` receive the declared number of Byzantine workers, the round (from 1), and a
number drawn uniformly from [0, 1) in each round, one for each leading dimension; keyword-only parameters are options.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

from krum.errors import InputError
from krum.registry import check_options, kebab

CONTEXT = ("f", "round", "coin", "chosen")
MOST_ROUNDS = 10**15
ROUND = {  # what changes from round to round: whether a value fits, and what would
    "round": (
        lambda value: _is_integer(value) and 1 <= int(value) <= MOST_ROUNDS,
        f"an integer from 1 to {MOST_ROUNDS:g}",
    ),
    "coin": (lambda value: isinstance(value, Real) and 0 <= float(value) < 1, "a number drawn from [0, 1)"),
}


@dataclass(frozen=True)
class Guarantee:
    """When a rule tolerates f Byzantine workers among n, and when its formula has a meaning at all."""

    condition: str  # on n and f, as text
    least_workers: Callable[[int], int]  # the least n for a given f
    formula: str  # the weaker condition without which there is nothing to compute
    least_for_formula: Callable[[int], int]


ALWAYS = Guarantee("", lambda f: 1, "", lambda f: 1)
MAJORITY = Guarantee("2f < n", lambda f: 2 * f + 1, "2f < n", lambda f: 2 * f + 1)
KRUM = Guarantee("2f + 2 < n", lambda f: 2 * f + 3, "n - f - 2 >= 1", lambda f: f + 3)
BULYAN = Guarantee("4f + 3 <= n", lambda f: 4 * f + 3, "n - 4f >= 1", lambda f: 4 * f + 1)


@dataclass(frozen=True)
class Aggregator:
    """A registered rule. Calling it calls its function, with `f` if the function takes it."""

    name: str
    function: Callable[..., Tensor]
    sees: Literal["distances", "vectors"]
    guarantee: Guarantee
    fixed_weights: bool = False  # the weights do not depend on the vectors
    selects: Callable[[int, int], int] | None = None  # of a selection rule: how many of n vectors, unless m says so
    select: Callable[[Tensor, int], Tensor] | None = None  # of a vector rule: (squared distances, f) -> chosen
    previous: bool = False  # a Gram rule whose geometry ends with the last round's aggregate

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """What the function takes beside the geometry and its options: some of CONTEXT."""
        return tuple(name for name in inspect.signature(self.function).parameters if name in CONTEXT)

    def __call__(
        self, geometry: Tensor, f: int = 0, round: int = 1, coin: Any = 0.0, chosen: Any = None, **options: Any
    ) -> Tensor:
        context = {"f": f, "round": round, "coin": coin, "chosen": chosen}
        result = self.function(geometry, *(context[name] for name in self.needs), **options)
        if self.selects is None:
            return result
        m = self.chosen(geometry.shape[-1], f, options)
        return least(result, m, geometry) / m

    def scores(self, squared_distances: Tensor, f: int = 0, **options: Any) -> Tensor:
        """The scores `[..., n]` of a selection rule."""
        return self.function(squared_distances, *([f] if "f" in self.needs else []), **options)

    def chosen(self, n: int, f: int, options: Mapping[str, Any]) -> int:
        """How many of n vectors a selection rule takes."""
        assert self.selects is not None
        return options["m"] if options.get("m") is not None else self.selects(n, f)

    def split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of a caller's keyword arguments, the round and the coin that the rule needs, and its options; InputError."""
        context: dict[str, Any] = {name: options.get(name) for name in self.needs if name in ROUND}
        for name, value in context.items():
            fits, wanted = ROUND[name]
            if not fits(value):
                raise InputError(f"{self.name} needs {name}: found {value!r:.60}; give {wanted}, in each round")
        if "coin" in context:
            context["coin"] = float(context["coin"])
        return context, {name: value for name, value in options.items() if name not in context}

    def within_guarantee(self, n: int, f: int) -> bool:
        """The rule tolerates f Byzantine workers among n."""
        return n >= self.guarantee.least_workers(f)

    def check(self, n: int, f: int | None, options: Mapping[str, Any], outside_guarantee: bool = False) -> None:
        """Raise InputError unless the rule is defined for n workers, f of them declared Byzantine.

        With `outside_guarantee`, n may be less than the guarantee demands, as long as the formula has a meaning.
        """
        check_options(self.name, self.function, options)
        if f is None:
            if "f" in self.needs:
                raise InputError(f"{self.name}: f is missing; declare how many of the {n} workers may be Byzantine")
            f = 0
        if not _is_integer(f) or not 0 <= f < n:
            raise InputError(f"{self.name}: f = {f!r:.60} with n = {n}; f is an integer from 0 to n - 1")
        guarantee = self.guarantee
        if outside_guarantee:
            needed, within = guarantee.formula, n >= guarantee.least_for_formula(f)
        else:
            needed, within = guarantee.condition, self.within_guarantee(n, f)
        if not within:
            most = max((g for g in range(n) if self.within_guarantee(n, g)), default=None)
            remedy = f"at least {guarantee.least_workers(f)} workers" + (
                "" if most is None else f" or f at most {most}"
            )
            raise InputError(f"{self.name} needs {needed}: found n = {n}, f = {f}; use {remedy}")
        if options.get("m") is not None and options["m"] > n:
            raise InputError(f"{self.name}: m = {options['m']} of n = {n} vectors; m is an integer from 1 to n")


AGGREGATORS: dict[str, Aggregator] = {}


def gram_rule(
    *, guarantee: Guarantee = ALWAYS, fixed_weights: bool = False, name: str | None = None, previous: bool = False
) -> Callable:
    """Register a rule `squared_distances [..., n, n] -> weights [..., n]`, or both with n + 1 if `previous`."""
    return _register(name, sees="distances", guarantee=guarantee, fixed_weights=fixed_weights, previous=previous)


def selection_rule(*, guarantee: Guarantee = ALWAYS, selects: Callable[[int, int], int] = lambda n, f: 1) -> Callable:
    """Register a rule `squared_distances [..., n, n] -> scores [..., n]`; the m vectors of least score are chosen.

    m is the function's option `m` if it has one and it is given, and `selects(n, f)` otherwise.
    """
    return _register(None, sees="distances", guarantee=guarantee, selects=selects)


def vector_rule(*, guarantee: Guarantee = ALWAYS, select: Callable[[Tensor, int], Tensor] | None = None) -> Callable:
    """Register a rule `vectors [..., n, d] -> aggregate [..., d]`, perhaps with `select(squared_distances, f)`."""
    return _register(None, sees="vectors", guarantee=guarantee, select=select)


def _register(name: str | None, **described: Any) -> Callable:
    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        known_as = name or kebab(function)
        AGGREGATORS[known_as] = Aggregator(known_as, function, **described)
        return function

    return decorate


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------ what the rules' formulas share


def least(scores: Tensor, m: int, squared_distances: Tensor) -> Tensor:
    """1 at the m least scores, 0 elsewhere; ties go to the smallest index, and vectors that are not finite last."""
    ranked = scores.masked_fill(infinite_vectors(squared_distances), torch.nan)  # sorts after infinity
    chosen = ranked.sort(dim=-1, stable=True).indices[..., :m]
    return scores.new_zeros(scores.shape).scatter_(-1, chosen, 1.0)


def infinite_vectors(squared_distances: Tensor) -> Tensor:
    """Which vectors are not finite, [..., n]."""
    return ~squared_distances.diagonal(dim1=-2, dim2=-1).isfinite()


def without_infinite_vectors(squared_distances: Tensor) -> Tensor:
    """Distances whose row sums compare the finite vectors among themselves, and put the non-finite ones last.

    A non-finite vector adds the same infinite term to everyone's sum, which would make all of them tie.
    """
    infinite = infinite_vectors(squared_distances)
    return squared_distances.masked_fill(infinite[..., None, :] & ~infinite[..., :, None], 0.0)


def sum_of_nearest(measure: Tensor, neighbours: int) -> Tensor:
    """For each i the sum of its `neighbours` least values `measure[..., i, j]`, j != i, from the least one on."""
    to_others = measure.clone()
    to_others.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return to_others.topk(neighbours, largest=False).values.sum(-1)  # in ascending order, so that ties stay ties
