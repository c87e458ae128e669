"""The gradients of all workers and replicas, without forming them.

For a layer that is linear in its parameters, one sample's gradient is the outer product of the layer's input x and the
derivative delta of the sample's loss at its output. With worker i's mini-batch gradient `G_i = 1/b sum_{s in i} g_s`,

    <G_i, G_j> = 1/b^2 sum_{s in i, t in j} sum over layers (x_s . x_t + 1) (delta_s . delta_t)

where the 1 is the bias's, and `sum_i w_i G_i` is one backward product with the samples weighted by `w_i / b`. Where
n b is large against a layer, forming that layer's gradients costs less: the branch is chosen per layer by counting
multiply-adds (Goodfellow, 2015; Bu et al., 2022, "mixed ghost norms"). A convolution is such a layer after unfolding:
a sample then has one row per position of the window instead of a single one, and its gradient is the sum over them.

Flat vectors `[..., d]` hold the layers in order, each weight `[in, out]` row by row, then its bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from krum.models import Model

Branch = Literal["samples", "gradients"]

# Numbers of a layer's gradients that are formed at a time, in whole replicas: a CPU's cache should hold them.
FORMED_AT_ONCE = {"cpu": 2**21, "cuda": 2**28}


@dataclass(frozen=True)
class Part:
    """A weighted sum of gradients in some replicas: per layer `scale x^T delta`; for the bias, delta's scaled sum."""

    replicas: Tensor | None  # their indices, or None for all of them
    scale: float
    factors: list[tuple[Tensor, Tensor]]  # per layer x [r, s, in] and delta [r, s, out]


@dataclass(frozen=True)
class WorkerGradients:
    """The mini-batch gradients of h workers in R replicas, in factors, worker by worker and sample by sample.

    Layers have S = h b P rows, with P = 1 for a fully connected layer and P positions for a convolution.
    """

    inputs: Sequence[Tensor]  # per layer, [R, S, in]
    deltas: Sequence[Tensor]  # per layer, [R, S, out]
    workers: int
    batch_size: int  # samples per worker
    branch: Branch | None = None  # forces one way of computing the Gram matrix, for tests

    @cached_property
    def gram(self) -> Tensor:
        """Inner products `<G_i, G_j>`, [R, h, h] float64."""
        replicas, h = self.inputs[0].shape[0], self.workers
        by_samples: dict[int, Tensor] = {}  # by the number of rows, layers with equally many together
        gram = self.inputs[0].new_zeros((replicas, h, h), dtype=torch.float64)
        for x, delta in zip(self.inputs, self.deltas, strict=True):
            rows = x.shape[1] // h
            if (self.branch or cheaper_branch(h, rows, x.shape[-1], delta.shape[-1])) == "samples":
                kernel = x.bmm(x.mT).add_(1).mul_(delta.bmm(delta.mT))
                by_samples[rows] = by_samples[rows].add_(kernel) if rows in by_samples else kernel
            else:
                at_once = max(1, FORMED_AT_ONCE[x.device.type] // (h * x.shape[-1] * delta.shape[-1]))
                for part, some, of_some in zip(
                    gram.split(at_once), x.split(at_once), delta.split(at_once), strict=True
                ):
                    weight, bias = self._sums(some, of_some)
                    part += (weight.bmm(weight.mT) + bias.bmm(bias.mT)).double() / self.batch_size**2
        for rows, kernel in by_samples.items():
            gram += kernel.view(replicas, h, rows, h, rows).sum((2, 4)) / self.batch_size**2
        return gram

    def weighted(self, weights: Tensor, common: bool = False) -> list["Part"]:
        """`sum_i w_i G_i` for `weights [R, h]`, in groups of replicas and as two factors per layer.

        Workers without weight are not carried along: for Krum, all but one. Replicas with different numbers of weighted
        workers form groups of their own, since the length of a sum decides its rounding. `common` says that all weights
        are the same by construction, which saves a pass.
        """
        if common:
            factors = list(zip(self.inputs, self.deltas, strict=True))
            return [Part(None, weights[0, 0].item() / self.batch_size, factors)]
        counts = (weights != 0).sum(-1)
        distinct = counts.unique().tolist()
        if len(distinct) == 1:
            return [self._weighted(None, weights, distinct[0])] if distinct[0] else []
        groups = [(count, (counts == count).nonzero().squeeze(-1)) for count in distinct if count]
        return [self.of_replicas(group)._weighted(group, weights[group], count) for count, group in groups]

    def _weighted(self, group: Tensor | None, weights: Tensor, used: int) -> "Part":
        replicas, h = weights.shape
        if used < h:
            chosen = (weights != 0).byte().sort(dim=-1, descending=True, stable=True).indices[:, :used]
            weights = weights.gather(1, chosen)
            replica = torch.arange(replicas, device=weights.device)[:, None]
        per_worker = weights / self.batch_size
        factors = []
        for x, delta in zip(self.inputs, self.deltas, strict=True):
            rows = x.shape[1] // h
            if used < h:
                x = x.view(replicas, h, rows, -1)[replica, chosen].flatten(1, 2)
                delta = delta.view(replicas, h, rows, -1)[replica, chosen].flatten(1, 2)
            factors.append((x, delta * per_worker.repeat_interleave(rows, 1)[..., None]))
        return Part(group, 1.0, factors)

    def inner_products(self, vectors: Tensor) -> Tensor:
        """`<G_i, E_k>` with flat `vectors [R, e, d]`: [R, h, e] float64."""
        replicas, count, _ = vectors.shape
        total = self.inputs[0].new_zeros((replicas, self.workers, count), dtype=torch.float64)
        for (x, delta), (weight, bias) in zip(
            zip(self.inputs, self.deltas, strict=True), self._unflatten(vectors), strict=True
        ):
            at_output = x[:, None] @ weight + bias[:, :, None]
            by_row = (at_output * delta[:, None]).sum(-1).mT
            total += by_row.double().view(replicas, self.workers, -1, count).sum(2) / self.batch_size
        return total

    @property
    def squared_norms(self) -> Tensor:
        """`||G_i||^2`, [R, h] float64, without the other inner products."""
        total = self.inputs[0].new_zeros((self.inputs[0].shape[0], self.workers), dtype=torch.float64)
        for x, delta in zip(self.inputs, self.deltas, strict=True):
            if x.shape[1] == self.workers:  # one row each: the outer product's norm is the product of the norms
                norms = torch.linalg.vector_norm(x, dim=-1).square() + 1
                total += (norms * torch.linalg.vector_norm(delta, dim=-1).square()).double() / self.batch_size**2
            else:
                total += sum(part.square().sum(-1).double() for part in self._formed(x, delta))
        return total

    def vectors(self) -> Tensor:
        """The gradients themselves, flat: [R, h, d]."""
        formed = [self._formed(x, delta) for x, delta in zip(self.inputs, self.deltas, strict=True)]
        return torch.cat([part for pair in formed for part in pair], -1)

    def of_replicas(self, chosen: Tensor) -> "WorkerGradients":
        """The same for some replicas only."""
        return WorkerGradients(
            [x[chosen] for x in self.inputs],
            [delta[chosen] for delta in self.deltas],
            self.workers,
            self.batch_size,
            self.branch,
        )

    def _formed(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's gradients, flat: weights [R, h, in out] and biases [R, h, out]."""
        weight, bias = self._sums(x, delta)
        return weight / self.batch_size, bias / self.batch_size

    def _sums(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The same times the batch size."""
        replicas, h, rows = x.shape[0], self.workers, x.shape[1] // self.workers
        x, delta = x.reshape(replicas * h, rows, -1), delta.reshape(replicas * h, rows, -1)
        return x.mT.bmm(delta).view(replicas, h, -1), delta.sum(1).view(replicas, h, -1)

    def _unflatten(self, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
        return unflatten(vectors, [(x.shape[-1], d.shape[-1]) for x, d in zip(self.inputs, self.deltas, strict=True)])


def worker_gradients(
    model: Model,
    parameters: list[tuple[Tensor, Tensor]],
    samples: Tensor,
    labels: Tensor,
    workers: int,
    branch: Branch | None = None,
    shares: Tensor | None = None,
) -> WorkerGradients:
    """Forward and backward pass of the mean cross-entropy of each worker's mini-batch.

    `samples [R, workers * b, features]` and `labels [R, workers * b]`, worker by worker; `shares`, alike, are factors
    of the samples' losses.
    """
    inputs, activations, logits = model.forward(parameters, samples)
    at_logits = logits.softmax(-1)
    labels = labels[..., None]
    at_logits.scatter_add_(-1, labels, at_logits.new_full((), -1).expand(labels.shape))
    if shares is not None:
        at_logits *= shares[..., None]
    deltas = model.backward(parameters, activations, at_logits)
    return WorkerGradients(inputs, deltas, workers, samples.shape[1] // workers, branch)


def cheaper_branch(workers: int, rows: int, fan_in: int, fan_out: int) -> Branch:
    """The way to a layer's Gram matrix that takes fewer multiply-adds: over pairs of rows, or formed gradients.

    `rows` is what each worker has in the layer: its samples, times the positions of a convolution.
    """
    over_pairs = (workers * rows) ** 2 * (fan_in + fan_out)
    formed = (workers * rows + workers**2) * fan_in * fan_out
    return "samples" if over_pairs <= formed else "gradients"


def unflatten(vectors: Tensor, layers: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
    """Views of flat `vectors [..., d]` as each layer's weight `[..., in, out]` and bias `[..., out]`."""
    parts, start = [], 0
    for fan_in, fan_out in layers:
        end = start + fan_in * fan_out
        weight = vectors[..., start:end].unflatten(-1, (fan_in, fan_out))
        parts.append((weight, vectors[..., end : end + fan_out]))
        start = end + fan_out
    return parts
