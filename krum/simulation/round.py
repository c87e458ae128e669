"""One synchronous round of the parameter server, many replicas (seeds) at once, in Gram space.

The workers send (`send`), the rule weighs what they sent (`weigh`), the server descends (`descend`); `step` is all
three. Each replica draws from its own generators. Honest workers come first in the order of workers, Byzantine ones
last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krum.registry import lookup
from krum.rules import distances
from krum.rules.aggregators import AGGREGATORS, Aggregator
from krum.simulation import draws, models
from krum.simulation.adversary import Adversary, ByzantineVectors, Directed
from krum.simulation.attacks import ATTACKS, Attack
from krum.simulation.datasets import DATASETS, Dataset, Samples
from krum.simulation.draws import Folds, MiniBatches
from krum.simulation.full_gradient import estimated_gradient, full_gradient, wrong_model
from krum.simulation.gradients import (
    ExplicitGradients,
    Gradients,
    flatten,
    subtract,
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
    dataset: Dataset
    rule: Aggregator
    attack: Attack
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
    round: int = 0  # how many are done
    coin: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))  # this round's, [R]
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


@dataclass(frozen=True)
class Faulty:
    """A replica in which some workers misbehave in this round."""

    workers: Tensor  # which, [n] bool
    vectors: Tensor  # what all of its workers send, flat [1, n, d]


@dataclass
class Sent:
    """What the workers sent in a round: the honest gradients, and what the Byzantine workers made of them."""

    gradients: Gradients
    byzantine: ByzantineVectors | None
    faulty: dict[int, Faulty]  # by replica, with the cell's `fault_rate`
    _squared_distances: Tensor | None = None

    def squared_distances(self) -> Tensor:
        """Between all vectors, [R, n, n]."""
        if self._squared_distances is None:
            gram = self.gradients.gram
            if self.byzantine is not None:
                with_honest, among = self.byzantine.inner_products()
                gram = torch.cat([torch.cat([gram, with_honest], 2), torch.cat([with_honest.mT, among], 2)], 1)
            self._squared_distances = distances.from_gram(gram)
        return self._squared_distances

    def vectors(self) -> Tensor:
        """All of them, flat [R, n, d]."""
        vectors = self.gradients.vectors()
        if self.byzantine is not None:
            vectors = torch.cat([vectors, self.byzantine.vectors()], 1)
        if self.faulty:
            vectors = vectors.clone()
        for replica, faulty in self.faulty.items():
            vectors[replica] = faulty.vectors[0]
        return vectors


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
    dataset = lookup(DATASETS, cell.dataset, "data set")
    model = models.build(cell.model, dict(cell.model_options), dataset.features, dataset.classes)
    folds = draws.split(cell, dataset, samples, seeds, device, dtype)
    noise = [int(draws.stream(seed, "attack noise").generate_state(1, np.uint64)[0]) for seed in seeds]
    return State(
        cell=cell,
        seeds=seeds,
        dataset=dataset,
        rule=lookup(AGGREGATORS, cell.aggregator, "aggregator"),
        attack=lookup(ATTACKS, cell.attack, "attack"),
        other_rule=None if cell.compare_with is None else lookup(AGGREGATORS, cell.compare_with, "aggregator"),
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
    return Sent(gradients, byzantine, _draw_faults(state, gradients) if cell.fault_rate else {})


def byzantine_vectors(
    state: State, honest: Gradients, workers: np.ndarray, replicas: slice = slice(None)
) -> ByzantineVectors:
    """What these Byzantine workers send in some replicas, seeing what the others send."""
    numbers = torch.arange(len(state.seeds), device=state.coin.device)[replicas]
    parameters = [(weight[replicas], bias[replicas]) for weight, bias in state.parameters]

    def gradient(some: Tensor, samples: int | None) -> Tensor:
        if samples is None:
            return full_gradient(state.model, state.parameters, state.folds, numbers[some])
        return estimated_gradient(state.model, state.parameters, state.folds, numbers[some], samples, state.attacks)

    def target() -> Tensor:
        if state.target is None:
            state.target = wrong_model(state.model, state.folds, state.seeds, state.dataset.classes)
        return state.target[replicas]

    def own_vectors(relabelled: bool = False) -> Tensor:
        samples, labels = state.batches.of(state.round, workers, replicas)
        labels = state.dataset.classes - 1 - labels if relabelled else labels
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
        generators=state.attacks[replicas],
        noise=state.noise[replicas],
        dimension=models.dimension(state.model),
    )
    sent = state.attack(adversary, **dict(state.cell.attack_options))
    assert sent is not None
    return sent


@torch.inference_mode()
def weigh(state: State, sent: Sent) -> Tensor:
    """The rule's weights [R, n] for what the workers sent, from inner products alone."""
    rule, options, like = state.rule, dict(state.cell.aggregator_options), sent.gradients.like
    if rule.fixed_weights:
        n = state.cell.workers
        geometry = torch.zeros(len(state.seeds), n, n, dtype=torch.float64, device=like.device)
        return rule(geometry, **state.context, **options).to(like.dtype)
    certain = choice = None
    if isinstance(sent.byzantine, Directed) and rule.selects is not None and state.other_rule is None:
        certain, choice = choice_without_the_direction(state, sent.gradients, sent.byzantine)
        if bool(certain.all()):
            return choice.to(like.dtype)
        sent.byzantine.form((~certain).nonzero().squeeze(-1))
    weights = rule(sent.squared_distances(), **state.context, **options)
    if certain is not None and choice is not None:
        weights = choice.where(certain[:, None], weights)
    weights = weights.to(like.dtype)
    for replica, faulty in sent.faulty.items():
        weights[replica] = _weights_of_vectors(state, faulty.vectors, slice(replica, replica + 1))[0]
    return weights


def choice_without_the_direction(state: State, gradients: Gradients, byzantine: Directed) -> tuple[Tensor, Tensor]:
    """Where the choice is the same whatever direction the Byzantine vector has [R], and the choice's weights [R, n].

    Scores do not fall when a distance grows. So the scores at the greatest and least distances that the vector's
    length allows enclose the true ones, and the m vectors of least greatest score are chosen if nobody else's
    least score reaches theirs.
    """
    n, h, f, options = state.cell.workers, state.honest, state.cell.declared_f, dict(state.cell.aggregator_options)
    geometry = torch.zeros(len(state.seeds), n, n, dtype=torch.float64, device=gradients.like.device)
    geometry[:, :h, :h] = distances.from_gram(gradients.gram)

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
    return certain, choice / m


@torch.inference_mode()
def descend(state: State, sent: Sent, weights: Tensor) -> None:
    """Go one step along the weighted sum of what the workers sent, for `weights [R, n]`, and end the round."""
    rate, h = state.cell.learning_rate, state.honest
    for replica, faulty in sent.faulty.items():
        subtract(_only(state.parameters, replica), _weighted_sum(weights[replica, None], faulty.vectors), rate)
    weights = _without_faulty_replicas(weights, sent)
    of_honest = weights[:, :h]
    if sent.byzantine is not None:
        coefficients, vectors = sent.byzantine.weighted(weights[:, h:])
        if coefficients is not None:
            of_honest = of_honest + coefficients
        if vectors is not None:
            subtract(state.parameters, vectors, rate)
    sent.gradients.descend(state.parameters, of_honest, rate)
    state.round += 1


def _step_by_vectors(state: State, sent: Sent) -> Observed:
    """A round of a rule that needs the vectors themselves, or the last aggregate."""
    vectors, weights = sent.vectors(), None
    if state.rule.sees == "distances":
        weights = _weights_of_vectors(state, vectors)
        with_previous = torch.cat([vectors, state.previous[:, None]], 1) if state.rule.previous else vectors
        aggregate = _weighted_sum(weights, with_previous)
    else:
        context = dict(state.context)
        if state.rule.select is not None:
            squared = distances.from_gram(vectors.bmm(vectors.mT))
            context["chosen"] = state.rule.select(squared, state.cell.declared_f)
        aggregate = state.rule(vectors, **context, **dict(state.cell.aggregator_options))
    subtract(state.parameters, aggregate, state.cell.learning_rate)
    state.previous = aggregate
    state.round += 1
    return Observed(None if weights is None else _byzantine_weight(state, sent, weights))


def _weights_of_vectors(state: State, vectors: Tensor, replicas: slice = slice(None)) -> Tensor:
    """The weights [r, n] that the rule gives explicit `vectors [r, n, d]`, or [r, n + 1] with the last aggregate's."""
    if state.rule.previous:
        vectors = torch.cat([vectors, state.previous[replicas, None]], 1)
    context = {**state.context, "coin": state.coin[replicas]}
    squared = distances.from_gram(vectors.bmm(vectors.mT))
    return state.rule(squared, **context, **dict(state.cell.aggregator_options)).to(vectors.dtype)


def _weighted_sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """`sum_i w_i V_i`, [r, d]; a vector without weight counts for nothing, NaN or not."""
    return weights[:, None].bmm(vectors.where((weights != 0)[..., None], 0.0)).squeeze(1)


def _draw_faults(state: State, gradients: Gradients) -> dict[int, Faulty]:
    """With the cell's `fault_rate`, the replicas in which some workers misbehave in this round."""
    faulty = {}
    for replica, rng in enumerate(state.faults):
        workers = rng.random(state.cell.workers) < state.cell.fault_rate
        workers[0] &= not workers.all()  # an attack needs somebody to look at
        if workers.any():
            vectors = gradients.of_replicas(torch.tensor([replica], device=gradients.like.device)).vectors().clone()
            honest = ExplicitGradients(vectors[:, torch.from_numpy(~workers)])
            sent = byzantine_vectors(state, honest, workers.nonzero()[0], slice(replica, replica + 1))
            vectors[:, torch.from_numpy(workers)] = sent.vectors()
            faulty[replica] = Faulty(torch.from_numpy(workers).to(vectors.device), vectors)
    return faulty


def _observe(state: State, sent: Sent, weights: Tensor) -> Observed:
    norm_ratio = differs = None
    if not state.rule.fixed_weights:
        gram = sent.gradients.gram
        of_honest = _without_faulty_replicas(weights, sent)[:, None, : state.honest].double()
        squared = of_honest.bmm(gram).bmm(of_honest.mT) / gram.mean((1, 2), keepdim=True)
        norm_ratio = squared.clamp(min=0).sqrt().flatten()
    if state.other_rule is not None:
        other = state.other_rule(sent.squared_distances(), **state.context)
        differs = (other.to(weights.dtype) != weights).any(-1).double()
    return Observed(_byzantine_weight(state, sent, weights), norm_ratio, differs)


def _byzantine_weight(state: State, sent: Sent, weights: Tensor) -> Tensor:
    """The share of the weights given to Byzantine or faulty workers, [R]."""
    share = weights[:, state.honest : state.cell.workers].sum(-1).double()
    for replica, faulty in sent.faulty.items():
        share[replica] = weights[replica, : state.cell.workers][faulty.workers].sum()
    return share


def _without_faulty_replicas(weights: Tensor, sent: Sent) -> Tensor:
    """The weights, 0 in the replicas in which somebody misbehaves: they are dealt with by their explicit vectors."""
    if not sent.faulty:
        return weights
    weights = weights.clone()
    weights[list(sent.faulty)] = 0
    return weights


def _only(parameters: Parameters, replica: int) -> Parameters:
    """Views of one replica's."""
    return [(weight[replica, None], bias[replica, None]) for weight, bias in parameters]
