"""Measurements that are no training run: one decorated function each, from a seed to rows.

A probe is called once per seed and returns rows, dictionaries of plain numbers and texts, to which its name, its seed
and its options are added. It draws only from `numpy.random.default_rng([seed, ...])`, so that a seed always gives the
same rows. Keyword-only parameters are its options; an experiment's YAML may list several values of each, and lists
multiply. To add a probe, write one function here.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, get_type_hints

import numpy as np
import torch

import krum
from krum.distributed import processes
from krum.distributed.communication import measure as measure_exchange
from krum.distributed.split import cell as split_cell
from krum.distributed.split import train as train_split
from krum.errors import InputError
from krum.registry import check_options, kebab, lookup
from krum.rules import distances
from krum.rules.aggregators import AGGREGATORS
from krum.simulation import datasets
from krum.simulation.datasets import DATASETS
from krum.simulation.parameters import Measured, Options, checked, make_cell
from krum.simulation.round import descend, send, start, weigh
from krum.simulation.run import one_thread, simulate
from krum.suite.theory import eta

MOST_RANKS = 64
MOST_NUMBERS = 10**10  # of all vectors together
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Registered:
    """A registered probe."""

    name: str
    function: Callable[..., Rows]
    options: Mapping[str, Any]  # and their defaults
    columns: Mapping[str, type]  # of its rows, the options among them: float, int, bool or str
    check: Callable[..., None] | None  # refuses options beyond what `check` below refuses in every probe
    exclusive: bool  # it measures time: nothing else may run beside it

    @property
    def training(self) -> bool:
        """Whether it trains a model, on the data set that its option names."""
        return "dataset" in self.options


PROBES: dict[str, Registered] = {}


def probe(
    columns: Mapping[str, type], *, check: Callable[..., None] | None = None, exclusive: bool = False
) -> Callable[[Callable[..., Rows]], Callable[..., Rows]]:
    """Register a function `(seed, *, options) -> rows` with the columns of its rows beside the options.

    `check(**options)` raises InputError where the options do not fit each other. `exclusive` keeps every other job away
    while the probe runs.
    """

    def decorate(function: Callable[..., Rows]) -> Callable[..., Rows]:
        parameters = inspect.signature(function).parameters.values()
        options = {one.name: one.default for one in parameters if one.kind == one.KEYWORD_ONLY}
        types, name = get_type_hints(function), kebab(function)
        all_columns = {**{option: types[option] for option in options}, **columns}
        PROBES[name] = Registered(name, function, options, all_columns, check, exclusive)
        return function

    return decorate


def run_probe(name: str, seed: int, options: Mapping[str, Any]) -> Rows:
    """A probe's rows, with its options. Raises InputError where they are not of the columns that it declares."""
    columns = PROBES[name].columns
    chosen = {option: columns[option](value) for option, value in all_options(name, options).items()}
    rows = [{**chosen, **row} for row in PROBES[name].function(seed, **options)]
    for row in rows:
        types = {key: type(value) for key, value in row.items()}
        if types != columns:
            differing = sorted({key for key, _ in types.items() ^ columns.items()})
            raise InputError(f"probe {name}: a row and the declared columns differ in {', '.join(differing)}")
    return rows


def all_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A probe's options, with the values of those that are not given."""
    return {**PROBES[name].options, **options}


def check(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that fit each other badly, before anything runs: InputError.

    An option of a name is the same thing in every probe, and is checked for all of them.
    """
    chosen = all_options(name, options)
    if "ranks" in chosen and not 2 <= chosen["ranks"] <= MOST_RANKS:
        raise InputError(f"ranks: found {chosen['ranks']}; give 2 to {MOST_RANKS} processes")
    if "dataset" in chosen:
        samples = lookup(DATASETS, chosen["dataset"], "data set").samples
        if chosen.get("batch_size", 1) > samples:
            raise InputError(f"batch_size: found {chosen['batch_size']}; {chosen['dataset']} holds {samples} samples")
    numbers = chosen.get("dimension", 0) * max(chosen.get("workers", 0), chosen.get("ranks", 0))
    if numbers > MOST_NUMBERS:
        raise InputError(
            f"dimension: found {chosen['dimension']:,}; the vectors hold {numbers:,} numbers, at most {MOST_NUMBERS:,}"
        )
    if "workers" in chosen:
        workers, byzantine = chosen["workers"], chosen.get("byzantine", 1)
        if byzantine >= workers and "byzantine" in chosen:
            raise InputError(f"byzantine: found {byzantine} of {workers} workers; give fewer, so that one is honest")
        _check_rule(workers, chosen.get("declared_f", byzantine), chosen.get("aggregator", "krum"))
    if (further := PROBES[name].check) is not None:
        further(**chosen)


def _check_rule(workers: int, f: int, aggregator: str) -> None:
    """Refuse a rule that is not there, depends on chance, or is not made for so many workers and attackers."""
    rule = lookup(AGGREGATORS, aggregator, "aggregator")
    if set(rule.needs) - {"f"}:
        raise InputError(f"{rule.name} depends on chance; give an aggregator that does not")
    if workers < 3:
        raise InputError(f"workers: found {workers}; give at least 3")
    rule.check(workers, f, {})


@dataclass(frozen=True)
class Probe(Measured):
    """A measurement that is no training run, and everything that decides its rows."""

    name: str
    options: Options
    seeds: int

    def validated(self) -> Self:
        """Its options and seeds checked; `check` tells how the options fit each other. Raises InputError."""
        check_options(self.name, lookup(PROBES, self.name, "probe").function, dict(self.options))
        return replace(self, seeds=checked("seeds", self.seeds))

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    @property
    def dataset(self) -> str | None:
        """The data set that it trains on, if any."""
        if not PROBES[self.name].training:
            return None
        return all_options(self.name, dict(self.options))["dataset"]


def _check_plane(*, byzantine: int, **_: Any) -> None:
    if byzantine < 2:
        raise InputError(f"byzantine: found {byzantine}; give at least 2 colluders")


@probe(
    {
        **{"vector": int, "role": str, "x": float, "y": float},
        **{"chosen_by_nearest_to_barycentre": bool, "chosen_by_krum": bool},
    },
    check=_check_plane,
)
def plane(seed: int, *, workers: int = 20, byzantine: int = 2, distance: float = 6.0) -> Rows:
    """Figure 2: who is chosen among honest vectors `N((1, 0.5), 0.3^2 I)` in the plane and f colluders.

    All colluders but one send T, `distance` away from the honest mean; the last moves the barycentre of all there.
    One row per vector: x, y, role, and whether each rule chooses it; the true mean is (1, 0.5).
    """
    rng = np.random.default_rng([seed, 2])
    h = workers - byzantine
    honest = np.array([1.0, 0.5]) + 0.3 * rng.standard_normal((h, 2))
    target = honest.mean(0) + distance * np.array([-0.6, -0.8])
    far = (h + 1) * target - honest.sum(0)
    vectors = np.vstack([honest, np.tile(target, (byzantine - 1, 1)), far])
    roles = ["honest"] * h + ["at the barycentre"] * (byzantine - 1) + ["far"]
    centred = torch.from_numpy(vectors - honest.mean(0))
    barycentre, chosen = (
        krum.weights(centred @ centred.T, rule, f=byzantine) > 0 for rule in ("nearest-to-barycentre", "krum")
    )
    return [
        {
            "vector": number,
            "role": role,
            "x": float(vector[0]),
            "y": float(vector[1]),
            "chosen_by_nearest_to_barycentre": bool(barycentre[number]),
            "chosen_by_krum": bool(chosen[number]),
        }
        for number, (role, vector) in enumerate(zip(roles, vectors, strict=True))
    ]


RESILIENCE_TRIALS = 100  # per seed and noise
NOISES = (0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0)
KAPPAS = (0.1, 0.3, 1.0, 3.0, 10.0)


@probe(
    {
        **{"noise": float, "attack": str, "inner_product": float, "cosine": float, "attacker_chosen": float},
        **{"sin_alpha": float, "condition_holds": bool, "bound": float, "trials": int},
    }
)
def resilience(seed: int, *, workers: int = 20, byzantine: int = 0, dimension: int = 100) -> Rows:
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
                {
                    "noise": noise,
                    "attack": attack,
                    "inner_product": float(expectation[0]),
                    "cosine": float(expectation[0] / np.linalg.norm(expectation)),
                    "attacker_chosen": attacker_chosen,
                    "sin_alpha": sine,
                    "condition_holds": sine < 1,
                    "bound": 1 - sine if sine < 1 else math.nan,
                    "trials": RESILIENCE_TRIALS,
                }
            )
    return rows


def _expected_krum(honest: np.ndarray, sent: np.ndarray, f: int) -> tuple[np.ndarray, float]:
    """The mean of Krum's choices [d], and how often it is an attacker, over trials of [h, d] and [f or 1, d]."""
    trials, h, _ = honest.shape
    centre = honest.mean(1, keepdims=True)
    honest_part, sent_part = honest - centre, sent - centre
    gram = np.empty((trials, h + f, h + f))
    gram[:, :h, :h] = honest_part @ honest_part.swapaxes(1, 2)
    gram[:, :h, h:] = honest_part @ sent_part.swapaxes(1, 2)
    gram[:, h:, :h] = gram[:, :h, h:].swapaxes(1, 2)
    gram[:, h:, h:] = sent_part @ sent_part.swapaxes(1, 2)
    winners = krum.weights(torch.from_numpy(gram), "krum", f=f).argmax(-1).numpy()
    vectors = np.concatenate([honest, sent], 1)
    chosen = vectors[np.arange(trials), np.minimum(winners, vectors.shape[1] - 1)]  # all may send one vector
    return chosen.mean(0), float((winners >= h).mean())


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


@probe({"distance": float})
def steering(seed: int, *, workers: int = 20, dimension: int = 1000, aggregator: str = "average") -> Rows:
    """Lemma 1: one Byzantine worker sends `n U - sum_i G_i`; how far from U is the aggregate?

    Honest vectors are standard normal around a normal mean, U is normal with `||U||` about ten times theirs.
    `distance` is `||F - U|| / ||U||`, in float32.
    """
    rng = np.random.default_rng([seed, 1])
    honest = rng.standard_normal(dimension) + rng.standard_normal((workers - 1, dimension))
    target = 10 * rng.standard_normal(dimension)
    byzantine = workers * target - honest.sum(0)
    vectors = torch.from_numpy(np.vstack([honest, byzantine]).astype(np.float32))
    aggregate = krum.aggregate(vectors, aggregator, f=1).double().numpy()
    return [{"distance": float(np.linalg.norm(aggregate - target) / np.linalg.norm(target))}]


def _most_declared(workers: int) -> int:
    return (workers - 3) // 2


def _check_timing(*, workers: int, aggregator: str, **_: Any) -> None:
    _check_rule(workers, _most_declared(workers), aggregator)


@probe({"seconds": float}, check=_check_timing, exclusive=True)
def timing(seed: int, *, workers: int = 20, dimension: int = 100_000, aggregator: str = "krum") -> Rows:
    """Seconds that `krum.aggregate` takes on random float32 vectors [n, d], with f the most that 2f + 2 < n allows.

    The shortest of several calls within 0.1 s, one thread. Times are the one result that differs from run to run.
    """
    rng = np.random.default_rng([seed, 4])
    vectors = torch.from_numpy(rng.standard_normal((workers, dimension), dtype=np.float32))
    f = _most_declared(workers)
    seconds: list[float] = []
    with one_thread():
        krum.aggregate(vectors, aggregator, f=f)
        while sum(seconds) < 0.1:
            before = time.perf_counter()
            krum.aggregate(vectors, aggregator, f=f)
            seconds.append(time.perf_counter() - before)
    return [{"seconds": min(seconds)}]


def _check_choices(*, aggregator: str, **_: Any) -> None:
    if AGGREGATORS[aggregator].selects is None:
        raise InputError(f"{aggregator} does not choose vectors; give a rule that does, such as krum")


@probe({"order": str, "rank": int, "share": float, "norm_ratio": float, "attacker_chosen": float}, check=_check_choices)
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
) -> Rows:
    """Whom a selection rule chooses along a training run, with `byzantine` Gaussian attackers or none.

    In every round the honest vectors are put in order, once by length (`order` "length", the shortest first) and once
    by distance from their mean ("distance", the nearest first). One row per order and rank: the `share` of the rule's
    choices that have this rank, of those that are honest. In every row: `norm_ratio`, the mean length of the aggregate
    over that of the mean honest gradient, and `attacker_chosen`, the share of the choices that are Byzantine.
    """
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
    ratio, attackers = float(np.mean(lengths)), 1 - float(counted["length"].sum()) / rounds
    return [
        {"order": name, "rank": rank, "share": float(share), "norm_ratio": ratio, "attacker_chosen": attackers}
        for name, counts in counted.items()
        for rank, share in enumerate(counts / counts.sum(), 1)
    ]


@probe(
    {
        **{"method": str, "seconds": float, "fastest": float, "bytes": float, "formula": float},
        **{"bytes_over_formula": float, "over_averaging": float, "over_gathered": float},
    },
    exclusive=True,
)
def exchange(seed: int, *, ranks: int = 4, dimension: int = 1_000_000) -> Rows:
    """Objection 5: seconds and bytes of a round with real processes, see `krum.distributed.communication`.

    One row per method: `seconds`, the median of seven rounds; `bytes`, what all ranks sent, as the operating system
    counted, and `formula`; `bytes_over_formula`; and `over_averaging`, `over_gathered`, the seconds over those of the
    two others. Times differ from run to run.
    """
    rows = processes.together(measure_exchange, ranks, dimension)
    seconds = {row["method"]: row["seconds"] for row in rows}
    return [
        {
            **row,
            "bytes_over_formula": row["bytes"] / row["formula"],
            "over_averaging": row["seconds"] / seconds["averaging"],
            "over_gathered": row["seconds"] / seconds["gathered"],
        }
        for row in rows
    ]


def _check_split(*, slices: str, **_: Any) -> None:
    if slices not in ("together", "apart"):
        raise InputError(f"slices: found {slices!r}; give together or apart")


@probe(
    {"round": int, "test_error": float, "agreed": float, "whole_error": float, "difference": float}, check=_check_split
)
def split(
    seed: int,
    *,
    ranks: int = 2,
    dataset: str = "spambase",
    workers: int = 20,
    byzantine: int = 6,
    rounds: int = 500,
    slices: str = "together",
) -> Rows:
    """Objection 5: a model split by neurons over processes, trained with Krum under Gaussian attack.

    `slices` "together" is the sharded rule, "apart" runs Krum on each slice alone (`krum.distributed.split`). One row
    per recorded round: `test_error`; `agreed`, the share of rounds in which all ranks took the same worker; and
    `whole_error`, that of the same seed's model in one place, and `difference`, how far the two are apart.
    """
    rows = processes.together(train_split, ranks, seed, dataset, workers, byzantine, rounds, slices == "together")
    whole = simulate(split_cell(dataset, workers, byzantine, rounds), seeds=[seed], device="cpu")
    errors = dict(zip(whole["round"].tolist(), whole["test_error"].tolist(), strict=True))
    for row in rows:
        row["whole_error"] = errors[row["round"]]
        row["difference"] = abs(row["test_error"] - row["whole_error"])
    return rows
