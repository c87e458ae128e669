"""The synchronous parameter-server loop, many replicas (seeds) at once, in Gram space.

Each replica draws from its own generators, one named stream per role, and no operation mixes replicas: its curve does
not depend on which others run beside it, nor on how often it is evaluated. Honest workers come first in the order of
workers, Byzantine ones last.
"""

import os
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from krum import datasets, distances, models
from krum.adversary import Adversary, ByzantineVectors
from krum.aggregators import AGGREGATORS
from krum.attacks import ATTACKS
from krum.datasets import DATASETS, Samples
from krum.errors import InputError
from krum.experiment import Cell
from krum.gradients import Branch, WorkerGradients, unflatten, worker_gradients
from krum.registry import lookup

# Without this, MKL's matrix products depend on how their operands are aligned in memory, and so a replica's last bits
# on its place in the batch. MKL reads it at its first product; it costs no measurable time.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

ROUNDS_DRAWN_AT_ONCE = 50
SAMPLES_AT_ONCE = 4096  # of a whole training fold, for its gradient

COLUMNS = ("seed", "round", "test_error", "test_loss", "byzantine_weight", "diverged")


def stream(seed: int, role: str) -> np.random.SeedSequence:
    """The seed sequence of one role ("folds", "initial weights", "mini-batches", "attack") of one seed."""
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(role.encode()),))


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises InputError for "cuda" without CUDA."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: found {name!r}; give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch finds no CUDA device; give auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def simulate(
    cell: Cell,
    samples: Samples | None = None,
    *,
    device: str = "auto",
    seeds: Iterable[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Run one cell and return its curves as columns (see COLUMNS), ordered by seed, then round.

    `seeds` is a subset of the cell's, all of them by default; `progress` is told every recorded round.
    `byzantine_weight` is the mean share of the aggregate's weight given to Byzantine vectors since the last recorded
    round: NaN at round 0, and for rules that have no weights.
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
        self.round = 0
        self._load(datasets.load(cell.dataset) if samples is None else samples)
        self._initialise()
        self._recorded_round = 0
        self._byzantine_weight = torch.zeros(self.replicas, dtype=torch.float64, device=self.device)  # since then

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
        rate = self.cell.learning_rate
        if self.rule.sees == "vectors":
            vectors = gradients.vectors()
            if byzantine is not None:
                vectors = torch.cat([vectors, byzantine.vectors()], 1)
            self._descend(rate, self.rule(vectors, self.cell.declared_f, **self.rule_options))
            self._byzantine_weight += torch.nan
        else:
            weights = self.weigh(gradients, byzantine)
            of_honest, of_byzantine = weights[:, : self.honest], weights[:, self.honest :]
            self._byzantine_weight += of_byzantine.sum(-1)
            if byzantine is not None:
                coefficients, vector = byzantine.weighted(of_byzantine)
                of_honest = of_honest if coefficients is None else of_honest + coefficients
                if vector is not None:
                    self._descend(rate, vector)
            self._descend_by_samples(rate, gradients, of_honest)
        self.round += 1

    def send(self) -> tuple[WorkerGradients, ByzantineVectors | None]:
        """What the workers send in this round: the honest gradients, and what the Byzantine workers make of them."""
        samples, labels = self._next_batch()
        gradients = worker_gradients(self.model, self.parameters, samples, labels, self.honest, self.branch)
        if not self.cell.byzantine:
            return gradients, None
        adversary = Adversary(
            gradients,
            self.cell.byzantine,
            self._full_gradient,
            self._attack_generators,
            self._attack_noise,
            self.model.dimension,
        )
        return gradients, self.attack(adversary, **self.attack_options)

    def weigh(self, gradients: WorkerGradients, byzantine: ByzantineVectors | None) -> Tensor:
        """The rule's weights [R, n] for what the workers sent, from inner products alone."""
        n, h = self.cell.workers, self.honest
        if self.rule.fixed_weights:
            geometry = torch.zeros(self.replicas, n, n, dtype=torch.float64, device=self.device)
        else:
            honest = gradients.gram
            gram = honest.new_empty(self.replicas, n, n)
            gram[:, :h, :h] = honest
            if byzantine is not None:
                with_honest, among = byzantine.inner_products()
                gram[:, :h, h:], gram[:, h:, :h], gram[:, h:, h:] = with_honest, with_honest.mT, among
            geometry = distances.from_gram(gram)
        return self.rule(geometry, self.cell.declared_f, **self.rule_options).to(self.dtype)

    def _descend_by_samples(self, rate: float, gradients: WorkerGradients, weights: Tensor) -> None:
        for group, factors in gradients.weighted(weights):
            for (weight, bias), (x, delta) in zip(self.parameters, factors, strict=True):
                if group is None:
                    weight.baddbmm_(x.mT, delta, alpha=-rate)
                    bias.sub_(delta.sum(1), alpha=rate)
                else:
                    weight[group] = weight[group].baddbmm_(x.mT, delta, alpha=-rate)
                    bias[group] = bias[group].sub_(delta.sum(1), alpha=rate)

    def _descend(self, rate: float, vector: Tensor) -> None:
        for (weight, bias), (of_weight, of_bias) in zip(
            self.parameters, unflatten(vector, self.model.layers), strict=True
        ):
            weight.sub_(of_weight, alpha=rate)
            bias.sub_(of_bias, alpha=rate)

    # ---------------------------------------------------------------------------------------------- the recording

    @torch.inference_mode()
    def record(self) -> dict[str, list]:
        """One value per replica of every column of COLUMNS, and a fresh start for `byzantine_weight`.

        A diverged replica (parameters that are not finite) counts at the error that its predictions give: a NaN among
        its logits is the greatest of them, the first NaN if there are several.
        """
        errors, losses = [], []
        for replica, (samples, labels) in enumerate(self._held_out):
            own = [(weight[replica : replica + 1], bias[replica : replica + 1]) for weight, bias in self.parameters]
            logits = self.model.forward(own, samples[None])[1][0]
            errors.append(1 - (logits.argmax(-1) == labels).double().mean().item())
            losses.append(torch.nn.functional.cross_entropy(logits, labels).item())
        finite = torch.stack([part.flatten(1).isfinite().all(-1) for pair in self.parameters for part in pair]).all(0)
        weight = self._byzantine_weight / (self.round - self._recorded_round)  # 0 / 0 is NaN at the first round
        self._recorded_round = self.round
        self._byzantine_weight.zero_()
        return {
            "seed": self.seeds,
            "round": [self.round] * self.replicas,
            "test_error": errors,
            "test_loss": losses,
            "byzantine_weight": weight.tolist(),
            "diverged": (~finite).tolist(),
        }

    # ------------------------------------------------------------------------------------ data, weights, mini-batches

    def _load(self, samples: Samples) -> None:
        """Split every replica's folds; seed s holds out fold `s mod folds` of partition `s div folds`."""
        cell = self.cell
        self._features = torch.from_numpy(samples.features).to(self.device, self.dtype)
        self._labels = torch.from_numpy(samples.labels).to(self.device)
        partitions = {
            partition: datasets.folds(samples.labels, cell.folds, partition)
            for partition in sorted({seed // cell.folds for seed in self.seeds})
        }
        splits = [partitions[seed // cell.folds][seed % cell.folds] for seed in self.seeds]
        self._training = [training for training, _ in splits]
        self._shift = self._scale = None
        if self.dataset.standardise:
            fitted = [_standardisation(samples.features[training]) for training in self._training]
            self._shift, self._scale = (
                torch.from_numpy(np.stack(part))[:, None].to(self.device, self.dtype)
                for part in zip(*fitted, strict=True)
            )
        self._held_out = [
            (self._prepared(replica, torch.from_numpy(held_out)), self._labels[torch.from_numpy(held_out)])
            for replica, (_, held_out) in enumerate(splits)
        ]

    def _prepared(self, replica: int, index: Tensor) -> Tensor:
        """Samples by index, as the replica's training fold standardises them."""
        samples = self._features[index.to(self.device)]
        if self._shift is None or self._scale is None:
            return samples
        return (samples - self._shift[replica]) * self._scale[replica]

    def _initialise(self) -> None:
        starts = [self.model.initialise(np.random.default_rng(stream(seed, "initial weights"))) for seed in self.seeds]
        self.parameters = [
            (self._stacked([weight for weight, _ in layer]), self._stacked([bias for _, bias in layer]))
            for layer in zip(*starts, strict=True)
        ]
        self._batch_generators = [np.random.default_rng(stream(seed, "mini-batches")) for seed in self.seeds]
        self._attack_generators = [np.random.default_rng(stream(seed, "attack")) for seed in self.seeds]
        self._attack_noise = [
            torch.Generator(self.device).manual_seed(int(stream(seed, "attack noise").generate_state(1, np.uint64)[0]))
            for seed in self.seeds
        ]
        self._drawn = torch.empty(0)

    def _stacked(self, arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device, self.dtype)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        """Samples [R, h b, features] and labels [R, h b], drawn with replacement from each training fold.

        All n workers draw, and the honest h are used: cells that differ in the attack see the same mini-batches.
        """
        cell = self.cell
        turn = self.round % ROUNDS_DRAWN_AT_ONCE
        if turn == 0:
            shape = (ROUNDS_DRAWN_AT_ONCE, cell.workers, cell.batch_size)
            drawn = np.empty((ROUNDS_DRAWN_AT_ONCE, self.replicas, self.honest * cell.batch_size), np.int64)
            for replica, (rng, training) in enumerate(zip(self._batch_generators, self._training, strict=True)):
                of_all = training[rng.integers(len(training), size=shape)]
                drawn[:, replica] = of_all[:, : self.honest].reshape(ROUNDS_DRAWN_AT_ONCE, -1)
            self._drawn = torch.from_numpy(drawn).to(self.device)
        index = self._drawn[turn]
        samples = self._features[index]
        if self._shift is not None and self._scale is not None:
            samples = samples.sub_(self._shift).mul_(self._scale)
        return samples, self._labels[index]

    def _full_gradient(self) -> Tensor:
        """The gradient of the mean loss over each replica's whole training fold, flat [R, d]."""
        rows = []
        for replica, training in enumerate(self._training):
            own = [(weight[replica : replica + 1], bias[replica : replica + 1]) for weight, bias in self.parameters]
            total = torch.zeros(self.model.dimension, dtype=self.dtype, device=self.device)
            for index in torch.from_numpy(training).split(SAMPLES_AT_ONCE):
                samples = self._prepared(replica, index)[None]
                labels = self._labels[index.to(self.device)][None]
                part = worker_gradients(self.model, own, samples, labels, workers=1).vectors()[0, 0]
                total += part * (len(index) / len(training))
            rows.append(total)
        return torch.stack(rows)


def _standardisation(training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to subtract and what to multiply with: the training fold's mean and inverse deviation (1 where constant)."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(training.astype(np.float64))
    return scaler.mean_, 1 / scaler.scale_
