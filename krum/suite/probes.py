"""Measurements that are no training run: one decorated function each, from a seed to rows.

A probe is called once per seed and returns rows, named tuples whose fields become columns of its results, to which its
name, its seed and its options are added. It draws only from `numpy.random.default_rng([seed, ...])`, so that a seed
always gives the same rows. Keyword-only parameters are its options; an experiment's YAML may list several values of
each, and lists multiply. To add a probe, write its row and one function here.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, get_args, get_type_hints

import numpy as np
import torch

import krum
from krum.distributed import processes
from krum.distributed.communication import measure as measure_exchange
from krum.distributed.split import cell as split_cell
from krum.distributed.split import train as train_split
from krum.errors import InputError
from krum.registry import canonical, check_options, kebab, lookup
from krum.rules import distances
from krum.rules.aggregators import AGGREGATORS
from krum.simulation import datasets
from krum.simulation.datasets import DATASETS
from krum.simulation.parameters import Measured, Options, checked, frozen, make_cell, public_name
from krum.simulation.round import descend, send, start, weigh
from krum.simulation.run import one_thread, simulate
from krum.suite.theory import eta

MOST_RANKS = 64
MOST_NUMBERS = 10**10  # of all vectors together


@dataclass(frozen=True)
class Registered:
    """A registered probe."""

    function: Callable[..., list]
    options: Mapping[str, Any]  # and their defaults
    columns: Mapping[str, type]  # of its results: the options, then the fields of its rows; float, int, bool or str
    exclusive: bool  # it measures time: nothing else may run beside it


PROBES: dict[str, Registered] = {}


def probe(*, exclusive: bool = False) -> Callable[[Callable[..., list]], Callable[..., list]]:
    """Register a function `(seed, *, options) -> list[row]`. `exclusive` keeps every other job away while it runs."""

    def decorate(function: Callable[..., list]) -> Callable[..., list]:
        types = get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
        options = {one.name: one.default for one in parameters if one.kind == one.KEYWORD_ONLY}
        (row,) = get_args(types["return"])
        columns = {**{option: types[option] for option in options}, **get_type_hints(row)}
        PROBES[kebab(function)] = Registered(function, options, columns, exclusive)
        return function

    return decorate


def run_probe(name: str, seed: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A probe's rows, with its options, each value in its column's type."""
    columns, chosen = PROBES[name].columns, all_options(name, options)
    rows = [{**chosen, **row._asdict()} for row in PROBES[name].function(seed, **options)]
    return [{column: kind(row[column]) for column, kind in columns.items()} for row in rows]


def all_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A probe's options, with the values of those that are not given."""
    return {**PROBES[name].options, **options}


def check(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that fit each other badly: InputError. An option of a name is the same thing in every probe."""
    chosen = all_options(name, options)
    if "ranks" in chosen and not 2 <= chosen["ranks"] <= MOST_RANKS:
        raise InputError(f"ranks: found {chosen['ranks']}; give 2 to {MOST_RANKS} processes")
    if "slices" in chosen and chosen["slices"] not in ("together", "apart"):
        raise InputError(f"slices: found {chosen['slices']!r}; give together or apart")
    if "dataset" in chosen:
        samples = lookup(DATASETS, chosen["dataset"], "data set").samples
        if chosen.get("batch_size", 1) > samples:
            raise InputError(f"batch_size: found {chosen['batch_size']}; {chosen['dataset']} holds {samples} samples")
    dimension, workers = chosen.get("dimension", 0), chosen.get("workers", 0)
    numbers = dimension * max(workers, chosen.get("ranks", 0))
    if numbers > MOST_NUMBERS:
        raise InputError(
            f"dimension: found {dimension:,}; the vectors hold {numbers:,} numbers, at most {MOST_NUMBERS:,}"
        )
    if not workers:
        return
    byzantine = chosen.get("byzantine", 1)
    if byzantine >= workers:
        raise InputError(f"byzantine: found {byzantine} of {workers} workers; give fewer, so that one is honest")
    if name == "plane" and byzantine < 2:
        raise InputError(f"byzantine: found {byzantine}; give at least 2 colluders")
    rule = lookup(AGGREGATORS, chosen.get("aggregator", "krum"), "aggregator")
    if set(rule.needs) - {"f"}:
        raise InputError(f"{rule.name} depends on chance; give an aggregator that does not")
    if name == "choices" and rule.selects is None:
        raise InputError(f"{rule.name} does not choose vectors; give a rule that does, such as krum")
    rule.check(workers, most_declared(workers) if name == "timing" else chosen.get("declared_f", byzantine), {})


@dataclass(frozen=True)
class Probe(Measured):
    """A measurement that is no training run, and everything that decides its rows."""

    name: str
    options: Options
    seeds: int

    def validated(self) -> Self:
        """Each option and the seeds checked, and how the options fit each other. Raises InputError."""
        name = canonical(self.name, PROBES, "probe")
        check_options(f"probe {name}", PROBES[name].function, dict(self.options))
        options = {key: public_name(key, value) for key, value in self.options}
        check(name, options)
        return replace(self, name=name, options=frozen(options), seeds=checked("seeds", self.seeds))

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    @property
    def dataset(self) -> str | None:
        """The data set that it trains on, if any."""
        return all_options(self.name, dict(self.options)).get("dataset")

    @property
    def exclusive(self) -> bool:
        """It measures time: nothing else may run beside it."""
        return PROBES[self.name].exclusive


class PlaneRow(NamedTuple):
    """A vector of the plane, and which rules choose it."""

    vector: int
    role: str
    x: float
    y: float
    chosen_by_nearest_to_barycentre: bool
    chosen_by_krum: bool


@probe()
def plane(seed: int, *, workers: int = 20, byzantine: int = 2, distance: float = 6.0) -> list[PlaneRow]:
    """Figure 2: who is chosen among honest vectors `N((1, 0.5), 0.3^2 I)` in the plane and f colluders.

    All colluders but one send T, `distance` away from the honest mean; the last moves the barycentre of all there.
    The true mean is (1, 0.5).
    """
    rng = np.random.default_rng([seed, 2])
    h = workers - byzantine
    honest = np.array([1.0, 0.5]) + 0.3 * rng.standard_normal((h, 2))
    target = honest.mean(0) + distance * np.array([-0.6, -0.8])
    far = (h + 1) * target - honest.sum(0)
    vectors = np.vstack([honest, np.tile(target, (byzantine - 1, 1)), far])
    roles = ["honest"] * h + ["at the barycentre"] * (byzantine - 1) + ["far"]
    centred = torch.from_numpy(vectors - honest.mean(0))
    chosen = [krum.weights(centred @ centred.T, rule, f=byzantine) > 0 for rule in ("nearest-to-barycentre", "krum")]
    return [PlaneRow(*row) for row in zip(range(workers), roles, *vectors.T, *chosen, strict=True)]


RESILIENCE_TRIALS = 100  # per seed and noise
NOISES = (0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0)
KAPPAS = (0.1, 0.3, 1.0, 3.0, 10.0)


class ResilienceRow(NamedTuple):
    """Means over the trials of one noise and attack, and Proposition 1's condition and bound."""

    noise: float
    attack: str
    inner_product: float
    cosine: float
    attacker_chosen: float
    sin_alpha: float
    condition_holds: bool
    bound: float
    trials: int


@probe()
def resilience(seed: int, *, workers: int = 20, byzantine: int = 0, dimension: int = 100) -> list[ResilienceRow]:
    """Figure 3: the inner product of Krum's expectation with the true gradient g, under several attacks.

    Honest estimates are `g + N(0, sigma^2 I)` with `||g|| = 1` and `sqrt(d) sigma = noise`, for each of NOISES. One row
    per noise and attack, with means over 100 trials: `inner_product` `<E Krum, g> / ||g||^2`, `cosine` of the angle
    between E Krum and g, and `attacker_chosen`. `bound` is Proposition 1's 1 - sin alpha, where its condition
    `eta noise < 1` holds.
    """
    rng = np.random.default_rng([seed, 3])
    rows = []
    for noise in NOISES:
        sigma = noise / math.sqrt(dimension)
        honest = sigma * rng.standard_normal((RESILIENCE_TRIALS, workers - byzantine, dimension))
        honest[..., 0] += 1  # g is the first unit vector
        sine = eta(workers, byzantine) * noise
        for attack, sent in _attackers(honest, byzantine, sigma, rng).items():
            expectation, attacker_chosen = _expected_krum(honest, sent, byzantine)
            rows.append(
                ResilienceRow(
                    noise=noise,
                    attack=attack,
                    inner_product=expectation[0],
                    cosine=expectation[0] / np.linalg.norm(expectation),
                    attacker_chosen=attacker_chosen,
                    sin_alpha=sine,
                    condition_holds=sine < 1,
                    bound=1 - sine if sine < 1 else math.nan,
                    trials=RESILIENCE_TRIALS,
                )
            )
    return rows


def _expected_krum(honest: np.ndarray, sent: np.ndarray, f: int) -> tuple[np.ndarray, float]:
    """The mean of Krum's choices [d], and how often it is an attacker, over trials of [h, d] and [f or 1, d]."""
    trials, h, d = honest.shape
    vectors = np.concatenate([honest, np.broadcast_to(sent, (trials, f, d))], 1)
    centred = torch.from_numpy(vectors - honest.mean(1, keepdims=True))
    winners = krum.weights(centred @ centred.mT, "krum", f=f).argmax(-1).numpy()
    return vectors[np.arange(trials), winners].mean(0), float((winners >= h).mean())


def _attackers(honest: np.ndarray, f: int, sigma: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What f omniscient workers might send, by name: [trials, f or 1, d]; g is the first unit vector."""
    trials, _, d = honest.shape
    if f == 0:
        return {"none": honest[:, :0]}
    mean, deviation = honest.mean(1, keepdims=True), honest.std(1, keepdims=True)
    backwards = np.zeros(d)
    backwards[0] = -math.sqrt(d) * sigma
    return {
        "gaussian": 200 * rng.standard_normal((trials, f, d)),
        "within-the-cloud": mean + backwards,
        "one-deviation-off": mean - deviation,
        "worst-honest": honest[np.arange(trials), honest[..., 0].argmin(1)][:, None],
        **{f"minus-{kappa:g}-mean": -kappa * mean for kappa in KAPPAS},
    }


class SteeringRow(NamedTuple):
    """`||F - U|| / ||U||` of the aggregate F, in float32."""

    distance: float


@probe()
def steering(seed: int, *, workers: int = 20, dimension: int = 1000, aggregator: str = "average") -> list[SteeringRow]:
    """Lemma 1: one Byzantine worker sends `n U - sum_i G_i`; how far from U is the aggregate?

    Honest vectors are standard normal around a normal mean, U is normal with `||U||` about ten times theirs.
    """
    rng = np.random.default_rng([seed, 1])
    honest = rng.standard_normal(dimension) + rng.standard_normal((workers - 1, dimension))
    target = 10 * rng.standard_normal(dimension)
    byzantine = workers * target - honest.sum(0)
    vectors = torch.from_numpy(np.vstack([honest, byzantine]).astype(np.float32))
    aggregate = krum.aggregate(vectors, aggregator, f=1).double().numpy()
    return [SteeringRow(float(np.linalg.norm(aggregate - target) / np.linalg.norm(target)))]


def most_declared(workers: int) -> int:
    """The greatest f of 2f + 2 < n."""
    return max(0, (workers - 3) // 2)


class TimingRow(NamedTuple):
    """The shortest of several calls."""

    seconds: float


@probe(exclusive=True)
def timing(seed: int, *, workers: int = 20, dimension: int = 100_000, aggregator: str = "krum") -> list[TimingRow]:
    """Seconds that `krum.aggregate` takes on random float32 vectors [n, d], with f the most that 2f + 2 < n allows.

    The shortest of several calls within 0.1 s, one thread. Times are the one result that differs from run to run.
    """
    rng = np.random.default_rng([seed, 4])
    vectors = torch.from_numpy(rng.standard_normal((workers, dimension), dtype=np.float32))
    f = most_declared(workers)
    seconds: list[float] = []
    with one_thread():
        krum.aggregate(vectors, aggregator, f=f)
        while sum(seconds) < 0.1:
            before = time.perf_counter()
            krum.aggregate(vectors, aggregator, f=f)
            seconds.append(time.perf_counter() - before)
    return [TimingRow(min(seconds))]


class ChoicesRow(NamedTuple):
    """The share of the rule's choices that have a rank in an order of the honest vectors, of those that are honest.

    In every row: the mean length of the aggregate over that of the mean honest gradient, and the share of the choices
    that are Byzantine.
    """

    order: str  # "length", the shortest first, or "distance" from the mean, the nearest first
    rank: int
    share: float
    norm_ratio: float
    attacker_chosen: float


@probe()
def choices(
    seed: int,
    *,
    dataset: str = "spambase",
    batch_size: int = 3,
    workers: int = 20,
    byzantine: int = 0,
    declared_f: int = 6,
    aggregator: str = "krum",
    rounds: int = 500,
) -> list[ChoicesRow]:
    """Whom a selection rule chooses along a training run, with `byzantine` Gaussian attackers or none."""
    options = {"dataset": dataset, "batch_size": batch_size, "workers": workers}
    cell = make_cell({**options, "declared_f": declared_f, "aggregator": aggregator, "rounds": rounds})
    if byzantine:
        cell = replace(cell, attack="gaussian", byzantine=byzantine, byzantine_fraction=byzantine / workers)
    honest = workers - byzantine
    counted = {"length": np.zeros(honest), "distance": np.zeros(honest)}
    lengths = []

    state = start(cell, datasets.load(dataset), seeds=[seed])
    with one_thread():
        for _ in range(rounds):
            sent = send(state)
            weights = weigh(state, sent)
            gram, chosen = sent.gradients.gram[0], weights[0, :honest].double()
            share = chosen / weights[0].sum()
            mean = gram.mean()
            from_mean = distances.from_gram(gram[None])[0].mean(-1)  # plus a constant, the same for all
            for name, measure in (("length", gram.diagonal()), ("distance", from_mean)):
                counted[name][:] += share[measure.sort(stable=True).indices].numpy()
            lengths.append(float((chosen @ gram @ chosen / mean).clamp(min=0).sqrt()))
            descend(state, sent, weights)
    ratio, attackers = float(np.mean(lengths)), 1 - counted["length"].sum() / rounds
    return [
        ChoicesRow(name, rank, share, ratio, attackers)
        for name, counts in counted.items()
        for rank, share in enumerate(counts / counts.sum(), 1)
    ]


class ExchangeRow(NamedTuple):
    """One method: seconds and bytes of a round."""

    method: str
    seconds: float  # the median of seven rounds
    fastest: float
    bytes: float  # what all ranks sent, as the operating system counted
    formula: float  # bytes, too
    bytes_over_formula: float
    over_averaging: float  # the seconds over those of another method
    over_gathered: float


@probe(exclusive=True)
def exchange(seed: int, *, ranks: int = 4, dimension: int = 1_000_000) -> list[ExchangeRow]:
    """Objection 5: seconds and bytes of a round with real processes, see `krum.distributed.communication`."""
    rows = processes.together(measure_exchange, ranks, dimension)
    seconds = {row["method"]: row["seconds"] for row in rows}
    return [
        ExchangeRow(
            **row,
            bytes_over_formula=row["bytes"] / row["formula"],
            over_averaging=row["seconds"] / seconds["averaging"],
            over_gathered=row["seconds"] / seconds["gathered"],
        )
        for row in rows
    ]


class SplitRow(NamedTuple):
    """One recorded round."""

    round: int
    test_error: float
    agreed: float  # the share of rounds in which all ranks took the same worker
    whole_error: float  # of the same seed's model in one place
    difference: float  # of the two errors


@probe()
def split(
    seed: int,
    *,
    ranks: int = 2,
    dataset: str = "spambase",
    workers: int = 20,
    byzantine: int = 6,
    rounds: int = 500,
    slices: str = "together",
) -> list[SplitRow]:
    """Objection 5: a model split by neurons over processes, trained with Krum under Gaussian attack.

    `slices` "together" is the sharded rule, "apart" runs Krum on each slice alone (`krum.distributed.split`).
    """
    rows = processes.together(train_split, ranks, seed, dataset, workers, byzantine, rounds, slices == "together")
    whole = simulate(split_cell(dataset, workers, byzantine, rounds), seeds=[seed], device="cpu")
    return [
        SplitRow(**row, whole_error=error, difference=abs(row["test_error"] - error))
        for row, error in zip(rows, whole["test_error"], strict=True)
    ]
