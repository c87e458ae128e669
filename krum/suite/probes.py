"""Measurements that are no training run: one decorated function each, from a seed to rows.

A probe is called once per seed and returns rows, dictionaries of plain numbers and texts; seed and probe are added to
them. It draws only from `numpy.random.default_rng([seed, ...])`, so that a seed always gives the same rows.
Keyword-only parameters are its options, of one value each; an experiment's YAML may list several, and lists multiply.
To add a probe, write one function here and decorate it with the columns of its rows: claims about them are checked
before there is a row.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from krum.errors import InputError
from krum.registry import kebab, lookup
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.cell import make_cell
from krum.simulation.datasets import DATASETS
from krum.suite.theory import eta

MOST_RANKS = 64
MOST_NUMBERS = 10**10

Row = dict[str, Any]


@dataclass(frozen=True)
class Registered:
    """A registered probe."""

    name: str
    function: Callable[..., list[Row]]
    columns: Mapping[str, type]  # what its rows hold: float, int, bool or str
    alone: bool  # it measures time: nothing else may run beside it
    training: bool  # it trains a model on the data set that its option names
    uses: tuple[str, ...]  # what else of this package decides its rows, module by module


PROBES: dict[str, Registered] = {}


def probe(
    *, columns: Mapping[str, type], alone: bool = False, training: bool = False, uses: tuple[str, ...] = ()
) -> Callable:
    """Register a function `(seed, *, options) -> rows`.

    `columns` are what its rows hold, and of which type. `alone` keeps every other job away while it runs; a `training`
    probe needs the data set that its option names; `uses` are the modules, beside those of the rules and of the
    simulation, that it calls.
    """

    def decorate(function: Callable[..., list[Row]]) -> Callable[..., list[Row]]:
        name = kebab(function)
        PROBES[name] = Registered(name, function, dict(columns), alone, training, uses)
        return function

    return decorate


def taken(name: str, seed: int, options: Mapping[str, Any]) -> list[Row]:
    """A probe's rows. Raises InputError where they do not hold what its decorator says."""
    columns, rows = PROBES[name].columns, PROBES[name].function(seed, **options)
    for row in rows:
        found = {key: type(value) for key, value in row.items()}
        if found != columns:
            differing = sorted({key for key, _ in found.items() ^ columns.items()})
            raise InputError(f"probe {name}: a row and the decorator's columns differ in {', '.join(differing)}")
    return rows


def all_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A probe's options, with the values of those that are not given."""
    parameters = inspect.signature(PROBES[name].function).parameters.values()
    return {one.name: one.default for one in parameters if one.kind == one.KEYWORD_ONLY} | dict(options)


def check(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that fit each other badly, before anything runs: InputError."""
    chosen = all_options(name, options)
    if "ranks" in chosen and chosen["ranks"] < 2:
        raise InputError(f"ranks: found {chosen['ranks']}; give at least 2 processes")
    if chosen.get("slices", "together") not in ("together", "apart"):
        raise InputError(f"slices: found {chosen['slices']!r}; give together or apart")
    if chosen.get("ranks", 0) > MOST_RANKS:
        raise InputError(f"ranks: found {chosen['ranks']}; give at most {MOST_RANKS} processes")
    numbers = chosen.get("dimension", 0) * chosen.get("workers", chosen.get("ranks", 1))
    if numbers > MOST_NUMBERS:
        raise InputError(
            f"dimension: found {chosen['dimension']:,}; the vectors hold {numbers:,} numbers, at most {MOST_NUMBERS:,}"
        )
    if "workers" not in chosen:
        return
    workers, f = chosen["workers"], chosen.get("byzantine", 1 if name == "steering" else (chosen["workers"] - 3) // 2)
    f = chosen.get("declared_f", f)
    aggregator = lookup(AGGREGATORS, chosen.get("aggregator", "krum"), "aggregator")
    if set(aggregator.needs) - {"f"}:
        raise InputError(f"{aggregator.name} depends on chance; give an aggregator that does not")
    if chosen.get("byzantine", 0) >= workers:
        raise InputError(
            f"byzantine: found {chosen['byzantine']} of {workers} workers; give fewer, so that one is honest"
        )
    if workers < 3:
        raise InputError(f"workers: found {workers}; give at least 3")
    aggregator.check(workers, f, {})
    if name == "plane" and f < 2:
        raise InputError(f"byzantine: found {f}; give at least 2 colluders")
    if PROBES[name].training:
        samples = lookup(DATASETS, chosen["dataset"], "data set").samples
        if chosen.get("batch_size", 1) > samples:
            raise InputError(f"batch_size: found {chosen['batch_size']}; {chosen['dataset']} holds {samples} samples")
    if name == "choices":
        if aggregator.selects is None:
            raise InputError(f"{aggregator.name} does not choose vectors; give a rule that does, such as krum")


@probe(
    columns={
        "vector": int,
        "role": str,
        "x": float,
        "y": float,
        "chosen_by_nearest_to_barycentre": bool,
        "chosen_by_krum": bool,
    }
)
def plane(seed: int, *, workers: int = 20, byzantine: int = 2, distance: float = 6.0) -> list[Row]:
    """Figure 2: who is chosen among honest vectors `N((1, 0.5), 0.3^2 I)` in the plane and f colluders.

    All colluders but one send T, `distance` away from the honest mean; the last moves the barycentre of all there.
    One row per vector: x, y, role, and whether each rule chooses it; the true mean is (1, 0.5).
    """
    import torch

    rng = np.random.default_rng([seed, 2])
    h = workers - byzantine
    honest = np.array([1.0, 0.5]) + 0.3 * rng.standard_normal((h, 2))
    target = honest.mean(0) + distance * np.array([-0.6, -0.8])
    far = (h + 1) * target - honest.sum(0)
    vectors = np.vstack([honest, np.tile(target, (byzantine - 1, 1)), far])
    roles = ["honest"] * h + ["at the barycentre"] * (byzantine - 1) + ["far"]
    import krum

    gram = torch.from_numpy((vectors - honest.mean(0)) @ (vectors - honest.mean(0)).T)
    chosen = {name: krum.weights(gram, name, f=byzantine) for name in ("nearest-to-barycentre", "krum")}
    return [
        {
            "vector": number,
            "role": role,
            "x": float(vector[0]),
            "y": float(vector[1]),
            **{f"chosen_by_{name.replace('-', '_')}": bool(w[number] > 0) for name, w in chosen.items()},
        }
        for number, (role, vector) in enumerate(zip(roles, vectors, strict=True))
    ]


RESILIENCE_TRIALS = 100  # per seed and noise
NOISES = (0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0)
KAPPAS = (0.1, 0.3, 1.0, 3.0, 10.0)


@probe(
    columns={
        "workers": int,
        "byzantine": int,
        "dimension": int,
        "noise": float,
        "attack": str,
        "inner_product": float,
        "cosine": float,
        "attacker_chosen": float,
        "sin_alpha": float,
        "condition_holds": bool,
        "bound": float,
        "trials": int,
    }
)
def resilience(seed: int, *, workers: int = 20, byzantine: int = 0, dimension: int = 100) -> list[Row]:
    """Figure 3: the inner product of Krum's expectation with the true gradient g, under several attacks.

    Honest estimates are `g + N(0, sigma^2 I)` with `||g|| = 1` and `sqrt(d) sigma = noise`, for each of NOISES. One row
    per noise and attack, with means over 100 trials: `inner_product` `<E Krum, g> / ||g||^2`, `cosine` of the angle
    between E Krum and g, and `attacker_chosen`. `bound` is Proposition 1's 1 - sin alpha, where its condition
    `eta noise < 1` holds.
    """
    rng = np.random.default_rng([seed, 3])
    return [row for noise in NOISES for row in _resilience(rng, workers, byzantine, dimension, noise)]


def _resilience(rng: np.random.Generator, workers: int, f: int, dimension: int, noise: float) -> list[Row]:
    import torch

    from krum.rules import distances

    h, sigma, trials = workers - f, noise / math.sqrt(dimension), RESILIENCE_TRIALS
    honest = sigma * rng.standard_normal((trials, h, dimension))
    honest[..., 0] += 1  # g is the first unit vector
    sine = eta(workers, f) * noise
    centre = honest.mean(1, keepdims=True)
    centred = honest - centre
    gram = np.zeros((trials, workers, workers))
    gram[:, :h, :h] = centred @ centred.swapaxes(1, 2)
    rows = []
    for attack, sent in _attackers(honest, f, sigma, rng).items():
        off_centre = sent - centre
        gram[:, :h, h:] = centred @ off_centre.swapaxes(1, 2)
        gram[:, h:, h:] = off_centre @ off_centre.swapaxes(1, 2)
        winners = AGGREGATORS["krum"](distances.from_gram(torch.from_numpy(gram)), f).argmax(-1).numpy()
        byzantine = np.minimum(winners - h, sent.shape[1] - 1)  # where all send one vector, it stands once
        chosen = [
            honest[t, w] if w < h else sent[t, k] for t, (w, k) in enumerate(zip(winners, byzantine, strict=True))
        ]
        expectation = np.mean(chosen, 0)
        rows.append(
            {
                "workers": workers,
                "byzantine": f,
                "dimension": dimension,
                "noise": noise,
                "attack": attack,
                "inner_product": float(expectation[0]),
                "cosine": float(expectation[0] / np.linalg.norm(expectation)),
                "attacker_chosen": float((winners >= h).mean()),
                "sin_alpha": sine,
                "condition_holds": sine < 1,
                "bound": 1 - sine if sine < 1 else math.nan,
                "trials": trials,
            }
        )
    return rows


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


@probe(columns={"workers": int, "dimension": int, "aggregator": str, "distance": float})
def steering(seed: int, *, workers: int = 20, dimension: int = 1000, aggregator: str = "average") -> list[Row]:
    """Lemma 1: one Byzantine worker sends `n U - sum_i G_i`; how far from U is the aggregate?

    Honest vectors are standard normal around a normal mean, U is normal with `||U||` about ten times theirs.
    `distance` is `||F - U|| / ||U||`, in float32.
    """
    import torch

    import krum

    rng = np.random.default_rng([seed, 1])
    honest = rng.standard_normal(dimension) + rng.standard_normal((workers - 1, dimension))
    target = 10 * rng.standard_normal(dimension)
    byzantine = workers * target - honest.sum(0)
    vectors = torch.from_numpy(np.vstack([honest, byzantine]).astype(np.float32))
    aggregate = krum.aggregate(vectors, aggregator, f=1).double().numpy()
    return [
        {
            "workers": workers,
            "dimension": dimension,
            "aggregator": aggregator,
            "distance": float(np.linalg.norm(aggregate - target) / np.linalg.norm(target)),
        }
    ]


@probe(columns={"workers": int, "dimension": int, "aggregator": str, "seconds": float}, alone=True)
def timing(seed: int, *, workers: int = 20, dimension: int = 100_000, aggregator: str = "krum") -> list[Row]:
    """Seconds that `krum.aggregate` takes on random float32 vectors [n, d], with f the most that 2f + 2 < n allows.

    The shortest of several calls within 0.1 s, one thread. Times are the one result that differs from run to run.
    """
    import torch

    import krum

    rng = np.random.default_rng([seed, 4])
    vectors = torch.from_numpy(rng.standard_normal((workers, dimension), dtype=np.float32))
    f = (workers - 3) // 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        krum.aggregate(vectors, aggregator, f=f)
        seconds: list[float] = []
        while sum(seconds) < 0.1:
            start = time.perf_counter()
            krum.aggregate(vectors, aggregator, f=f)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return [{"workers": workers, "dimension": dimension, "aggregator": aggregator, "seconds": min(seconds)}]


@probe(
    columns={
        "dataset": str,
        "batch_size": int,
        "workers": int,
        "declared_f": int,
        "aggregator": str,
        "byzantine": int,
        "order": str,
        "rank": int,
        "share": float,
        "norm_ratio": float,
        "attacker_chosen": float,
    },
    training=True,
)
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
) -> list[Row]:
    """Whom a selection rule chooses along a training run, with `byzantine` Gaussian attackers or none.

    In every round the honest vectors are put in order, once by length (`order` "length", the shortest first) and once
    by distance from their mean ("distance", the nearest first). One row per order and rank: the `share` of the rule's
    choices that have this rank, of those that are honest. In every row: `norm_ratio`, the mean length of the aggregate
    over that of the mean honest gradient, and `attacker_chosen`, the share of the choices that are Byzantine.
    """
    from krum.rules import distances
    from krum.simulation import datasets
    from krum.simulation.round import descend, send, start, weigh
    from krum.simulation.run import one_thread

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
        {
            **options,
            "declared_f": declared_f,
            "aggregator": aggregator,
            "byzantine": byzantine,
            "order": name,
            "rank": rank + 1,
            "share": float(share),
            "norm_ratio": ratio,
            "attacker_chosen": attackers,
        }
        for name, counts in counted.items()
        for rank, share in enumerate(counts / counts.sum())
    ]


@probe(
    columns={
        "method": str,
        "ranks": int,
        "dimension": int,
        "seconds": float,
        "fastest": float,
        "bytes": float,
        "formula": float,
        "bytes_over_formula": float,
        "over_averaging": float,
        "over_gathered": float,
    },
    alone=True,
    uses=("communication", "ddp", "processes", "sharded"),
)
def exchange(seed: int, *, ranks: int = 4, dimension: int = 1_000_000) -> list[Row]:
    """Objection 5: seconds and bytes of a round with real processes, see `krum.distributed.communication`.

    One row per method: `seconds`, the median of seven rounds; `bytes`, what all ranks sent, as the operating system
    counted, and `formula`; `bytes_over_formula`; and `over_averaging`, `over_gathered`, the seconds over those of the
    two others. Times differ from run to run.
    """
    from krum.distributed import communication, processes

    rows = processes.together(communication.measure, ranks, dimension)
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


@probe(
    columns={
        "ranks": int,
        "dataset": str,
        "workers": int,
        "byzantine": int,
        "slices": str,
        "round": int,
        "test_error": float,
        "agreed": float,
        "whole_error": float,
        "difference": float,
    },
    training=True,
    uses=("processes", "sharded", "split"),
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
) -> list[Row]:
    """Objection 5: a model split by neurons over processes, trained with Krum under Gaussian attack, see `krum.split`.

    `slices` "together" is the sharded rule, "apart" runs Krum on each slice alone. One row per recorded round:
    `test_error`; `agreed`, the share of rounds in which all ranks took the same worker; and
    `whole_error`, that of the same seed's model in one place, and `difference`, how far the two are apart.
    """
    from krum.distributed import processes, split
    from krum.simulation.run import simulate

    trained = (seed, dataset, workers, byzantine, rounds, slices == "together")
    rows = processes.together(split.train, ranks, *trained)
    whole = simulate(split.cell(dataset, workers, byzantine, rounds), seeds=[seed], device="cpu")
    errors = dict(zip(whole["round"].tolist(), whole["test_error"].tolist(), strict=True))
    constant = {"ranks": ranks, "dataset": dataset, "workers": workers, "byzantine": byzantine, "slices": slices}
    return [
        {
            **constant,
            **row,
            "whole_error": errors[row["round"]],
            "difference": abs(row["test_error"] - errors[row["round"]]),
        }
        for row in rows
    ]
