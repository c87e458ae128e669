"""What the replicas of a cell draw: folds, initial parameters and mini-batches.

Every seed has one named stream of random numbers per role, so that what it draws depends neither on the other seeds
nor on the other roles.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from krum.simulation import datasets, models
from krum.simulation.datasets import Dataset, Samples
from krum.simulation.deformations import deform
from krum.simulation.models import Model, Parameters
from krum.simulation.parameters import Cell

ROUNDS_AT_ONCE = 50  # of mini-batches: small draws are slow one by one
DEFORMED_AT_ONCE = 250  # images


def stream(seed: int, role: str) -> np.random.SeedSequence:
    """The seed sequence of one role ("folds", "initial weights", "mini-batches", "attack", "rule" ...) of one seed."""
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(role.encode()),))


def generators(seeds: Sequence[int], role: str) -> list[np.random.Generator]:
    """One generator per seed."""
    return [np.random.default_rng(stream(seed, role)) for seed in seeds]


def initial_parameters(
    model: Model, seeds: Sequence[int], device: torch.device, dtype: torch.dtype, role: str = "initial weights"
) -> Parameters:
    """Each layer's weight [R, in, out] and bias [R, out]."""
    starts = [models.initialise(model, rng) for rng in generators(seeds, role)]
    parameters = []
    for layer in zip(*starts, strict=True):
        weight, bias = (torch.from_numpy(np.stack(parts)).to(device, dtype) for parts in zip(*layer, strict=True))
        parameters.append((weight, bias))
    return parameters


@dataclass(frozen=True)
class Folds:
    """The data as every replica sees it: seed s holds out fold `s mod folds` of partition `s div folds`."""

    features: Tensor  # [R, N, p], standardised by each replica's training fold, or [1, N, p], the same for all
    labels: Tensor  # [N]
    training: list[np.ndarray]  # each replica's sample numbers
    held_out: list[np.ndarray]

    def of(self, replicas: slice) -> "Folds":
        """Those of some replicas."""
        if replicas == slice(None):
            return self  # and what it keeps
        features = self.features if len(self.features) == 1 else self.features[replicas]
        return Folds(features, self.labels, self.training[replicas], self.held_out[replicas])

    def samples(self, index: Tensor) -> Tensor:
        """The samples with numbers `index [R, s]` as each replica sees them: [R, s, p]."""
        _, count, width = self.features.shape
        if len(self.features) > 1:
            index = index + count * torch.arange(len(self.features), device=index.device)[:, None]
        return self.features.view(-1, width).index_select(0, index.flatten()).view(*index.shape, width)

    def draw(self, count: int, rngs: Sequence[np.random.Generator]) -> Tensor:
        """The numbers of so many training samples, drawn with replacement by each replica's generator, [R, count]."""
        pairs = zip(self.training, rngs, strict=True)
        drawn = np.stack([training[rng.integers(len(training), size=count)] for training, rng in pairs])
        return torch.from_numpy(drawn).to(self.labels.device)

    def padded(self, folds: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Sample numbers `[R, longest fold]`, and which of them count: the others fill shorter folds up, [R, ...]."""
        longest = max(map(len, folds))
        index = torch.from_numpy(np.stack([np.resize(fold, longest) for fold in folds])).to(self.labels.device)
        lengths = torch.tensor([[len(fold)] for fold in folds], device=index.device)
        return index, torch.arange(longest, device=index.device) < lengths

    @cached_property
    def whole_training(self) -> tuple[Tensor, Tensor]:
        """The training samples' numbers `[R, longest fold]` and their shares of a mean over the fold."""
        index, inside = self.padded(self.training)
        return index, inside.to(self.features.dtype) / inside.sum(-1, keepdim=True)

    def majority_errors(self) -> list[float]:
        """Each replica's error of always answering its training fold's most frequent class."""
        labels = self.labels.cpu().numpy()
        answers = [np.bincount(labels[training]).argmax() for training in self.training]
        return [
            float((labels[held_out] != answer).mean()) for held_out, answer in zip(self.held_out, answers, strict=True)
        ]


def split(
    cell: Cell, dataset: Dataset, samples: Samples, seeds: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Folds:
    """Every replica's folds, and its samples, standardised where the data set says so."""
    partitions = {
        partition: datasets.folds(samples.labels, cell.folds, partition)
        for partition in sorted({seed // cell.folds for seed in seeds})
    }
    splits = [partitions[seed // cell.folds][seed % cell.folds] for seed in seeds]
    training = [chosen for chosen, _ in splits]
    features = torch.from_numpy(samples.features).to(device, dtype)[None]
    if dataset.standardise:
        values = samples.features.astype(np.float64)
        mean = np.stack([values[fold].mean(0) for fold in training])
        deviation = np.stack([values[fold].std(0) for fold in training])
        scale = 1 / np.where(deviation > 0, deviation, 1)
        shift, factor = (torch.from_numpy(part)[:, None].to(device, dtype) for part in (mean, scale))
        features = (features - shift).mul_(factor)
    labels = torch.from_numpy(samples.labels).to(device)
    return Folds(features, labels, training, [held_out for _, held_out in splits])


class MiniBatches:
    """The mini-batches of all n workers, b samples each, drawn with replacement from the training folds.

    All n workers draw, whoever is honest: cells that differ in the attack see the same mini-batches. With the cell's
    `points`, what is drawn are numbers of deformed images instead (see `krum.simulation.deformations`).
    """

    def __init__(self, cell: Cell, folds: Folds, seeds: Sequence[int]):
        self.folds, self.points = folds, cell.points
        self._shape = (ROUNDS_AT_ONCE, cell.workers, cell.batch_size)
        self._generators = generators(seeds, "mini-batches")
        self._block = -1  # of rounds, the one drawn last
        self._drawn = torch.empty(0)

    def numbers(self, round_: int) -> Tensor:
        """Of the samples or points of all workers, [R, n, b] int64, in rounds from 0 on that follow each other."""
        block, turn = divmod(round_, ROUNDS_AT_ONCE)
        if block != self._block:
            drawn = np.empty((ROUNDS_AT_ONCE, len(self._generators), *self._shape[1:]), np.int64)
            for replica, (rng, training) in enumerate(zip(self._generators, self.folds.training, strict=True)):
                numbers = rng.integers(self.points or len(training), size=self._shape)
                drawn[:, replica] = numbers if self.points else training[numbers]
            self._block, self._drawn = block, torch.from_numpy(drawn).to(self.folds.labels.device)
        return self._drawn[turn]

    def of(self, round_: int, workers: slice | np.ndarray, replicas: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Samples [r, w b, p] and labels [r, w b] of w workers in a round, worker by worker."""
        index, folds = self.numbers(round_)[replicas][:, workers].flatten(1), self.folds.of(replicas)
        if not self.points:
            return folds.samples(index), folds.labels[index]
        sources, points = [], []  # the first round through a fold is the fold itself
        for fold, numbers in zip(folds.training, index, strict=True):
            sources.append(torch.from_numpy(fold).to(index.device)[numbers % len(fold)])
            points.append(numbers.where(numbers >= len(fold), 0))
        source = torch.stack(sources)
        images = folds.samples(source)
        blocks = zip(
            images.flatten(0, 1).split(DEFORMED_AT_ONCE), torch.cat(points).split(DEFORMED_AT_ONCE), strict=True
        )
        return torch.cat([deform(*block) for block in blocks]).view_as(images), folds.labels[source]
