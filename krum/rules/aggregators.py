"""The aggregation rules: one decorated function each.

A *Gram rule* sees the vectors V_1 ... V_n only through their squared distances, which follow from the n x n Gram
matrix of inner products, and returns one weight per vector: the aggregate is `sum_i weights_i V_i`. It takes
`squared_distances [..., n, n]` (float64, symmetric, zero diagonal; a non-finite vector is at distance `inf` from
everything, itself included) and returns `weights [..., n]`; leading dimensions are independent problems. Distances
rather than the Gram matrix itself, since a floating-point Gram matrix of vectors with a large common part no longer
holds their differences.

A *selection rule* is a Gram rule that takes the mean of the m vectors of least score: it returns the scores
`[..., n]`, and the rest is done here. Ties go to the smallest index, and vectors that are not finite come last. Its
scores must not fall when a distance grows: the simulation then need not compute attackers that are provably too far.

A *vector rule* needs the coordinates: it takes `vectors [..., n, d]` and returns the aggregate `[..., d]`. It works
coordinate by coordinate; what it must know of whole vectors, it learns from a function of their squared distances, its
`select`, whose result is its parameter `chosen`.

A Gram rule that begins at the last round's aggregate (`previous`) sees it as one vector more, the last of n + 1, and
gives it a weight, too.

To add a rule, write one function here and decorate it. Parameters called `f`, `round` and `coin` receive the declared
number of Byzantine workers, the round (from 1), and a number drawn uniformly from [0, 1) in each round, one for each
leading dimension; keyword-only parameters are its options. Tensors' own methods suffice in the body; torch is not
imported here, so that experiments can be validated and planned without it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from krum.errors import InputError
from krum.registry import check_options, kebab

if TYPE_CHECKING:
    from torch import Tensor

AGGREGATORS: dict[str, "Aggregator"] = {}
CONTEXT = ("f", "round", "coin", "chosen")
MOST_ROUNDS = 10**15
SORTED_AT_ONCE = 16_384  # columns that are sorted side by side: a cache should hold them
FEW = 64  # neighbours that are sooner put in order one by one than sorted


@dataclass(frozen=True)
class Aggregator:
    """A registered rule. Calling it calls its function, with `f` if the function takes it."""

    name: str
    function: Callable[..., "Tensor"]
    sees: Literal["distances", "vectors"]
    guarantee: str  # the condition under which the rule tolerates f Byzantine workers, as text, or ""
    least_workers: Callable[[int], int]  # the same condition: the least n for a given f
    fixed_weights: bool  # the weights do not depend on the vectors
    selects: Callable[[int, int], int] | None  # of a selection rule: how many of n vectors it takes, unless m says so
    select: Callable[["Tensor", int], "Tensor"] | None = None  # of a vector rule: (squared distances, f) -> chosen
    previous: bool = False  # a Gram rule whose geometry ends with the last round's aggregate

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """What the function takes beside the geometry and its options: some of CONTEXT."""
        return tuple(name for name in inspect.signature(self.function).parameters if name in CONTEXT)

    @property
    def needs_f(self) -> bool:
        """The function takes the declared number of Byzantine workers."""
        return "f" in self.needs

    def __call__(
        self, geometry: "Tensor", f: int = 0, round: int = 1, coin: Any = 0.0, chosen: Any = None, **options: Any
    ) -> "Tensor":
        context = {"f": f, "round": round, "coin": coin, "chosen": chosen}
        if self.selects is None:
            return self._call(geometry, context, options)
        m = self.chosen(geometry.shape[-1], f, options)
        return _indicator(self._call(geometry, context, options), m, geometry) / m

    def scores(self, squared_distances: "Tensor", f: int = 0, **options: Any) -> "Tensor":
        """The scores `[..., n]` of a selection rule."""
        return self._call(squared_distances, {"f": f, "round": 1, "coin": 0.0}, options)

    def chosen(self, n: int, f: int, options: Mapping[str, Any]) -> int:
        """How many of n vectors a selection rule takes."""
        assert self.selects is not None
        return options["m"] if options.get("m") is not None else self.selects(n, f)

    def _call(self, geometry: "Tensor", context: Mapping[str, Any], options: Mapping[str, Any]) -> "Tensor":
        return self.function(geometry, *(context[name] for name in self.needs), **options)

    def split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of a caller's keyword arguments, the round and the coin that the rule needs, and its options; InputError."""
        needs = [name for name in self.needs if name in ("round", "coin")]
        missing = [name for name in needs if name not in options]
        if missing:
            raise InputError(
                f"{self.name} needs {', '.join(needs)}: {missing[0]} is missing; give round= (from 1) and "
                f"coin= (drawn from [0, 1) in each round)"
            )
        context = {name: options[name] for name in needs}
        if isinstance(context.get("coin"), Real):
            context["coin"] = float(context["coin"])
        if "round" in context and not (_is_integer(context["round"]) and 1 <= context["round"] <= MOST_ROUNDS):
            raise InputError(
                f"{self.name}: round = {context['round']!r:.60}; give an integer from 1 to {MOST_ROUNDS:g}"
            )
        if "coin" in context and not (isinstance(context["coin"], Real) and 0 <= float(context["coin"]) < 1):
            raise InputError(f"{self.name}: coin = {context['coin']!r:.60}; give a number from 0 up to 1")
        return context, {name: value for name, value in options.items() if name not in context}

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
        if not _is_integer(f) or not 0 <= f < n:
            raise InputError(f"{self.name}: f = {f!r:.60} with n = {n}; f is an integer from 0 to n - 1")
        if not self.within_guarantee(n, f):
            least = self.least_workers(f)
            most = max((g for g in range(n) if self.within_guarantee(n, g)), default=None)
            remedy = f"at least {least} workers" + ("" if most is None else f" or f at most {most}")
            if not outside_guarantee:
                raise InputError(f"{self.name} needs {self.guarantee}: found n = {n}, f = {f}; use {remedy}")
            if self.guarantee == _KRUM and n - f - 2 < 1:
                raise InputError(f"{self.name} sums n - f - 2 >= 1 distances: found n = {n}, f = {f}; use {remedy}")
            if self.guarantee == _BULYAN and n - 4 * f < 1:
                raise InputError(f"{self.name} keeps n - 4f >= 1 values: found n = {n}, f = {f}; use {remedy}")
            if self.guarantee == _MAJORITY:
                raise InputError(f"{self.name} is not defined without {_MAJORITY}: n = {n}, f = {f}; use {remedy}")
        if options.get("m") is not None and options["m"] > n:
            raise InputError(f"{self.name}: m = {options['m']} of n = {n} vectors; m is an integer from 1 to n")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


_KRUM = "2f + 2 < n"
_MAJORITY = "2f < n"
_BULYAN = "4f + 3 <= n"
_LEAST_WORKERS: dict[str, Callable[[int], int]] = {
    "": lambda f: 1,
    _MAJORITY: lambda f: 2 * f + 1,
    _KRUM: lambda f: 2 * f + 3,
    _BULYAN: lambda f: 4 * f + 3,
}


def _register(
    sees: Literal["distances", "vectors"],
    guarantee: str,
    fixed_weights: bool = False,
    selects: Callable[[int, int], int] | None = None,
    name: str | None = None,
    select: Callable[["Tensor", int], "Tensor"] | None = None,
    previous: bool = False,
) -> Callable:
    def decorate(function: Callable[..., "Tensor"]) -> Callable[..., "Tensor"]:
        known_as = name or kebab(function)
        least_workers = _LEAST_WORKERS[guarantee]
        AGGREGATORS[known_as] = Aggregator(
            known_as, function, sees, guarantee, least_workers, fixed_weights, selects, select, previous
        )
        return function

    return decorate


def gram_rule(
    *, guarantee: str = "", fixed_weights: bool = False, name: str | None = None, previous: bool = False
) -> Callable:
    """Register a rule `squared_distances [..., n, n] -> weights [..., n]`, or both with n + 1 if `previous`."""
    return _register("distances", guarantee, fixed_weights, name=name, previous=previous)


def selection_rule(*, guarantee: str = "", selects: Callable[[int, int], int] = lambda n, f: 1) -> Callable:
    """Register a rule `squared_distances [..., n, n] -> scores [..., n]`, of which the m least are taken.

    m is the function's option `m` if it has one and it is given, and `selects(n, f)` otherwise.
    """
    return _register("distances", guarantee, selects=selects)


def vector_rule(*, guarantee: str = "", select: Callable[["Tensor", int], "Tensor"] | None = None) -> Callable:
    """Register a rule `vectors [..., n, d] -> aggregate [..., d]`, perhaps with `select(squared_distances, f)`."""
    return _register("vectors", guarantee, select=select)


# ---------------------------------------------------------------------------------------------------- Gram rules


@gram_rule(fixed_weights=True)
def average(squared_distances: "Tensor") -> "Tensor":
    """The mean, `1/n sum_i V_i`. Tolerates no Byzantine worker (Lemma 1 of Blanchard et al., 2017)."""
    n = squared_distances.shape[-1]
    return squared_distances.new_full(squared_distances.shape[:-1], 1 / n)


@selection_rule(guarantee=_KRUM)
def krum(squared_distances: "Tensor", f: int) -> "Tensor":
    """Krum: the vector with the least score, the smallest index on a tie.

    `s(i) = sum over i -> j of ||V_i - V_j||^2`, where `i -> j` holds for the n - f - 2 vectors V_j, j != i, closest
    to V_i (Blanchard et al., 2017, section 4). O(n^2 d) with the distances.
    """
    n = squared_distances.shape[-1]
    return _sum_of_nearest(squared_distances, n - f - 2)


@selection_rule(guarantee=_KRUM, selects=lambda n, f: n - f)
def multi_krum(squared_distances: "Tensor", f: int, *, m: int | None = None) -> "Tensor":
    """Multi-Krum: the mean of the m vectors of least Krum score (Blanchard et al., 2017, section 7).

    m = 1 is Krum, m = n is averaging; the default is the paper's m = n - f. Ties go to the smallest index.
    """
    return krum(squared_distances, f)


@gram_rule(guarantee=_KRUM, name="1-p-krum")
def one_minus_p_krum(
    squared_distances: "Tensor", f: int, round: int, coin: "Tensor", *, horizon: int = 500, power: float = 1.0
) -> "Tensor":
    """1-p Krum: averaging with probability `p_t`, Krum otherwise (Blanchard et al., 2017, supplement).

    `p_t` must rise from 0 to 1; here `p_t = min(1, (t / horizon)^power)` in round t.
    """
    averaging = (squared_distances.new_zeros(()) + coin) < min(1.0, round / horizon) ** power
    chosen = _indicator(krum(squared_distances, f), 1, squared_distances)
    return chosen.where(~averaging[..., None], average(squared_distances))


@selection_rule()
def medoid(squared_distances: "Tensor") -> "Tensor":
    """The vector with the least sum of distances (not squared) to the others, the smallest index on a tie.

    A variant in the supplement of Blanchard et al. (2017).
    """
    return _without_infinite_vectors(squared_distances).sqrt().sum(-1)


@selection_rule()
def nearest_to_barycentre(squared_distances: "Tensor") -> "Tensor":
    """The vector with the least sum of squared distances to all others, the smallest index on a tie.

    It is the vector nearest the barycentre, since `sum_j ||V_i - V_j||^2 = n ||V_i - mean||^2 + constant`. Two
    colluding workers defeat it (Figure 2 of Blanchard et al., 2017).
    """
    return _without_infinite_vectors(squared_distances).sum(-1)


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


# ------------------------------------------------------------------------------------------- what came after Krum


@gram_rule(guarantee=_KRUM)
def nnm_krum(squared_distances: "Tensor", f: int) -> "Tensor":
    """Krum after nearest-neighbour mixing (Allouah et al., 2023, algorithm 2).

    Every vector gives way to the mean of the n - f vectors nearest to it, itself included, then Krum chooses one of
    these means. With mixing weights M (rows sum to 1) and `K = M D M^T`, their squared distances are
    `K_ij - (K_ii + K_jj) / 2`, those of vectors with the Gram matrix `-K / 2`.
    """
    from krum.rules import distances

    n = squared_distances.shape[-1]
    infinite = _infinite(squared_distances)
    nearest = squared_distances.clone()
    nearest.diagonal(dim1=-2, dim2=-1).fill_(-1.0)
    chosen = nearest.sort(dim=-1, stable=True).indices[..., : n - f]
    mixing = nearest.new_zeros(nearest.shape).scatter_(-1, chosen, 1 / (n - f))
    mixed = mixing @ squared_distances.masked_fill(~squared_distances.isfinite(), 0.0) @ mixing.mT
    # Vectors with the same neighbours have the same mean: the first of them stands for all, or rounding would tell
    # them apart and decide ties.
    chooses = mixing.sign()
    twin = (chooses @ chooses.mT == n - f).byte().argmax(-1)
    mixed = mixed.take_along_dim(twin[..., None], -2).take_along_dim(twin[..., None, :], -1)
    between = distances.from_gram(mixed.masked_fill(infinite[..., None], float("inf")) / -2)
    winner = _indicator(krum(between, f), 1, between)
    return (winner[..., None] * mixing).sum(-2)


@gram_rule(guarantee=_MAJORITY, previous=True)
def centred_clipping(squared_distances: "Tensor", *, radius: float = 1.0, iterations: int = 3) -> "Tensor":
    """Centred clipping, from the last round's aggregate v (Karimireddy et al., 2021, algorithm 2).

    `v <- v + 1/n sum_i (V_i - v) min(1, radius / ||V_i - v||)`, `iterations` times. A vector that is not finite moves
    nothing, nor does one more than 1e7 radii away: float64 no longer holds its direction. In the first round, v is 0.
    """
    n = squared_distances.shape[-1] - 1
    present = ~_infinite(squared_distances) & (squared_distances[..., -1, :] <= 1e14 * radius**2)
    both = present[..., :, None] & present[..., None, :]
    distances = squared_distances.where(both, 0.0)
    weights = squared_distances.new_zeros(present.shape)
    weights[..., -1] = 1
    for _ in range(iterations):
        to_vectors = (distances * weights[..., None, :]).sum(-1)
        squared = to_vectors - (weights * to_vectors).sum(-1, keepdim=True) / 2
        clipped = (radius * squared.clamp(min=1e-300).rsqrt()).clamp(max=1) * present
        clipped[..., -1] = 0
        weights = weights * (1 - clipped.sum(-1, keepdim=True) / n) + clipped / n
    return weights


# ----------------------------------------------------------------------- what libraries compute and call Krum
#
# Read in their sources, in the versions named; the formulas are transcribed in our notation.


@selection_rule(guarantee=_KRUM)
def krum_n_f_1(squared_distances: "Tensor", f: int) -> "Tensor":
    """One neighbour more than the paper: the n - f - 1 least squared distances (byzfl 0.0.11, byzpy 0.1.4)."""
    n = squared_distances.shape[-1]
    return _sum_of_nearest(squared_distances, n - f - 1)


@selection_rule(guarantee=_KRUM)
def krum_n_f_1_unsquared(squared_distances: "Tensor", f: int) -> "Tensor":
    """The n - f - 1 least distances, not squared (calicarpa's krum 0.1.0, ByzantineMomentum, Garfield)."""
    n = squared_distances.shape[-1]
    return _sum_of_nearest(squared_distances.sqrt(), n - f - 1)


@selection_rule(guarantee=_KRUM)
def krum_unsquared(squared_distances: "Tensor", f: int) -> "Tensor":
    """The n - f - 2 least distances, not squared (torchjd 0.18)."""
    n = squared_distances.shape[-1]
    return _sum_of_nearest(squared_distances.sqrt(), n - f - 2)


@selection_rule(guarantee=_KRUM)
def krum_fourth_power(squared_distances: "Tensor", f: int) -> "Tensor":
    """The n - f - 2 least squared distances, squared again (Blades 0.1, epfml's byzantine-robust-optimizer)."""
    n = squared_distances.shape[-1]
    return _sum_of_nearest(squared_distances.square(), n - f - 2)


# -------------------------------------------------------------------------------------------------- vector rules


@vector_rule(guarantee=_MAJORITY)
def median(vectors: "Tensor") -> "Tensor":
    """The coordinate-wise median, for even n the mean of the two middle values (Yin et al., 2018). NaN is +inf."""
    return _middle(_sorted(vectors))


@vector_rule(guarantee=_MAJORITY)
def trimmed_mean(vectors: "Tensor", f: int) -> "Tensor":
    """The coordinate-wise mean without the f least and the f greatest values (Yin et al., 2018). NaN is +inf."""
    return _sorted(vectors)[..., f : vectors.shape[-2] - f, :].mean(-2)


def bulyan_selection(squared_distances: "Tensor", f: int) -> "Tensor":
    """Bulyan's first step, [..., n]: n - 2f times, Krum takes one of the vectors that are left (1 where taken)."""
    n = squared_distances.shape[-1]
    infinite = _infinite(squared_distances)
    left, taken = squared_distances.clone(), squared_distances.new_zeros(infinite.shape)
    for count in range(n, 2 * f, -1):
        scores = _sum_of_nearest(left, max(1, count - f - 2)).masked_fill(infinite, float("inf"))
        scores = scores.masked_fill(taken > 0, float("nan"))  # sorts after infinity
        winner = scores.sort(dim=-1, stable=True).indices[..., :1]
        taken.scatter_(-1, winner, 1.0)
        gone = taken > 0
        left.masked_fill_(gone[..., :, None] | gone[..., None, :], float("inf"))
    return taken


@vector_rule(guarantee=_BULYAN, select=bulyan_selection)
def bulyan(vectors: "Tensor", f: int, chosen: "Tensor") -> "Tensor":
    """Bulyan of Krum (El Mhamdi et al., 2018): of n - 2f vectors, by coordinate, the mean of the n - 4f nearest to
    their median.

    Krum chooses the n - 2f vectors one after the other, each among those left (`bulyan_selection`). Of two values
    equally near the median, the smaller comes first.
    """
    n, d = vectors.shape[-2:]
    kept = _sorted(vectors.reshape(-1, d)[chosen.flatten() > 0].reshape(*chosen.shape[:-1], n - 2 * f, d))
    centre, count = _middle(kept), n - 4 * f
    # The nearest values stand side by side: they begin after every value that the one `count` places on is nearer than.
    after = (kept[..., count:, :] - centre[..., None, :]) < (centre[..., None, :] - kept[..., : 2 * f, :])
    first, total = after.sum(-2), centre
    for begin in range(2 * f + 1):
        total = kept[..., begin : begin + count, :].sum(-2).where(first == begin, total)
    return total / count


# ----------------------------------------------------------------------------------------------------- their parts


def _sorted(vectors: "Tensor") -> "Tensor":
    """Every coordinate's values in ascending order, NaN as +inf."""
    values = vectors.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=-float("inf"))
    if values.device.type != "cpu":
        return values.sort(-2).values
    import torch

    sorted_ = values.numpy()
    n, d = sorted_.shape[-2:]
    for problem in sorted_.reshape(-1, n, d):
        for begin in range(0, d, SORTED_AT_ONCE):
            _sort_rows(problem[:, begin : begin + SORTED_AT_ONCE])
    return torch.from_numpy(sorted_)


def _sort_rows(values: np.ndarray) -> None:
    """Sort `values [n, c]` along n, in place: twice as fast as numpy, whose columns are not side by side in memory."""
    rows, spare = list(values), np.empty_like(values[0])
    for low, high in _comparators(len(values)):
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    values[:] = np.stack(rows)


@cache
def _comparators(n: int) -> list[tuple[int, int]]:
    """A sorting network: pairs of places to put in order, one pair after the other (Batcher, 1968, merge exchange)."""
    pairs, largest = [], 1 << max(0, (n - 1).bit_length() - 1)
    step = largest
    while step > 0:
        reach, remainder, distance = largest, 0, step
        while True:
            pairs += [(i, i + distance) for i in range(n - distance) if i & step == remainder]
            if reach == step:
                break
            distance, reach, remainder = reach - step, reach // 2, step
        step //= 2
    return pairs


def _middle(ordered: "Tensor") -> "Tensor":
    """The median of ordered values, for even n the mean of the two middle ones."""
    n = ordered.shape[-2]
    return ordered[..., (n - 1) // 2, :] / 2 + ordered[..., n // 2, :] / 2


def _sum_of_nearest(measure: "Tensor", neighbours: int) -> "Tensor":
    """For each i the sum of its `neighbours` least values `measure[i, j]`, j != i, from the least one on."""
    if measure.device.type == "cpu" and neighbours <= FEW and measure.is_contiguous() and measure.itemsize == 8:
        from krum.rules import kernels

        return kernels.sums_of_nearest(measure, neighbours)
    to_others = measure.clone()
    to_others.diagonal(dim1=-2, dim2=-1).fill_(float("inf"))
    if to_others.device.type == "cpu":
        to_others.numpy().sort(-1)  # in place, and several times as fast as torch
    else:
        to_others = to_others.sort(-1).values
    return to_others[..., :neighbours].sum(-1)


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
