"""The simulation as a loop: folds, draws, one autograd gradient per worker, vectors, and rules by their definitions.

It shares no code with `krum.simulation`, and computes in float64.
"""

import itertools
import zlib
from statistics import NormalDist

import numpy as np
import oracle
import torch
from sklearn.model_selection import StratifiedKFold


def generator(seed, role):
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(role.encode()),)))


class Reference:
    """One seed of a cell whose model is an mlp."""

    def __init__(self, cell, samples, seed, noise=torch.float64, standardise=True):
        self.cell, self.seed, self.round = cell, seed, 0
        partition = StratifiedKFold(cell.folds, shuffle=True, random_state=seed // cell.folds)
        splits = list(partition.split(np.zeros(len(samples.labels)), samples.labels))
        self.training, self.held_out = splits[seed % cell.folds]
        features = samples.features.astype(np.float64)
        if standardise:
            deviation = features[self.training].std(0)
            features = (features - features[self.training].mean(0)) / np.where(deviation > 0, deviation, 1)
        self.features, self.labels = torch.from_numpy(features), torch.from_numpy(samples.labels)
        self.classes = int(samples.labels.max()) + 1
        sizes = [features.shape[1], *dict(cell.model_options)["hidden"], self.classes]
        self.layers = [torch.nn.Linear(a, b, dtype=torch.float64) for a, b in itertools.pairwise(sizes)]
        rng = generator(seed, "initial weights")
        with torch.no_grad():
            for layer in self.layers:
                bound = layer.in_features**-0.5
                layer.weight.copy_(torch.from_numpy(rng.uniform(-bound, bound, layer.weight.T.shape)).T)
                layer.bias.copy_(torch.from_numpy(rng.uniform(-bound, bound, layer.bias.shape)))
        self.batches, self.coins = generator(seed, "mini-batches"), generator(seed, "rule")
        self.faults = generator(seed, "faults")
        sequence = np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(b"attack noise"),))
        self.noise = torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        self.noise_dtype = noise  # torch draws other normal numbers in float32
        self.previous, self.momentum, self.stale = 0.0 * self.parameters(), None, None

    def parameters(self):
        parts = [part for layer in self.layers for part in (layer.weight.detach().T.flatten(), layer.bias.detach())]
        return torch.cat(parts).numpy().copy()

    def set_parameters(self, flat):
        flat = torch.as_tensor(flat, dtype=torch.float64)
        with torch.no_grad():
            for layer in self.layers:
                n, m = layer.in_features, layer.out_features
                layer.weight.copy_(flat[: n * m].view(n, m).T)
                layer.bias.copy_(flat[n * m : n * m + m])
                flat = flat[n * m + m :]

    def logits(self, index):
        modules = [module for layer in self.layers for module in (layer, torch.nn.ReLU())]
        return torch.nn.Sequential(*modules[:-1])(self.features[index])

    def gradient(self, index, relabelled=False):
        """Of the mean cross-entropy of some samples, flat."""
        labels = self.classes - 1 - self.labels[index] if relabelled else self.labels[index]
        loss = torch.nn.functional.cross_entropy(self.logits(index), labels)
        parts = torch.autograd.grad(loss, [part for layer in self.layers for part in (layer.weight, layer.bias)])
        return torch.cat([part.t().flatten() for part in parts]).numpy()

    def evaluate(self):
        """The error and the loss on the held-out fold."""
        with torch.no_grad():
            logits, labels = self.logits(self.held_out), self.labels[self.held_out]
        return 1 - (logits.argmax(-1) == labels).double().mean(), torch.nn.functional.cross_entropy(logits, labels)

    def send(self, target=None):
        """The n vectors of the next round."""
        cell, n = self.cell, self.cell.workers
        if self.round % 50 == 0:
            self.drawn = self.training[self.batches.integers(len(self.training), size=(50, n, cell.batch_size))]
        batches = self.drawn[self.round % 50]
        vectors = np.stack([self.gradient(batch) for batch in batches])
        byzantine = np.arange(n) >= n - cell.byzantine
        if cell.worker_momentum:
            beta = cell.worker_momentum
            self.momentum = vectors if self.momentum is None else beta * self.momentum + (1 - beta) * vectors
            vectors = np.where(byzantine[:, None], vectors, self.momentum)
        if cell.fault_rate:
            byzantine = self.faults.random(n) < cell.fault_rate
            byzantine[0] &= not byzantine.all()
        if byzantine.any():
            vectors[byzantine] = self.attack(vectors[~byzantine], vectors[byzantine], batches[byzantine], target)
        return vectors

    def attack(self, honest, own, batches, target):
        """What f attackers send, one row or f rows, by the attacks' definitions."""
        name, options = self.cell.attack, dict(self.cell.attack_options)
        (h, d), f, mean = honest.shape, len(own), honest.mean(0)
        n = h + f
        if name == "gaussian":
            deviation = options.get("standard_deviation", 200.0)
            count = 1 if self.cell.aggregator == "average" else f  # averaging draws their sum
            drawn = torch.empty(count, d, dtype=self.noise_dtype).normal_(generator=self.noise).double().numpy()
            return deviation * drawn / (np.sqrt(f) if count == 1 else 1)
        if name == "omniscient":
            gradient = self.gradient(self.training)
            return -options.get("length", 100.0) * gradient / np.linalg.norm(gradient)
        if name == "sign-flip":
            return -mean
        if name == "inner-product-manipulation":
            return -0.5 * mean
        if name == "barycentre-collusion":
            return np.stack([*[-mean] * (f - 1), n * -mean - honest.sum(0) - (f - 1) * -mean])
        if name == "steer":
            return (n * (self.parameters() - target) / self.cell.learning_rate - honest.sum(0)) / f
        if name == "a-little-is-enough":
            return mean - NormalDist().inv_cdf((h - (n // 2 + 1 - f)) / h) * honest.std(0)
        if name == "mimic":
            return honest[0]
        if name == "label-flip":
            return np.stack([self.gradient(batch, relabelled=True) for batch in batches])
        if name == "wrong-scale":
            return 100 * own
        if name == "crash":
            return 0 * own
        if name == "nan":
            return own + np.nan
        assert name == "stale"
        self.stale = own if self.round % 50 == 0 else self.stale
        return self.stale

    def aggregate(self, vectors):
        """What the cell's rule makes of them."""
        name, f, n = self.cell.aggregator, self.cell.declared_f, len(vectors)
        coin = self.coins.uniform() if name == "1-p-krum" else None
        if name == "average" or (coin is not None and coin < min(1.0, (self.round + 1) / 500)):
            return vectors.mean(0)
        if name in ("median", "trimmed-mean"):
            ordered = np.sort(np.where(np.isnan(vectors), np.inf, vectors), 0)
            return np.median(ordered, 0) if name == "median" else ordered[f : n - f].mean(0)
        if name == "geometric-median":
            finite = vectors[np.isfinite(vectors).all(1)]
            point = finite.mean(0)
            for _ in range(5000):
                weights, last = 1 / np.maximum(np.linalg.norm(finite - point, axis=1), 1e-12), point
                point = weights @ finite / weights.sum()
                if np.abs(point - last).max() < 1e-10:
                    break
            return point
        if name in ("bulyan", "nnm-krum"):
            return np.array({"bulyan": oracle.bulyan, "nnm-krum": oracle.nnm_krum}[name](vectors.tolist(), f))
        if name == "centred-clipping":
            return np.array(oracle.centred_clipping(vectors.tolist(), self.previous, 1.0, 3))
        scores = oracle.SCORES["krum" if name == "1-p-krum" else name](vectors.tolist(), f)
        return vectors[oracle.chosen(scores, n - f if name == "multi-krum" else 1)].mean(0)

    def step(self, target=None):
        """One round; returns the aggregate."""
        aggregate = self.aggregate(self.send(target))
        self.set_parameters(self.parameters() - self.cell.learning_rate * aggregate)
        self.previous, self.round = aggregate, self.round + 1
        return aggregate
