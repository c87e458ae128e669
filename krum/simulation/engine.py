"""The synchronous parameter-server loop, many replicas (seeds) at once, in Gram space.

Each replica draws from its own generators, one named stream per role, and no operation mixes replicas: its curve does
not depend on which others run beside it, nor on how often it is evaluated. Honest workers come first in the order of
workers, Byzantine ones last.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krum.errors import InputError
from krum.registry import lookup
from krum.rules import distances
from krum.rules.aggregators import AGGREGATORS
from krum.simulation import datasets, models
from krum.simulation.adversary import Adversary, ByzantineVectors, Directed
from krum.simulation.attacks import ATTACKS
from krum.simulation.cell import Cell
from krum.simulation.datasets import DATASETS, Samples
from krum.simulation.deformations import deform
from krum.simulation.gradients import Branch, ExplicitGradients, WorkerGradients, unflatten, worker_gradients
from krum.simulation.models import Parameters, product

ROUNDS_DRAWN_AT_ONCE = 50
MADE_AT_ONCE = 250  # deformed images
SAMPLES_AT_ONCE = 512  # of a whole data set, for a gradient or an evaluation
CERTAIN = 1e-4  # relative distance between scores that no rounding bridges
FARTHEST = 1e12  # beyond it, squares in float32 come near their end
WRONG_MODEL_ROUNDS, WRONG_MODEL_BATCH, WRONG_MODEL_RATE = (
    300,
    50,
    0.1,
)  # how the model that an attack steers to is trained

Gradients = WorkerGradients | ExplicitGradients

COLUMNS = (
    "seed",
    "round",
    "test_error",
    "test_loss",
    "byzantine_weight",
    "diverged",
    "majority_error",
    "differs",
    "gradient_norm",
    "gradient_noise",
    "distance_to_target",
    "norm_ratio",
)


def stream(seed: int, role: str) -> np.random.SeedSequence:
    """The seed sequence of one role ("folds", "initial weights", "mini-batches", "attack", "rule" ...) of one seed."""
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(role.encode()),))


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises InputError for "cuda" without CUDA."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: found {name!r}; give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch finds no CUDA device; give auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, since their number decides the rounding of long sums; more jobs keep the cores busy.

    In it, results below the least normal number (1e-38) are 0: many processors compute a hundred times slower with
    them, and the derivatives of saturated softmaxes are full of them.
    """
    before = torch.get_num_threads()
    least = torch.tensor(torch.finfo(torch.float32).tiny)
    flushed = not bool(least / 2)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(before)


@one_thread()
def simulate(
    cell: Cell,
    samples: Samples | None = None,
    *,
    device: str = "auto",
    seeds: Iterable[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Run one cell and return its curves as columns (see COLUMNS), ordered by seed, then round.

    `seeds` is a subset of the cell's, all of them by default; `progress` is told every recorded round. On a CPU, a
    seed's curve has the same bytes alone, beside others, and at any number of torch's threads.

    - `byzantine_weight`: the mean share of the aggregate's weight given to Byzantine vectors since the last recorded
      round; NaN at round 0, and for rules that have no weights.
    - `majority_error`: the error of always answering the training fold's most frequent class.
    - `differs`: with `compare_with`, the share of rounds since the last recorded one in which that rule would have
      chosen otherwise from the same vectors.
    - `gradient_norm`, `gradient_noise`: with `measure_gradient`, `||g||` for the gradient g over the whole training
      fold, and `sqrt(E ||G - g||^2)` (the paper's `sqrt(d) sigma`) for one worker's mini-batch gradient G, exactly.
    - `norm_ratio`: the length of the honest part of the aggregate over that of the mean honest gradient, mean since
      the last recorded round; NaN for rules that always give the same weights, or none.
    - `distance_to_target`: where the attack steers to a model x*, `||x_t - x*|| / ||x_0 - x*||`.
    """
    seeds = list(range(cell.seeds)) if seeds is None else list(seeds)
    simulation = Simulation(cell, samples, device=device, seeds=seeds)
    records = [simulation.record()]
    for round_ in range(1, cell.rounds + 1):
        simulation.step()
        if round_ % cell.evaluate_every == 0 or round_ == cell.rounds:
            records.append(simulation.record())
            if progress is not None:
                progress(round_)
    return {
        column: np.array([record[column][replica] for replica in range(len(seeds)) for record in records])
        for column in COLUMNS
    }


class Simulation:
    """The state of one cell's replicas between rounds.

    `parameters` holds one (weight [R, in, out], bias [R, out]) per layer. `dtype` float64 and `branch` (see
    `WorkerGradients.branch`) exist for comparison with other ways of computing.
    """

    def __init__(
        self,
        cell: Cell,
        samples: Samples | None = None,
        *,
        device: str = "auto",
        seeds: Iterable[int] = (0,),
        dtype: torch.dtype = torch.float32,
        branch: Branch | None = None,
    ):
        self.cell, self.seeds, self.dtype, self.branch = cell, list(seeds), dtype, branch
        self.device = pick_device(device)
        self.dataset = lookup(DATASETS, cell.dataset, "data set")
        self.rule = lookup(AGGREGATORS, cell.aggregator, "aggregator")
        self.attack = lookup(ATTACKS, cell.attack, "attack")
        self.rule_options, self.attack_options = dict(cell.aggregator_options), dict(cell.attack_options)
        model_options = dict(cell.model_options)
        self.model = models.build(cell.model, model_options, self.dataset.features, self.dataset.classes)
        self.dimension = models.dimension(self.model)
        self.other_rule = None if cell.compare_with is None else lookup(AGGREGATORS, cell.compare_with, "aggregator")
        self.round = 0
        self._momentum: Tensor | None = None  # the workers', flat [R, h, d]
        self._load(datasets.load(cell.dataset) if samples is None else samples)
        self._initialise()
        self._recorded_round = 0
        self._byzantine_weight = torch.zeros(self.replicas, dtype=torch.float64, device=self.device)  # since then
        self._differs = torch.zeros_like(self._byzantine_weight)
        self._norm_ratio = torch.zeros_like(self._byzantine_weight)
        self._target: Tensor | None = None
        self._start = self._flat_parameters().clone()

    @property
    def replicas(self) -> int:
        """R, one replica per seed."""
        return len(self.seeds)

    @property
    def honest(self) -> int:
        """h, the workers that are not Byzantine."""
        return self.cell.workers - self.cell.byzantine

    # ------------------------------------------------------------------------------------------------- one round

    @torch.inference_mode()
    def step(self) -> None:
        """One synchronous round of every replica: `x <- x - learning_rate * F(V_1, ..., V_n)`."""
        gradients, byzantine = self.send()
        faulty = self._faulty_workers()
        if self.rule.sees == "vectors" or self.rule.previous:
            self._step_by_vectors(gradients, byzantine, faulty)
        else:
            self._step_by_weights(gradients, byzantine, faulty)
        self.round += 1

    def _step_by_weights(
        self, gradients: Gradients, byzantine: ByzantineVectors | None, faulty: list[np.ndarray] | None
    ) -> None:
        rate = self.cell.learning_rate
        weights = self.weigh(gradients, byzantine)
        common = self.rule.fixed_weights and faulty is None
        for replica, workers in enumerate(faulty or ()):
            if workers.any():
                vectors = self._with_faults(replica, gradients, workers)
                chosen, aggregate = self._aggregate(vectors, slice(replica, replica + 1))
                assert chosen is not None
                self._byzantine_weight[replica] += chosen[0, torch.from_numpy(workers)].sum()
                self._descend(rate, aggregate, slice(replica, replica + 1))
                weights[replica] = 0
        of_honest, of_byzantine = weights[:, : self.honest], weights[:, self.honest :]
        self._byzantine_weight += of_byzantine.sum(-1)
        if not self.rule.fixed_weights:
            gram, exact = gradients.gram, of_honest.double()[:, None]
            self._norm_ratio += (
                (product(product(exact, gram), exact.mT) / gram.mean((1, 2), keepdim=True)).clamp(min=0).sqrt()[:, 0, 0]
            )
        if byzantine is not None:
            coefficients, vector = byzantine.weighted(of_byzantine)
            if coefficients is not None:
                of_honest, common = of_honest + coefficients, False
            if vector is not None:
                self._descend(rate, vector)
        if isinstance(gradients, ExplicitGradients):
            self._descend(rate, gradients.sum(of_honest))
        else:
            self._descend_by_samples(rate, gradients, of_honest, common)

    def _step_by_vectors(
        self, gradients: Gradients, byzantine: ByzantineVectors | None, faulty: list[np.ndarray] | None
    ) -> None:
        vectors = gradients.vectors()
        if byzantine is not None:
            vectors = torch.cat([vectors, byzantine.vectors()], 1)
        if faulty is not None:
            vectors = vectors.clone()
        for replica, workers in enumerate(faulty or ()):
            if workers.any():
                vectors[replica] = self._with_faults(replica, gradients, workers)[0]
        weights, aggregate = self._aggregate(vectors, slice(None))
        if weights is None:
            self._byzantine_weight += torch.nan
        elif faulty is None:
            self._byzantine_weight += weights[:, self.honest : self.cell.workers].sum(-1)
        else:
            of_faulty = torch.from_numpy(np.stack(faulty)).to(weights.device)
            self._byzantine_weight += (weights[:, : self.cell.workers] * of_faulty).sum(-1)
        self._descend(self.cell.learning_rate, aggregate)
        if self.rule.previous:
            self._previous = aggregate

    def _aggregate(self, vectors: Tensor, replicas: slice) -> tuple[Tensor | None, Tensor]:
        """The rule's weights, if it has any, and its aggregate [r, d] of explicit `vectors [r, n, d]`."""
        context = {**self._context, "coin": self._coin[replicas]}
        if self.rule.sees == "vectors":
            if self.rule.select is not None:
                squared = distances.from_gram(product(vectors, vectors.mT))
                context["chosen"] = self.rule.select(squared, self.cell.declared_f)
            return None, self.rule(vectors, **context, **self.rule_options)
        if self.rule.previous:
            vectors = torch.cat([vectors, self._previous[replicas, None]], 1)
        squared = distances.from_gram(product(vectors, vectors.mT))
        weights = self.rule(squared, **context, **self.rule_options).to(self.dtype)
        used = (weights != 0)[..., None]
        return weights, product(weights[:, None], vectors.where(used, 0.0)).squeeze(1)

    def send(self) -> tuple[Gradients, ByzantineVectors | None]:
        """What the workers send in this round: the honest gradients, and what the Byzantine workers make of them."""
        samples, labels = self._next_batch()
        if "coin" in self.rule.needs:
            drawn = [rng.uniform() for rng in self._coin_generators]
            self._coin = torch.tensor(drawn, dtype=torch.float64, device=self.device)
        gradients: Gradients = worker_gradients(self.model, self.parameters, samples, labels, self.honest, self.branch)
        beta = self.cell.worker_momentum
        if beta:
            vectors = gradients.vectors()
            kept = vectors if self._momentum is None else self._momentum.mul_(beta).add_(vectors, alpha=1 - beta)
            self._momentum = kept
            gradients = ExplicitGradients(kept)
        if not self.cell.byzantine:
            return gradients, None
        workers = np.arange(self.honest, self.cell.workers)
        adversary = self._adversary(
            gradients,
            list(range(self.replicas)),
            lambda relabelled: self._own_vectors(slice(None), workers, relabelled),
        )
        return gradients, self.attack(adversary, **self.attack_options)

    def _adversary(self, gradients: Gradients, replicas: list[int], own: Callable[[bool], Tensor]) -> Adversary:
        everyone = len(replicas) == self.replicas
        chosen = slice(None) if everyone else slice(replicas[0], replicas[0] + 1)
        return Adversary(
            gradients=gradients,
            byzantine=self.cell.workers - gradients.workers,
            learning_rate=self.cell.learning_rate,
            full_gradient=lambda some, samples: self._full_gradient(
                some if everyone else torch.tensor(replicas, device=self.device)[some], samples
            ),
            parameters=lambda: self._flat_parameters()[chosen],
            wrong_model=lambda: self._wrong_model()[chosen],
            own=own,
            round=self.round,
            memory=self._memory,
            generators=[self._attack_generators[replica] for replica in replicas],
            noise=[self._attack_noise[replica] for replica in replicas],
            dimension=self.dimension,
        )

    def _own_vectors(self, replicas: slice, workers: np.ndarray, relabelled: bool) -> Tensor:
        """The gradients of some workers' own mini-batches of this round in some replicas, flat [r, len(workers), d]."""
        turn, size = (self.round % ROUNDS_DRAWN_AT_ONCE), self.cell.batch_size
        index = self._drawn[turn, replicas].unflatten(-1, (-1, size))[:, torch.from_numpy(workers)].flatten(1)
        everyone = torch.arange(self.replicas, device=self.device)[replicas]
        samples, labels = self._training_points(index, everyone)
        if relabelled:
            labels = self.dataset.classes - 1 - labels
        own = [(weight[replicas], bias[replicas]) for weight, bias in self.parameters]
        return worker_gradients(self.model, own, samples, labels, len(workers), self.branch).vectors()

    def _faulty_workers(self) -> list[np.ndarray] | None:
        """Which workers misbehave in this round, [n] for each replica; None where the same ones always do."""
        if not self.cell.fault_rate:
            return None
        drawn = [rng.random(self.cell.workers) < self.cell.fault_rate for rng in self._fault_generators]
        for workers in drawn:
            workers[0] &= not workers.all()  # an attack needs somebody to look at
        return drawn

    def _with_faults(self, replica: int, gradients: Gradients, workers: np.ndarray) -> Tensor:
        """What all workers of a replica send when some of them misbehave, flat [1, n, d]."""
        place = torch.tensor([replica], device=self.device)
        vectors = gradients.of_replicas(place).vectors().clone()
        faulty, honest = workers.nonzero()[0], (~workers).nonzero()[0]
        of_replica = slice(replica, replica + 1)
        adversary = self._adversary(
            ExplicitGradients(vectors[:, torch.from_numpy(honest)]),
            [replica],
            lambda relabelled: self._own_vectors(of_replica, faulty, relabelled),
        )
        sent = self.attack(adversary, **self.attack_options)
        assert sent is not None
        vectors[:, torch.from_numpy(faulty)] = sent.vectors()
        return vectors

    def weigh(self, gradients: Gradients, byzantine: ByzantineVectors | None) -> Tensor:
        """The rule's weights [R, n] for what the workers sent, from inner products alone."""
        n, h = self.cell.workers, self.honest
        if self.rule.fixed_weights:
            geometry = torch.zeros(self.replicas, n, n, dtype=torch.float64, device=self.device)
            return self.rule(geometry, **self._context, **self.rule_options).to(self.dtype)
        gram = gradients.gram.new_zeros(self.replicas, n, n)
        gram[:, :h, :h] = gradients.gram
        certain = None
        if isinstance(byzantine, Directed) and self.rule.selects is not None and self.other_rule is None:
            certain, choice = self._choice_without_the_direction(distances.from_gram(gram), byzantine)
            if bool(certain.all()):
                return choice.to(self.dtype)
            byzantine.form(~certain)
            byzantine = byzantine.formed()
        if byzantine is not None:
            with_honest, among = byzantine.inner_products()
            gram[:, :h, h:], gram[:, h:, :h], gram[:, h:, h:] = with_honest, with_honest.mT, among
        geometry = distances.from_gram(gram)
        weights = self.rule(geometry, **self._context, **self.rule_options)
        if certain is not None:
            weights = choice.where(certain[:, None], weights)
        if self.other_rule is not None:
            other = self.other_rule(geometry, **self._context)
            self._differs += (other != weights).any(-1)
        return weights.to(self.dtype)

    def _choice_without_the_direction(self, honest: Tensor, byzantine: Directed) -> tuple[Tensor, Tensor]:
        """Where the choice is the same whatever direction the Byzantine vector has [R], and the choice [R, n].

        Scores do not fall when a distance grows. So the scores at the greatest and least distances that the vector's
        length allows enclose the true ones, and the m vectors of least greatest score are chosen if nobody else's
        least score reaches theirs.
        """
        n, h = self.cell.workers, self.honest
        f, options = self.cell.declared_f, self.rule_options

        def scores(distance: Tensor) -> Tensor:
            geometry = honest.clone()
            geometry[:, :h, h:] = distance[:, :, None]
            geometry[:, h:, :h] = distance[:, None, :]
            geometry[:, h:, h:] = 0
            return self.rule.scores(geometry, f, **options)

        nearest, farthest = byzantine.bounds()
        least, greatest, without = scores(nearest), scores(farthest), scores(torch.full_like(nearest, torch.inf))
        m = self.rule.chosen(n, f, options)
        ranked = greatest.sort(dim=-1, stable=True)
        choice = torch.zeros_like(greatest).scatter_(-1, ranked.indices[:, :m], 1.0)
        others = least.masked_fill(choice > 0, torch.inf)
        reached = ranked.values[:, m - 1] * (1 + CERTAIN)
        # Where the honest scores do not count the Byzantine vector at all, they are the true ones to the last bit.
        settled = (least[:, :h] == without[:, :h]).all(-1)
        certain = (reached < others[:, h:].amin(-1)) & (settled | (reached < others[:, :h].amin(-1)))
        certain &= honest.isfinite().all(-1).all(-1) & (choice[:, h:] == 0).all(-1)
        certain &= farthest.sqrt().amax(-1) < FARTHEST
        return certain, choice / m

    @property
    def _context(self) -> dict[str, Any]:
        """What rules may ask for in this round, beside the geometry."""
        return {"f": self.cell.declared_f, "round": self.round + 1, "coin": self._coin}

    def _descend_by_samples(
        self,
        rate: float,
        gradients: WorkerGradients,
        weights: Tensor,
        common: bool = False,
        parameters: Parameters | None = None,
    ) -> None:
        parameters = self.parameters if parameters is None else parameters
        for part in gradients.weighted(weights, common):
            step, own = rate * part.scale, part.replicas
            for (weight, bias), (x, delta) in zip(parameters, part.factors, strict=True):
                of_weight = models.add_outer_sums(weight[own], x, delta, -step)
                of_bias = bias[own].sub_(delta.sum(1), alpha=step)
                if isinstance(own, Tensor):  # what indices lead to is a copy
                    weight[own], bias[own] = of_weight, of_bias

    def _descend(self, rate: float, vector: Tensor, replicas: slice = slice(None)) -> None:
        for (weight, bias), (of_weight, of_bias) in zip(
            self.parameters, unflatten(vector, self.model.layers), strict=True
        ):
            weight[replicas].sub_(of_weight, alpha=rate)
            bias[replicas].sub_(of_bias, alpha=rate)

    def _flat_parameters(self) -> Tensor:
        return torch.cat([part.flatten(1) for pair in self.parameters for part in pair], 1)

    # ---------------------------------------------------------------------------------------------- the recording

    @torch.inference_mode()
    def record(self) -> dict[str, list]:
        """One value per replica of every column of COLUMNS, and a fresh start for `byzantine_weight`.

        A diverged replica (parameters that are not finite) counts at the error that its predictions give: a NaN among
        its logits is the greatest of them, the first NaN if there are several.
        """
        errors, losses = [], []
        memory = self._no_samples(1, SAMPLES_AT_ONCE)
        for replica, held_out in enumerate(self._held_out):
            own = [(weight[replica : replica + 1], bias[replica : replica + 1]) for weight, bias in self.parameters]
            blocks = [index[None] for index in held_out.split(SAMPLES_AT_ONCE)]
            one = torch.tensor([replica])
            samples = (self._samples(index, one, memory[:, : index.shape[1]]) for index in blocks)
            logits = torch.cat([self.model.forward(own, some)[-1][0] for some in samples])
            labels = self._labels[held_out]
            errors.append(1 - (logits.argmax(-1) == labels).double().mean().item())
            by_class = logits.mT.contiguous()[None]  # along few classes, several times faster
            losses.append(torch.nn.functional.cross_entropy(by_class, labels[None]).item())
        rounds = self.round - self._recorded_round  # 0 / 0 is NaN at the first round
        missing = [torch.nan] * self.replicas
        norm, noise = self._gradient_statistics() if self.cell.measure_gradient else (missing, missing)
        result: dict[str, list] = {
            "seed": self.seeds,
            "round": [self.round] * self.replicas,
            "test_error": errors,
            "test_loss": losses,
            "byzantine_weight": (self._byzantine_weight / rounds).tolist(),
            "diverged": (~self._finite()).tolist(),
            "majority_error": self._majority_errors,
            "differs": missing if self.other_rule is None else (self._differs / rounds).tolist(),
            "gradient_norm": norm,
            "gradient_noise": noise,
            "distance_to_target": missing if self._target is None else self._distances_to_target(),
            "norm_ratio": missing if self._unweighted else (self._norm_ratio / rounds).tolist(),
        }
        self._recorded_round = self.round
        self._byzantine_weight.zero_()
        self._differs.zero_()
        self._norm_ratio.zero_()
        return result

    def _finite(self) -> Tensor:
        """Whether all parameters are, [R]. A sum that is finite tells, and costs a fortieth of looking at each."""
        parts = [part.flatten(1) for pair in self.parameters for part in pair]
        finite = torch.stack([part.sum(-1) for part in parts]).isfinite().all(0)
        return finite if bool(finite.all()) else torch.stack([part.isfinite().all(-1) for part in parts]).all(0)

    @property
    def _unweighted(self) -> bool:
        """The rule gives no weights to compare lengths by, or always the same."""
        return self.rule.fixed_weights or self.rule.sees == "vectors" or self.rule.previous

    def _distances_to_target(self) -> list[float]:
        assert self._target is not None
        left = (self._flat_parameters() - self._target).norm(dim=-1)
        return (left / (self._start - self._target).norm(dim=-1)).tolist()

    def _gradient_statistics(self) -> tuple[list[float], list[float]]:
        """`||g||` and `sqrt(E ||G - g||^2)` per replica, from the gradient of every sample of its training fold.

        A mini-batch is b samples drawn with replacement, so that `E ||G - g||^2 = (E ||g_s||^2 - ||g||^2) / b`.
        """
        squares = torch.zeros(self.replicas, dtype=torch.float64, device=self.device)
        gradient = self._mean_gradient(torch.arange(self.replicas, device=self.device), None, squares)
        norm = gradient.double().square().sum(-1)
        noise = ((squares - norm) / self.cell.batch_size).clamp(min=0)
        return norm.sqrt().tolist(), noise.sqrt().tolist()

    # ------------------------------------------------------------------------------------ data, weights, mini-batches

    def _load(self, samples: Samples) -> None:
        """Split every replica's folds; seed s holds out fold `s mod folds` of partition `s div folds`."""
        cell = self.cell
        features = samples.as_floats() if self.dataset.standardise else samples.features
        self._features = torch.from_numpy(features).to(self.device, None if features.dtype == np.uint8 else self.dtype)
        # Bytes stay bytes, a quarter of the memory to read and write, where the compiled products take them.
        self._as_they_are = not cell.points and models.compiled(self._empty(0))
        self._pixels = self._features.new_empty((SAMPLES_AT_ONCE, features.shape[1]))
        self._labels = torch.from_numpy(samples.labels).to(self.device)
        partitions = {
            partition: datasets.folds(samples.labels, cell.folds, partition)
            for partition in sorted({seed // cell.folds for seed in self.seeds})
        }
        splits = [partitions[seed // cell.folds][seed % cell.folds] for seed in self.seeds]
        self._training = [training for training, _ in splits]
        self._shift = self._scale = None
        if self.dataset.standardise:
            fitted = [_standardisation(features[training]) for training in self._training]
            self._shift, self._scale = (
                torch.from_numpy(np.stack(part))[:, None].to(self.device, self.dtype)
                for part in zip(*fitted, strict=True)
            )
        self._majority_errors = [
            float((samples.labels[held_out] != np.bincount(samples.labels[training]).argmax()).mean())
            for training, held_out in splits
        ]
        self._held_out = [torch.from_numpy(held_out).to(self.device) for _, held_out in splits]

    def _samples(self, index: Tensor, replicas: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """The samples `index [r, s]` of some replicas, all by default, as their training folds standardise them.

        Written to `memory` (see `_no_samples`) if given: the system's fresh pages cost as much as the copy.
        """
        memory = self._no_samples(*index.shape) if memory is None else memory
        rows, index = memory.view(-1, memory.shape[-1]), index.view(-1)
        if self._features.dtype == memory.dtype:
            torch.index_select(self._features, 0, index, out=rows)
        else:
            for some, numbers in zip(rows.split(SAMPLES_AT_ONCE), index.split(SAMPLES_AT_ONCE), strict=True):
                pixels = torch.index_select(self._features, 0, numbers, out=self._pixels[: len(numbers)])
                torch.div(pixels, datasets.LEVELS, out=some)
        if self._shift is not None and self._scale is not None:
            everyone = replicas is None
            memory.sub_(self._shift if everyone else self._shift[replicas])
            memory.mul_(self._scale if everyone else self._scale[replicas])
        return memory

    def _initialise(self) -> None:
        self.parameters = self._initial_parameters("initial weights")
        self._batch_generators = [np.random.default_rng(stream(seed, "mini-batches")) for seed in self.seeds]
        self._attack_generators = [np.random.default_rng(stream(seed, "attack")) for seed in self.seeds]
        self._attack_noise = [
            torch.Generator(self.device).manual_seed(int(stream(seed, "attack noise").generate_state(1, np.uint64)[0]))
            for seed in self.seeds
        ]
        self._coin_generators = [np.random.default_rng(stream(seed, "rule")) for seed in self.seeds]
        self._coin = torch.zeros(self.replicas, dtype=torch.float64, device=self.device)
        self._fault_generators = [np.random.default_rng(stream(seed, "faults")) for seed in self.seeds]
        self._memory: dict[str, Tensor] = {}  # the attack's
        self._previous = self.parameters[0][0].new_zeros((self.replicas, self.dimension))  # the last aggregate
        self._drawn = torch.empty(0)
        self._batch: Tensor | None = None  # memory that serves every round
        self._estimate: Tensor | None = None

    def _initial_parameters(self, role: str) -> Parameters:
        starts = [models.initialise(self.model, np.random.default_rng(stream(seed, role))) for seed in self.seeds]
        return [
            (models.spaced(self._stacked([weight for weight, _ in layer])), self._stacked([bias for _, bias in layer]))
            for layer in zip(*starts, strict=True)
        ]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _no_samples(self, *shape: int) -> Tensor:
        """Memory for samples of that shape: [*shape, features], numbers or bytes (see `krum.models.as_floats`)."""
        dtype = self._features.dtype if self._as_they_are else self.dtype
        return torch.empty((*shape, self._features.shape[1]), dtype=dtype, device=self.device)

    def _stacked(self, arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device, self.dtype)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        """Samples [R, h b, features] and labels [R, h b], drawn with replacement from each training fold.

        All n workers draw, and the honest h are used: cells that differ in the attack see the same mini-batches. The
        samples hold until the next round.
        """
        cell = self.cell
        turn = self.round % ROUNDS_DRAWN_AT_ONCE
        if turn == 0:
            shape = (ROUNDS_DRAWN_AT_ONCE, cell.workers, cell.batch_size)
            drawn = np.empty((ROUNDS_DRAWN_AT_ONCE, self.replicas, cell.workers * cell.batch_size), np.int64)
            for replica, (rng, training) in enumerate(zip(self._batch_generators, self._training, strict=True)):
                numbers = rng.integers(cell.points or len(training), size=shape)
                drawn[:, replica] = (numbers if cell.points else training[numbers]).reshape(len(drawn), -1)
            self._drawn = torch.from_numpy(drawn).to(self.device)
        index = self._drawn[turn, :, : self.honest * cell.batch_size].contiguous()
        self._batch, labels = self._training_points(index, memory=self._batch)
        return self._batch, labels

    def _training_points(
        self, index: Tensor, replicas: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples and labels of what was drawn: samples of the training fold, or points that are made from them."""
        if not self.cell.points:
            return self._samples(index, replicas, memory), self._labels[index]
        chosen = range(self.replicas) if replicas is None else replicas.tolist()
        folds = [torch.from_numpy(self._training[replica]).to(self.device) for replica in chosen]
        sources = torch.stack([fold[numbers % len(fold)] for fold, numbers in zip(folds, index, strict=True)])
        rounds = torch.stack([numbers // len(fold) for fold, numbers in zip(folds, index, strict=True)])
        points = index.where(rounds > 0, 0)  # the first round through the fold is the fold itself
        images = self._samples(sources, replicas, memory)
        # A block at a time, one replica's after the other's: the cache holds it, and a replica is the same alone.
        for image, number in zip(images, points, strict=True):
            for some, numbers in zip(image.split(MADE_AT_ONCE), number.split(MADE_AT_ONCE), strict=True):
                some.copy_(deform(some, numbers))
        return images, self._labels[sources]

    def _full_gradient(self, replicas: Tensor, samples: int | None = None) -> Tensor:
        """The gradient of the mean loss over some replicas' whole training folds, flat [r, d].

        With `samples`, an estimate from that many samples of the fold, drawn anew by the attack's generator.
        """
        return self._mean_gradient(replicas, samples, None)

    def _mean_gradient(self, replicas: Tensor, samples: int | None, squares: Tensor | None) -> Tensor:
        """As above; `squares [R]` is increased by the mean squared length of a single sample's gradient."""
        everyone = len(replicas) == self.replicas
        own = self.parameters if everyone else [(weight[replicas], bias[replicas]) for weight, bias in self.parameters]
        totals = [(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in own]
        for x, labels, shares in self._training_samples(replicas, samples):
            each = worker_gradients(self.model, own, x, labels, workers=x.shape[1], shares=shares)
            if squares is not None:
                squares += (each.squared_norms / shares.where(shares > 0, 1)).sum(-1)
            for (weight, bias), inputs, deltas in zip(totals, each.inputs, each.deltas, strict=True):
                models.add_outer_sums(weight, inputs, deltas)
                bias += deltas.sum(1)
        return torch.cat([part.flatten(1) for pair in totals for part in pair], 1)

    def _training_samples(self, replicas: Tensor, samples: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Samples [r, c, features], labels [r, c] and shares [r, c], block by block; a replica's shares sum to 1."""
        if samples is not None:
            drawn = []
            for replica in replicas.tolist():
                training = self._training[replica]
                drawn.append(training[self._attack_generators[replica].integers(len(training), size=samples)])
            for index in torch.from_numpy(np.stack(drawn)).to(self.device).split(SAMPLES_AT_ONCE, 1):
                fits = self._estimate is not None and self._estimate.shape[:2] == index.shape
                self._estimate = self._samples(index.contiguous(), replicas, self._estimate if fits else None)
                yield self._estimate, self._labels[index], self._empty(*index.shape).fill_(1 / samples)
            return
        x, labels, shares = self._folds
        every = torch.arange(labels.shape[1], device=self.device)[None]
        for first in range(0, labels.shape[1], SAMPLES_AT_ONCE):
            block = slice(first, first + SAMPLES_AT_ONCE)
            some = self._samples(every[:, block]).expand(self.replicas, -1, -1) if x is None else x[:, block]
            of_some, share = labels[:, block], shares[:, block]
            if len(replicas) < self.replicas:
                some, of_some, share = some[replicas], of_some[replicas], share[replicas]
            yield some, of_some, share

    @cached_property
    def _folds(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """Every replica's whole training fold: samples [R, N, features], labels [R, N], shares [R, N].

        Where a fold is standardised, it is a small copy. Otherwise the whole data set stands for it, without being
        copied (None), and the samples outside the fold have share 0.
        """
        if self.dataset.standardise:
            longest = max(len(training) for training in self._training)
            padded = np.stack([np.pad(training, (0, longest - len(training))) for training in self._training])
            index = torch.from_numpy(padded).to(self.device)
            x = self._samples(index)
            labels, shares = self._labels[index], x.new_zeros(index.shape)
            for row, training in zip(shares, self._training, strict=True):
                row[: len(training)] = 1 / len(training)
            return x, labels, shares
        shares = self._empty(self.replicas, len(self._labels)).zero_()
        for row, training in zip(shares, self._training, strict=True):
            row[torch.from_numpy(training).to(self.device)] = 1 / len(training)
        return None, self._labels.expand(self.replicas, -1), shares

    def _wrong_model(self) -> Tensor:
        """The parameters [R, d] of the same model, trained to answer the class after the right one."""
        if self._target is None:
            parameters = self._initial_parameters("wrong model")
            generators = [np.random.default_rng(stream(seed, "wrong model's batches")) for seed in self.seeds]
            ones = self._empty(self.replicas, 1).fill_(1)
            for _ in range(WRONG_MODEL_ROUNDS):
                drawn = [
                    training[rng.integers(len(training), size=WRONG_MODEL_BATCH)]
                    for rng, training in zip(generators, self._training, strict=True)
                ]
                index = torch.from_numpy(np.stack(drawn)).to(self.device)
                wrong = (self._labels[index] + 1) % self.dataset.classes
                gradients = worker_gradients(self.model, parameters, self._samples(index), wrong, workers=1)
                self._descend_by_samples(WRONG_MODEL_RATE, gradients, ones, True, parameters)
            self._target = torch.cat([part.flatten(1) for pair in parameters for part in pair], 1)
        return self._target


def _standardisation(training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to subtract and what to multiply with: the training fold's mean and inverse deviation (1 where constant)."""
    values = training.astype(np.float64)
    deviation = values.std(0)
    return values.mean(0), 1 / np.where(deviation > 0, deviation, 1)
