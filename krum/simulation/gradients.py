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

from krum.simulation.models import FEW_COLUMNS, Model, Parameters, affine

Branch = Literal["sample pairs", "formed gradients"]

FORMED_AT_ONCE = 400_000  # numbers of formed gradients: a CPU's cache should hold them
PAIRED_AT_ONCE = 100  # rows that meet all later ones in one product: fewer waste less on the symmetric half
PER_FORMED_NUMBER = 25  # what it costs to write and read it, in multiply-adds


@dataclass(frozen=True)
class WorkerGradients:
    """The mini-batch gradients of h workers in R replicas, in factors, worker by worker and sample by sample.

    Layers have S = h b P rows, with P = 1 for a fully connected layer and P positions for a convolution.
    """

    inputs: Sequence[Tensor]  # per layer, [R, S, in]
    deltas: Sequence[Tensor]  # per layer, [R, S, out]
    workers: int
    batch_size: int  # samples per worker

    @property
    def like(self) -> Tensor:
        """A tensor of the same dtype and device."""
        return self.deltas[0]

    @cached_property
    def gram(self) -> Tensor:
        """Inner products `<G_i, G_j>`, [R, h, h] float64."""
        gram = self.like.new_zeros((len(self.like), self.workers, self.workers), dtype=torch.float64)
        for x, delta in zip(self.inputs, self.deltas, strict=True):
            rows = x.shape[1] // self.workers
            if cheaper_branch(self.workers, rows, x.shape[-1], delta.shape[-1]) == "sample pairs":
                _add_sums_over_pairs(gram, x, delta)
            else:
                _add_products_of_formed(gram, x, delta)
        upper = gram.triu_()  # the triangles of a product may differ in their last bits, and ties would break
        return (upper + upper.triu(1).mT).div_(self.batch_size**2)

    def inner_products(self, vectors: Tensor) -> Tensor:
        """`<G_i, E_k>` with flat `vectors [R, e, d]`: [R, h, e] float64."""
        replicas, count, _ = vectors.shape
        total = self.like.new_zeros((replicas, self.workers, count), dtype=torch.float64)
        layers = unflatten(vectors, [(x.shape[-1], d.shape[-1]) for x, d in zip(self.inputs, self.deltas, strict=True)])
        for x, delta, (weight, bias) in zip(self.inputs, self.deltas, layers, strict=True):
            side_by_side = weight.transpose(1, 2).flatten(2)
            at_output = affine(x, side_by_side, bias.flatten(1)).unflatten(-1, (count, -1))
            by_row = at_output.mul_(delta[:, :, None]).sum(-1)
            total += by_row.double().view(replicas, self.workers, -1, count).sum(2) / self.batch_size
        return total

    @property
    def squared_norms(self) -> Tensor:
        """`||G_i||^2`, [R, h] float64, without the other inner products."""
        total = self.like.new_zeros((len(self.like), self.workers), dtype=torch.float64)
        for x, delta in zip(self.inputs, self.deltas, strict=True):
            x, delta = _by_worker(x, self.workers), _by_worker(delta, self.workers)
            total += (x @ x.mT).add_(1).mul_(delta @ delta.mT).sum((1, 2)).view_as(total)
        return total / self.batch_size**2

    def vectors(self) -> Tensor:
        """The gradients themselves, flat: [R, h, d]."""
        layers = zip(self.inputs, self.deltas, strict=True)
        return torch.cat([part for x, delta in layers for part in self._formed(x, delta)], -1)

    def of_replicas(self, chosen: Tensor) -> "WorkerGradients":
        """The same for some replicas only."""
        inputs, deltas = [x[chosen] for x in self.inputs], [delta[chosen] for delta in self.deltas]
        return WorkerGradients(inputs, deltas, self.workers, self.batch_size)

    def descend(self, parameters: Parameters, weights: Tensor, rate: float) -> None:
        """Subtract `rate sum_i w_i G_i` from the parameters, for `weights [R, h]`.

        A worker without weight counts for nothing, NaN or not, and costs nothing: for Krum, all but one.
        """
        weighted, order = weights != 0, None
        most = int(weighted.sum(-1).max())
        if most < self.workers:
            order = weighted.sort(dim=-1, descending=True, stable=True).indices[:, :most]
            weights, weighted = weights.gather(1, order), weighted.gather(1, order)
        unequal = not bool(weighted.all())  # replicas with fewer weighted workers than others
        scale = (weights / self.batch_size)[..., None]
        for (weight, bias), x, delta in zip(parameters, self.inputs, self.deltas, strict=True):
            x_of, delta_of = x.unflatten(1, (self.workers, -1)), delta.unflatten(1, (self.workers, -1))
            if order is not None:
                x_of, delta_of = _of_workers(x_of, order), _of_workers(delta_of, order)
            if unequal:
                nothing = ~weighted[..., None, None]
                x_of, delta_of = x_of.masked_fill(nothing, 0.0), delta_of.masked_fill(nothing, 0.0)
            scaled = (delta_of * scale[..., None]).flatten(1, 2)
            add_outer_sums(weight, x_of.flatten(1, 2), scaled, -rate)
            bias.sub_(scaled.sum(1), alpha=rate)

    def _formed(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's gradients, flat: weights [R, h, in out] and biases [R, h, out]."""
        x, delta = _by_worker(x, self.workers), _by_worker(delta, self.workers)
        delta = delta / self.batch_size
        weight, bias = x.mT.bmm(delta).flatten(1), delta.sum(1)
        return weight.unflatten(0, (-1, self.workers)), bias.unflatten(0, (-1, self.workers))


@dataclass(frozen=True)
class ExplicitGradients:
    """The same questions answered for given vectors: flat [R, h, d]."""

    flat: Tensor

    @property
    def workers(self) -> int:
        """h."""
        return self.flat.shape[1]

    @property
    def like(self) -> Tensor:
        """A tensor of the same dtype and device."""
        return self.flat

    @cached_property
    def gram(self) -> Tensor:
        """Inner products, [R, h, h] float64."""
        return self.flat.bmm(self.flat.mT).double()

    def inner_products(self, vectors: Tensor) -> Tensor:
        """With flat `vectors [R, e, d]`: [R, h, e] float64."""
        return self.flat.bmm(vectors.mT).double()

    def vectors(self) -> Tensor:
        """The vectors, flat: [R, h, d]."""
        return self.flat

    def of_replicas(self, chosen: Tensor) -> "ExplicitGradients":
        """The same for some replicas only."""
        return ExplicitGradients(self.flat[chosen])

    def descend(self, parameters: Parameters, weights: Tensor, rate: float) -> None:
        """Subtract `rate sum_i w_i V_i` from the parameters, for `weights [R, h]`."""
        subtract(parameters, weighted_sum(weights, self.flat), rate)


Gradients = WorkerGradients | ExplicitGradients


@dataclass(frozen=True)
class PartlyExplicit:
    """The gradients of the workers, but in some replicas explicit vectors in their place."""

    gradients: Gradients
    explicit: dict[int, ExplicitGradients]  # by replica, flat [1, h, d] each: a CPU's cache holds one, not all

    @cached_property
    def gram(self) -> Tensor:
        """Inner products, [R, h, h] float64."""
        gram = self.gradients.gram.clone()
        for replica, of_replica in self.explicit.items():
            gram[replica] = of_replica.gram[0]
        return gram

    def vectors(self) -> Tensor:
        """All vectors, flat: [R, h, d]."""
        vectors = self.gradients.vectors().clone()
        for replica, of_replica in self.explicit.items():
            vectors[replica] = of_replica.flat[0]
        return vectors

    def descend(self, parameters: Parameters, weights: Tensor, rate: float) -> None:
        """Subtract `rate sum_i w_i V_i` from the parameters, for `weights [R, h]`."""
        of_others = weights.clone()
        of_others[list(self.explicit)] = 0
        self.gradients.descend(parameters, of_others, rate)
        for replica, of_replica in self.explicit.items():
            one = slice(replica, replica + 1)
            of_replica.descend([(weight[one], bias[one]) for weight, bias in parameters], weights[one], rate)


def worker_gradients(
    model: Model,
    parameters: Parameters,
    samples: Tensor,
    labels: Tensor,
    workers: int,
    shares: Tensor | None = None,
) -> WorkerGradients:
    """Forward and backward pass of the mean cross-entropy of each worker's mini-batch.

    `samples [R, workers * b, features]` and `labels [R, workers * b]`, worker by worker; `shares`, alike, are factors
    of the samples' losses.
    """
    inputs, activations, logits = model.forward(parameters, samples)
    at_logits, labels = logits.softmax(-1), labels[..., None]
    at_logits.scatter_add_(-1, labels, at_logits.new_full((), -1).expand(labels.shape))
    if shares is not None:
        at_logits *= shares[..., None]
    deltas = model.backward(parameters, activations, at_logits)
    return WorkerGradients(inputs, deltas, workers, samples.shape[1] // workers)


def cheaper_branch(workers: int, rows: int, fan_in: int, fan_out: int) -> Branch:
    """The cheaper way to a layer's Gram matrix, by its multiply-adds: over pairs of rows, or formed gradients.

    `rows` is what each worker has in the layer: its samples, times the positions of a convolution.
    """
    every = workers * rows
    over_pairs = every * (every + min(every, _workers_at_once(rows) * rows)) / 2 * (fan_in + fan_out)
    formed = (every + workers**2 + PER_FORMED_NUMBER * workers) * fan_in * fan_out
    return "sample pairs" if over_pairs <= formed else "formed gradients"


def add_outer_sums(total: Tensor, x: Tensor, delta: Tensor, scale: float) -> None:
    """Add `scale x^T delta` to `total [R, in, out]`, in place, for x [R, S, in] and delta [R, S, out]."""
    if delta.shape[-1] < FEW_COLUMNS:
        total.add_(delta.mT.bmm(x).mT, alpha=scale)
    else:
        total.baddbmm_(x.mT, delta, alpha=scale)


def unflatten(vectors: Tensor, layers: Sequence[tuple[int, int]]) -> Parameters:
    """Views of flat `vectors [..., d]` as each layer's weight `[..., in, out]` and bias `[..., out]`."""
    parts, start = [], 0
    for fan_in, fan_out in layers:
        end = start + fan_in * fan_out
        weight = vectors[..., start:end].unflatten(-1, (fan_in, fan_out))
        parts.append((weight, vectors[..., end : end + fan_out]))
        start = end + fan_out
    return parts


def flatten(parameters: Parameters) -> Tensor:
    """Parameters as flat vectors [R, d]."""
    return torch.cat([part.flatten(1) for pair in parameters for part in pair], 1)


def weighted_sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """`sum_i w_i V_i`, [R, d]; a vector without weight counts for nothing, NaN or not."""
    used = weights != 0
    if not bool(used.all()):
        vectors = vectors.where(used[..., None], 0.0)
    return weights[:, None].bmm(vectors).squeeze(1)


def subtract(parameters: Parameters, vectors: Tensor, rate: float) -> None:
    """Subtract `rate` times flat `vectors [R, d]` from the parameters, in place."""
    layers = unflatten(vectors, [(weight.shape[-2], weight.shape[-1]) for weight, _ in parameters])
    for (weight, bias), (of_weight, of_bias) in zip(parameters, layers, strict=True):
        weight.sub_(of_weight, alpha=rate)
        bias.sub_(of_bias, alpha=rate)


def _add_sums_over_pairs(gram: Tensor, x: Tensor, delta: Tensor) -> None:
    """Add a layer's sums over pairs of rows to the upper triangle, block by block of workers."""
    replicas, h = gram.shape[:2]
    rows = x.shape[1] // h
    at_once = _workers_at_once(rows)
    for first in range(0, h, at_once):
        last = min(first + at_once, h)
        these, later = slice(first * rows, last * rows), slice(first * rows, None)
        products = x[:, these].bmm(x[:, later].mT).add_(1).mul_(delta[:, these].bmm(delta[:, later].mT))
        by_worker = products.view(replicas, last - first, rows, -1).sum(2).unflatten(-1, (-1, rows)).sum(-1)
        gram[:, first:last, first:] += by_worker


def _workers_at_once(rows: int) -> int:
    """How many workers' rows meet all later ones in one matrix product."""
    return max(1, PAIRED_AT_ONCE // rows)


def _add_products_of_formed(gram: Tensor, x: Tensor, delta: Tensor) -> None:
    """Add the inner products of a layer's gradients, formed a few columns of a replica at a time."""
    h, fan_in, fan_out = gram.shape[1], x.shape[-1], delta.shape[-1]
    columns = max(1, FORMED_AT_ONCE // (h * fan_out))
    at_once = max(1, FORMED_AT_ONCE // (h * fan_in * fan_out))
    for total, some_x, some_delta in zip(gram.split(at_once), x.split(at_once), delta.split(at_once), strict=True):
        by_worker = _by_worker(some_delta, h)
        of_bias = by_worker.sum(1).unflatten(0, (-1, h))
        total += of_bias.bmm(of_bias.mT)
        for piece in _by_worker(some_x, h).split(columns, -1):
            formed = by_worker.mT.bmm(piece).view(len(total), h, -1)
            total += formed.bmm(formed.mT)


def _by_worker(rows: Tensor, workers: int) -> Tensor:
    """[R, S, k] -> [R h, rows of a worker, k]."""
    return rows.reshape(len(rows) * workers, -1, rows.shape[-1])


def _of_workers(rows: Tensor, order: Tensor) -> Tensor:
    """Some workers' rows of each replica: [R, h, rows of a worker, k] and indices [R, m] -> [R, m, ...]."""
    replicas, workers = rows.shape[:2]
    index = order + workers * torch.arange(replicas, device=order.device)[:, None]
    return rows.reshape(replicas * workers, -1).index_select(0, index.flatten()).view(*order.shape, *rows.shape[2:])
