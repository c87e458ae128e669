"""The aggregation rules: one decorated function each.

A *Gram rule* sees the vectors V_1 ... V_n only through their squared distances, which follow from the n x n Gram
matrix of inner products, and returns one weight per vector: the aggregate is `sum_i weights_i V_i`. It takes
`squared_distances [..., n, n]` (float64, symmetric, zero diagonal; a non-finite vector is at distance `inf` from
everything, itself included) and returns `weights [..., n]`; leading dimensions are independent problems. Distances
rather than the Gram matrix itself, since a floating-point Gram matrix of vectors with a large common part no longer
holds their differences.

A *vector rule* needs the coordinates: it takes `vectors [..., n, d]` and returns the aggregate `[..., d]`.

To add a rule, write one function here and decorate it. If it has a parameter `f`, it receives the declared number of
Byzantine workers; keyword-only parameters are its options. Tensors' own methods suffice in the body; torch is not
imported here, so that experiments can be validated and planned without it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from krum.errors import InputError
from krum.registry import check_options, kebab

if TYPE_CHECKING:
    from torch import Tensor

AGGREGATORS: dict[str, "Aggregator"] = {}


@dataclass(frozen=True)
class Aggregator:
    """A registered rule. Calling it calls its function, with `f` if the function takes it."""

    name: str
    function: Callable[..., "Tensor"]
    sees: Literal["distances", "vectors"]
    guarantee: str  # the condition under which the rule tolerates f Byzantine workers, as text, or ""
    least_workers: Callable[[int], int]  # the same condition: the least n for a given f
    fixed_weights: bool  # the weights do not depend on the vectors

    @property
    def needs_f(self) -> bool:
        """The function takes the declared number of Byzantine workers."""
        return "f" in inspect.signature(self.function).parameters

    def __call__(self, geometry: "Tensor", f: int | None = None, **options: Any) -> "Tensor":
        return self.function(geometry, f, **options) if self.needs_f else self.function(geometry, **options)

    def within_guarantee(self, n: int, f: int) -> bool:
        """The rule tolerates f Byzantine workers among n."""
        return n >= self.least_workers(f)

    def check(self, n: int, f: int | None, options: Mapping[str, Any], outside_guarantee: bool = False) -> None:
        """Raise InputError unless the rule is defined for n workers, f of them declared Byzantine.

        With `outside_guarantee`, n may be less than the guarantee demands, as long as the formula has a meaning.
        """
        check_options(self.name, self.function, options)
        if f is None:
            if self.needs_f:
                raise InputError(f"{self.name}: f is missing; declare how many of the {n} workers may be Byzantine")
            f = 0
        if isinstance(f, bool) or not isinstance(f, Integral) or not 0 <= f < n:
            raise InputError(f"{self.name}: f = {f!r} with n = {n}; f is an integer from 0 to n - 1")
        if not self.within_guarantee(n, f):
            least = self.least_workers(f)
            most = max((g for g in range(n) if self.within_guarantee(n, g)), default=None)
            remedy = f"at least {least} workers" + ("" if most is None else f" or f at most {most}")
            if not outside_guarantee:
                raise InputError(f"{self.name} needs {self.guarantee}: found n = {n}, f = {f}; use {remedy}")
            if self.guarantee == _KRUM and n - f - 2 < 1:
                raise InputError(f"{self.name} sums n - f - 2 >= 1 distances: found n = {n}, f = {f}; use {remedy}")
            if self.guarantee == _MAJORITY:
                raise InputError(f"{self.name} is not defined without {_MAJORITY}: n = {n}, f = {f}; use {remedy}")
        if options.get("m") is not None and options["m"] > n:
            raise InputError(f"{self.name}: m = {options['m']} of n = {n} vectors; m is an integer from 1 to n")


_KRUM = "2f + 2 < n"
_MAJORITY = "2f < n"
_LEAST_WORKERS: dict[str, Callable[[int], int]] = {
    "": lambda f: 1,
    _MAJORITY: lambda f: 2 * f + 1,
    _KRUM: lambda f: 2 * f + 3,
}


def _register(sees: Literal["distances", "vectors"], guarantee: str, fixed_weights: bool) -> Callable:
    def decorate(function: Callable[..., "Tensor"]) -> Callable[..., "Tensor"]:
        name = kebab(function)
        least_workers = _LEAST_WORKERS[guarantee]
        AGGREGATORS[name] = Aggregator(name, function, sees, guarantee, least_workers, fixed_weights)
        return function

    return decorate


def gram_rule(*, guarantee: str = "", fixed_weights: bool = False) -> Callable:
    """Register a rule `squared_distances [..., n, n] -> weights [..., n]`."""
    return _register("distances", guarantee, fixed_weights)


def vector_rule(*, guarantee: str = "") -> Callable:
    """Register a rule `vectors [..., n, d] -> aggregate [..., d]`."""
    return _register("vectors", guarantee, fixed_weights=False)


# ---------------------------------------------------------------------------------------------------- Gram rules


@gram_rule(fixed_weights=True)
def average(squared_distances: "Tensor") -> "Tensor":
    """The mean, `1/n sum_i V_i`. Tolerates no Byzantine worker (Lemma 1 of Blanchard et al., 2017)."""
    n = squared_distances.shape[-1]
    return squared_distances.new_full(squared_distances.shape[:-1], 1 / n)


@gram_rule(guarantee=_KRUM)
def krum(squared_distances: "Tensor", f: int) -> "Tensor":
    """Krum: the vector with the least score, the smallest index on a tie.

    `s(i) = sum over i -> j of ||V_i - V_j||^2`, where `i -> j` holds for the n - f - 2 vectors V_j, j != i, closest
    to V_i (Blanchard et al., 2017, section 4). O(n^2 d) with the distances.
    """
    return _indicator(_krum_scores(squared_distances, f), 1, squared_distances)


@gram_rule(guarantee=_KRUM)
def multi_krum(squared_distances: "Tensor", f: int, *, m: int | None = None) -> "Tensor":
    """Multi-Krum: the mean of the m vectors of least Krum score (Blanchard et al., 2017, section 7).

    m = 1 is Krum, m = n is averaging; the default is the paper's m = n - f. Ties go to the smallest index.
    """
    n = squared_distances.shape[-1]
    m = n - f if m is None else m
    return _indicator(_krum_scores(squared_distances, f), m, squared_distances) / m


@gram_rule()
def medoid(squared_distances: "Tensor") -> "Tensor":
    """The vector with the least sum of distances (not squared) to the others, the smallest index on a tie."""
    return _indicator(_without_infinite_vectors(squared_distances).sqrt().sum(-1), 1, squared_distances)


@gram_rule()
def nearest_to_barycentre(squared_distances: "Tensor") -> "Tensor":
    """The vector with the least sum of squared distances to all others, the smallest index on a tie.

    It is the vector nearest the barycentre, since `sum_j ||V_i - V_j||^2 = n ||V_i - mean||^2 + constant`. Two
    colluding workers defeat it (Figure 2 of Blanchard et al., 2017).
    """
    return _indicator(_without_infinite_vectors(squared_distances).sum(-1), 1, squared_distances)


@gram_rule()
def geometric_median(squared_distances: "Tensor", *, iterations: int = 1000, tolerance: float = 1e-9) -> "Tensor":
    """The point z with the least `sum_i ||z - V_i||`, by Weiszfeld's iteration on its weights.

    With `z = sum_i w_i V_i`, `sum_i w_i = 1` and D the squared distances: `||z - V_i||^2 = (D w)_i - 1/2 w^T D w`, and
    the iteration is `w_i <- 1/||z - V_i||`, normalised (Weiszfeld, 1937). Where z lies on vectors, e of them, the step
    towards the others' T is `z <- (1 - s) T + s z` with `s = min(1, e / ||sum_i (V_i - z)/||V_i - z|| ||)` (Vardi and
    Zhang, 2000). It ends when no weight moves by more than `tolerance`. A vector more than 1e7 times as far away as
    the typical one gets weight 0: float64 no longer holds its direction.
    """
    to_centre = _without_infinite_vectors(squared_distances).sqrt().sum(-1).argmin(-1)[..., None, None]
    from_centre = squared_distances.take_along_dim(to_centre, -2).squeeze(-2)
    finite = ~_infinite(squared_distances)
    typical = from_centre.masked_fill(~finite, float("nan")).nanmedian(-1, keepdim=True).values
    present = (finite & (from_centre <= 1e14 * typical)).to(squared_distances.dtype)
    both = (present[..., :, None] * present[..., None, :]) > 0
    distances = squared_distances.where(both, 0.0)

    def times_distances(weights: "Tensor") -> "Tensor":
        return (distances * weights[..., None, :]).sum(-1)  # as a matrix product, it would mix replicas' roundings

    weights = present / present.sum(-1, keepdim=True)
    for _ in range(iterations):
        to_vectors = times_distances(weights)
        squared = to_vectors - (weights * to_vectors).sum(-1, keepdim=True) / 2
        noise = 1e-12 * typical + 1e-15 * to_vectors.amax(-1, keepdim=True)
        here = present * (squared <= noise)
        pull = (present - here) * squared.clamp(min=1e-300).rsqrt()
        total = pull.sum(-1, keepdim=True).clamp(min=1e-300)
        towards = pull / total
        step = towards - weights
        length = (-(step * times_distances(step)).sum(-1, keepdim=True) / 2).clamp(min=0).sqrt()
        stay = (here.sum(-1, keepdim=True) / (total * length).clamp(min=1e-300)).clamp(max=1)
        updated = towards + stay * (weights - towards)
        moved = (updated - weights).abs().amax(-1, keepdim=True)
        # A replica that has converged stands still, so that its result does not depend on its neighbours.
        weights = updated.where(moved > tolerance, weights)
        if not bool((moved > tolerance).any()):
            break
    return weights


# -------------------------------------------------------------------------------------------------- vector rules


@vector_rule(guarantee=_MAJORITY)
def median(vectors: "Tensor") -> "Tensor":
    """The coordinate-wise median, for even n the mean of the two middle values (Yin et al., 2018). NaN is +inf."""
    n = vectors.shape[-2]
    ordered = vectors.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf")).sort(-2).values
    return ordered[..., (n - 1) // 2, :] / 2 + ordered[..., n // 2, :] / 2


@vector_rule(guarantee=_MAJORITY)
def trimmed_mean(vectors: "Tensor", f: int) -> "Tensor":
    """The coordinate-wise mean without the f least and the f greatest values (Yin et al., 2018). NaN is +inf."""
    n = vectors.shape[-2]
    ordered = vectors.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf")).sort(-2).values
    return ordered[..., f : n - f, :].mean(-2)


# ----------------------------------------------------------------------------------------------------- their parts


def _krum_scores(squared_distances: "Tensor", f: int) -> "Tensor":
    """`s(i)`: the sum of the n - f - 2 least squared distances from V_i to the *other* vectors."""
    n = squared_distances.shape[-1]
    to_others = squared_distances.clone()
    to_others.diagonal(dim1=-2, dim2=-1).fill_(float("inf"))
    return to_others.sort(-1).values[..., : n - f - 2].sum(-1)


def _without_infinite_vectors(squared_distances: "Tensor") -> "Tensor":
    """Distances whose row sums compare the finite vectors among themselves, and put the non-finite ones last.

    A non-finite vector adds the same infinite term to everyone's sum, which would make all of them tie.
    """
    infinite = _infinite(squared_distances)
    return squared_distances.masked_fill(infinite[..., None, :] & ~infinite[..., :, None], 0.0)


def _infinite(squared_distances: "Tensor") -> "Tensor":
    """Which vectors are not finite, [..., n]."""
    return ~squared_distances.diagonal(dim1=-2, dim2=-1).isfinite()


def _indicator(scores: "Tensor", m: int, squared_distances: "Tensor") -> "Tensor":
    """1 at the m least scores, 0 elsewhere; ties go to the smallest index, and vectors that are not finite last."""
    ranked = scores.masked_fill(_infinite(squared_distances), float("nan"))  # sorts after infinity
    chosen = ranked.sort(dim=-1, stable=True).indices[..., :m]
    return scores.new_zeros(scores.shape).scatter_(-1, chosen, 1.0)
