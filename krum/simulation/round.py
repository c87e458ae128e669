"""One synchronous round of the parameter server, many replicas (seeds) at once, in Gram space.

The workers send (`send`), the rule weighs what they sent (`weigh`), the server descends (`descend`); `step` is all
three. Each replica draws from its own generators. Honest workers come first in the order of workers, Byzantine ones
last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krum.rules import distances
from krum.rules.aggregators import AGGREGATORS, Aggregator
from krum.simulation import draws, models
from krum.simulation.adversary import Adversary, ByzantineVectors, Directed
from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import DATASETS, Samples
from krum.simulation.draws import Folds, MiniBatches
from krum.simulation.full_gradient import mean_gradient, wrong_model
from krum.simulation.gradients import (
    ExplicitGradients,
    Gradients,
    PartlyExplicit,
    flatten,
    subtract,
    weighted_sum,
    worker_gradients,
)
from krum.simulation.models import Model, Parameters
from krum.simulation.parameters import Cell

ROUNDING = 1e-4  # relative distance between scores that no rounding bridges
FARTHEST = 1e12  # beyond it, squares in float32 come near their end


@dataclass
class State:
    """One cell's replicas between rounds."""

    cell: Cell
    seeds: list[int]
    rule: Aggregator
    other_rule: Aggregator | None  # that of `compare_with`
    model: Model
    folds: Folds
    batches: MiniBatches
    parameters: Parameters
    previous: Tensor  # the last aggregate, flat [R, d], for rules that begin there
    coins: list[np.random.Generator]  # this and what follows: one generator per replica
    faults: list[np.random.Generator]
    attacks: list[np.random.Generator]
    noise: list[torch.Generator]
    coin: Tensor  # this round's, [R] float64
    round: int = 0  # how many are done
    momentum: Tensor | None = None  # the honest workers', flat [R, h, d]
    memory: dict[str, Any] = field(default_factory=dict)  # the attack's
    target: Tensor | None = None  # the model that an attack steers to, flat [R, d]

    @property
    def honest(self) -> int:
        """h, the workers that are not Byzantine."""
        return self.cell.workers - self.cell.byzantine

    @property
    def context(self) -> dict[str, Any]:
        """What rules may ask for in this round, beside the geometry."""
        return {"f": self.cell.declared_f, "round": self.round + 1, "coin": self.coin}


@dataclass
class Sent:
    """What the workers sent in a round: the honest gradients, and what the Byzantine workers made of them.

    With the cell's `fault_rate` there are no Byzantine workers; what the faulty ones sent is among the gradients.
    """

    gradients: Gradients | PartlyExplicit
    byzantine: ByzantineVectors | None
    misbehaved: Tensor  # who sent something else than its gradient, [R, n] bool

    @cached_property
    def squared_distances(self) -> Tensor:
        """Between all vectors, [R, n, n]."""
        gram = self.gradients.gram
        if self.byzantine is not None:
            with_honest, among = self.byzantine.inner_products()
            gram = torch.cat([torch.cat([gram, with_honest], 2), torch.cat([with_honest.mT, among], 2)], 1)
        return distances.from_gram(gram)

    def vectors(self) -> Tensor:
        """All of them, flat [R, n, d]."""
        vectors = self.gradients.vectors()
        return vectors if self.byzantine is None else torch.cat([vectors, self.byzantine.vectors()], 1)


@dataclass(frozen=True)
class Observed:
    """What is recorded of a round, [R] float64 each; None where it means nothing."""

    byzantine_weight: Tensor | None
    norm_ratio: Tensor | None = None
    differs: Tensor | None = None


def start(
    cell: Cell,
    samples: Samples,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> State:
    """The state before the first round."""
    device, seeds = torch.device(device), list(seeds)
    dataset = DATASETS[cell.dataset]
    model = models.build(cell.model, dict(cell.model_options), dataset.features, dataset.classes)
    folds = draws.split(cell, dataset, samples, seeds, device, dtype)
    noise = [int(draws.stream(seed, "attack noise").generate_state(1, np.uint64)[0]) for seed in seeds]
    return State(
        cell=cell,
        seeds=seeds,
        rule=AGGREGATORS[cell.aggregator],
        other_rule=None if cell.compare_with is None else AGGREGATORS[cell.compare_with],
        model=model,
        folds=folds,
        batches=MiniBatches(cell, folds, seeds),
        parameters=draws.initial_parameters(model, seeds, device, dtype),
        previous=torch.zeros(len(seeds), models.dimension(model), dtype=dtype, device=device),
        coins=draws.generators(seeds, "rule"),
        faults=draws.generators(seeds, "faults"),
        attacks=draws.generators(seeds, "attack"),
        noise=[torch.Generator(device).manual_seed(number) for number in noise],
        coin=torch.zeros(len(seeds), dtype=torch.float64, device=device),
    )


@torch.inference_mode()
def step(state: State) -> Observed:
    """One round of every replica: `x <- x - learning_rate * F(V_1, ..., V_n)`."""
    sent = send(state)
    if state.rule.sees == "vectors" or state.rule.previous:
        return _step_by_vectors(state, sent)
    weights = weigh(state, sent)
    observed = _observe(state, sent, weights)
    descend(state, sent, weights)
    return observed


@torch.inference_mode()
def send(state: State) -> Sent:
    """What the workers send."""
    cell = state.cell
    samples, labels = state.batches.of(state.round, slice(state.honest))
    if "coin" in state.rule.needs:
        state.coin = torch.tensor([rng.uniform() for rng in state.coins], dtype=torch.float64).to(state.coin.device)
    gradients: Gradients = worker_gradients(state.model, state.parameters, samples, labels, state.honest)
    if cell.worker_momentum:
        beta, vectors = cell.worker_momentum, gradients.vectors()
        state.momentum = vectors if state.momentum is None else beta * state.momentum + (1 - beta) * vectors
        gradients = ExplicitGradients(state.momentum)
    byzantine = byzantine_vectors(state, gradients, np.arange(state.honest, cell.workers)) if cell.byzantine else None
    misbehaved = np.tile(np.arange(cell.workers) >= state.honest, (len(state.seeds), 1))
    sent = _with_faults(state, gradients, misbehaved) if cell.fault_rate else gradients
    return Sent(sent, byzantine, torch.from_numpy(misbehaved).to(state.previous.device))


def _with_faults(state: State, gradients: Gradients, misbehaved: np.ndarray) -> PartlyExplicit:
    """What all workers send if each misbehaves with the cell's `fault_rate`; notes who does in `misbehaved [R, n]`."""
    for of_replica, rng in zip(misbehaved, state.faults, strict=True):
        of_replica[:] = rng.random(state.cell.workers) < state.cell.fault_rate
        of_replica[0] &= not of_replica.all()  # an attack needs somebody to look at
    explicit = {}
    for replica in np.flatnonzero(misbehaved.any(1)).tolist():
        faulty, others = np.flatnonzero(misbehaved[replica]), np.flatnonzero(~misbehaved[replica])
        vectors = gradients.of_replicas(torch.tensor([replica], device=gradients.like.device)).vectors()
        honest = ExplicitGradients(vectors[:, others])
        vectors[:, faulty] = byzantine_vectors(state, honest, faulty, slice(replica, replica + 1)).vectors()
        explicit[replica] = ExplicitGradients(vectors)
    return PartlyExplicit(gradients, explicit)


def byzantine_vectors(
    state: State, honest: Gradients, workers: np.ndarray, replicas: slice = slice(None)
) -> ByzantineVectors:
    """What these Byzantine workers send in some replicas, seeing what the others send."""
    parameters = [(weight[replicas], bias[replicas]) for weight, bias in state.parameters]
    folds, rngs, classes = state.folds.of(replicas), state.attacks[replicas], DATASETS[state.cell.dataset].classes

    def gradient(samples: int | None) -> Callable[[], Tensor]:
        if samples is None:
            return lambda: mean_gradient(state.model, parameters, folds, *folds.whole_training)
        index = folds.draw(samples, rngs)
        shares = torch.full(index.shape, 1 / samples, dtype=honest.like.dtype, device=index.device)
        return lambda: mean_gradient(state.model, parameters, folds, index, shares)

    def target() -> Tensor:
        if state.target is None:
            state.target = wrong_model(state.model, state.folds, state.seeds, classes)
        return state.target[replicas]

    def own_vectors(relabelled: bool = False) -> Tensor:
        samples, labels = state.batches.of(state.round, workers, replicas)
        labels = classes - 1 - labels if relabelled else labels
        return worker_gradients(state.model, parameters, samples, labels, len(workers)).vectors()

    adversary = Adversary(
        gradients=honest,
        byzantine=len(workers),
        learning_rate=state.cell.learning_rate,
        full_gradient=gradient,
        parameters=lambda: flatten(parameters),
        wrong_model=target,
        own_vectors=own_vectors,
        round=state.round,
        memory=state.memory,
        generators=rngs,
        noise=state.noise[replicas],
        dimension=models.dimension(state.model),
    )
    sent = ATTACKS[state.cell.attack](adversary, **dict(state.cell.attack_options))
    assert sent is not None
    return sent


@torch.inference_mode()
def weigh(state: State, sent: Sent) -> Tensor:
    """The rule's weights [R, n] for what the workers sent, from inner products alone."""
    rule, options, like = state.rule, dict(state.cell.aggregator_options), state.previous
    if rule.fixed_weights:
        n = state.cell.workers
        geometry = torch.zeros(len(state.seeds), n, n, dtype=torch.float64, device=like.device)
        return rule(geometry, **state.context, **options).to(like.dtype)
    if isinstance(sent.byzantine, Directed) and rule.selects is not None and state.other_rule is None:
        choice = choice_without_the_direction(state, sent.byzantine)
        if choice is not None:
            return choice.to(like.dtype)
    return rule(sent.squared_distances, **state.context, **options).to(like.dtype)


def choice_without_the_direction(state: State, byzantine: Directed) -> Tensor | None:
    """The choice's weights [R, n] if they are the same whatever direction the Byzantine vector has, else None.

    Scores do not fall when a distance grows. So the scores at the greatest and least distances that the vector's
    length allows enclose the true ones, and the m vectors of least greatest score are chosen if nobody else's
    least score reaches theirs.
    """
    n, h, f, options = state.cell.workers, state.honest, state.cell.declared_f, dict(state.cell.aggregator_options)
    gram = byzantine.adversary.gradients.gram
    geometry = gram.new_zeros((len(state.seeds), n, n))
    geometry[:, :h, :h] = distances.from_gram(gram)

    def scores(distance: Tensor) -> Tensor:
        geometry[:, :h, h:], geometry[:, h:, :h] = distance[:, :, None], distance[:, None, :]
        return state.rule.scores(geometry, f, **options)

    nearest, farthest = byzantine.bounds()
    least, greatest, without = scores(nearest), scores(farthest), scores(torch.full_like(nearest, torch.inf))
    m = state.rule.chosen(n, f, options)
    ranked = greatest.sort(dim=-1, stable=True)
    choice = torch.zeros_like(greatest).scatter_(-1, ranked.indices[:, :m], 1.0)
    others = least.masked_fill(choice > 0, torch.inf)
    reached = ranked.values[:, m - 1] * (1 + ROUNDING)
    # Where the honest scores do not count the Byzantine vector at all, they are the true ones to the last bit.
    settled = (least[:, :h] == without[:, :h]).all(-1)
    certain = (reached < others[:, h:].amin(-1)) & (settled | (reached < others[:, :h].amin(-1)))
    certain &= geometry[:, :h, :h].isfinite().flatten(1).all(-1) & (choice[:, h:] == 0).all(-1)
    certain &= farthest.sqrt().amax(-1) < FARTHEST
    return choice / m if bool(certain.all()) else None


@torch.inference_mode()
def descend(state: State, sent: Sent, weights: Tensor) -> None:
    """Go one step along the weighted sum of what the workers sent, for `weights [R, n]`, and end the round."""
    rate, h = state.cell.learning_rate, state.honest
    of_honest = weights[:, :h]
    if sent.byzantine is not None and bool((weights[:, h:] != 0).any()):
        coefficients, vectors = sent.byzantine.weighted(weights[:, h:])
        if coefficients is not None:
            of_honest = of_honest + coefficients
        if vectors is not None:
            subtract(state.parameters, vectors, rate)
    sent.gradients.descend(state.parameters, of_honest, rate)
    state.round += 1


def _step_by_vectors(state: State, sent: Sent) -> Observed:
    """A round of a rule that needs the vectors themselves, or the last aggregate."""
    rule, options, weights, chosen = state.rule, dict(state.cell.aggregator_options), None, None
    vectors = sent.vectors()
    if rule.sees == "distances":
        with_previous = torch.cat([vectors, state.previous[:, None]], 1) if rule.previous else vectors
        squared = distances.from_gram(ExplicitGradients(with_previous).gram)
        weights = rule(squared, **state.context, **options).to(vectors.dtype)
        aggregate = weighted_sum(weights, with_previous)
    else:
        if rule.select is not None:
            squared = distances.from_gram(ExplicitGradients(vectors).gram)
            chosen = rule.select(squared, state.cell.declared_f)
        aggregate = rule(vectors, **state.context, chosen=chosen, **options)
    subtract(state.parameters, aggregate, state.cell.learning_rate)
    state.previous = aggregate
    state.round += 1
    return Observed(None if weights is None else _byzantine_weight(sent, weights))


def _observe(state: State, sent: Sent, weights: Tensor) -> Observed:
    norm_ratio = differs = None
    if not state.rule.fixed_weights:
        behaved = (~sent.misbehaved[:, None, : state.honest]).double()
        gram = sent.gradients.gram.where(behaved.mT * behaved > 0, 0.0)
        of_honest = weights[:, None, : state.honest].double()
        squared = of_honest.bmm(gram).bmm(of_honest.mT).flatten() / (gram.sum((1, 2)) / behaved.sum((1, 2)).square())
        norm_ratio = squared.clamp(min=0).sqrt()
    if state.other_rule is not None:
        other = state.other_rule(sent.squared_distances, **state.context)
        differs = (other.to(weights.dtype) != weights).any(-1).double()
    return Observed(_byzantine_weight(sent, weights), norm_ratio, differs)


def _byzantine_weight(sent: Sent, weights: Tensor) -> Tensor:
    """The share of the weights given to workers that misbehaved, [R]."""
    of_workers = weights[:, : sent.misbehaved.shape[1]]
    return of_workers.where(sent.misbehaved, 0.0).sum(-1).double()
