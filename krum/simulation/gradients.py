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

from krum.simulation.models import Model, affine, as_floats, compiled, outer_sums, product

Branch = Literal["samples", "gradients"]

# Numbers of a layer's gradients that are formed at a time: a CPU's cache should hold them.
FORMED_AT_ONCE = {"cpu": 400_000, "cuda": 2**28}
# Rows that meet all later ones in one matrix product: fewer waste less on the symmetric half, more fill the processor.
PAIRED_AT_ONCE = 100
# What it costs to write and read a formed number, in multiply-adds; narrower gradients cost as much as these columns.
PER_FORMED, NARROWEST = 25, 5


@dataclass(frozen=True)
class Part:
    """A weighted sum of gradients in some replicas: per layer `scale x^T delta`; for the bias, delta's scaled sum."""

    replicas: Tensor | slice  # their indices, or those that lie one after the other
    scale: float
    factors: list[tuple[Tensor, Tensor]]  # per layer x [r, s, in] and delta [r, s, out]

    def one_by_one(self) -> list["Part"]:
        """Each of the replicas that have indices by itself."""
        assert isinstance(self.replicas, Tensor)
        return [
            Part(slice(r, r + 1), self.scale, [(x[k : k + 1], delta[k : k + 1]) for x, delta in self.factors])
            for k, r in enumerate(self.replicas.tolist())
        ]


@dataclass(frozen=True)
class WorkerGradients:
    """The mini-batch gradients of h workers in R replicas, in factors, worker by worker and sample by sample.

    Layers have S = h b P rows, with P = 1 for a fully connected layer and P positions for a convolution. The first
    layer's inputs may be bytes (see `krum.models.as_floats`).
    """

    inputs: Sequence[Tensor]  # per layer, [R, S, in]
    deltas: Sequence[Tensor]  # per layer, [R, S, out]
    workers: int
    batch_size: int  # samples per worker
    branch: Branch | None = None  # forces one way of computing the Gram matrix, for tests

    @property
    def like(self) -> Tensor:
        """A tensor of the same kind: dtype and device."""
        return self.deltas[0]

    @cached_property
    def gram(self) -> Tensor:
        """Inner products `<G_i, G_j>`, [R, h, h] float64."""
        h = self.workers
        by_samples: dict[int, list[tuple[Tensor, Tensor]]] = {}  # layers by their number of rows
        gram = self.like.new_zeros((len(self.like), h, h), dtype=torch.float64)
        for x, delta in zip(self.inputs, self.deltas, strict=True):
            rows = x.shape[1] // h
            if compiled(delta):
                from krum.rules import kernels

                kernels.add_inner_products(gram, x.contiguous(), delta.contiguous(), self.branch)
            elif (self.branch or cheaper_branch(h, rows, x.shape[-1], delta.shape[-1])) == "samples":
                by_samples.setdefault(rows, []).append((x, delta))
            else:
                self._add_products_of_formed(gram, x, delta)
        for rows, layers in by_samples.items():
            self._add_sums_over_pairs(gram, rows, layers)
        upper = gram.triu_()
        return (upper + upper.triu(1).mT).div_(self.batch_size**2)

    def _add_sums_over_pairs(self, gram: Tensor, rows: int, layers: list[tuple[Tensor, Tensor]]) -> None:
        """Add sums over pairs of rows to the upper triangle, block by block of workers, without the blocks below."""
        replicas, h = gram.shape[:2]
        at_once = workers_at_once(rows)
        for first in range(0, h, at_once):
            last = min(first + at_once, h)
            kernel = None
            for x, delta in layers:
                of_delta = product(delta[:, first * rows : last * rows], delta[:, first * rows :].mT)
                of_x = product(x[:, first * rows : last * rows], x[:, first * rows :].mT)
                both = of_x.add_(1).mul_(of_delta)
                kernel = both if kernel is None else kernel.add_(both)
            if kernel is not None:
                sums = kernel.view(replicas, last - first, rows, h - first, rows).sum((2, 4))
                gram[:, first:last, first:] += sums

    def _add_products_of_formed(self, gram: Tensor, x: Tensor, delta: Tensor) -> None:
        """Add the inner products of a layer's gradients, formed a few replicas or a few of their rows at a time."""
        h, fan_in, fan_out = self.workers, x.shape[-1], delta.shape[-1]
        numbers = FORMED_AT_ONCE[x.device.type]
        at_once, columns = max(1, numbers // (h * fan_in * fan_out)), max(1, numbers // (h * fan_out))
        for part, some, of_some in zip(gram.split(at_once), x.split(at_once), delta.split(at_once), strict=True):
            of_bias = self._by_worker(of_some).sum(1).unflatten(0, (-1, h))
            products = product(of_bias, of_bias.mT).double()
            for piece in some.split(columns, -1):
                formed = outer_sums(self._by_worker(piece), self._by_worker(of_some)).unflatten(0, (-1, h)).flatten(2)
                products += product(formed, formed.mT)
            part += products

    def weighted(self, weights: Tensor, common: bool = False) -> list["Part"]:
        """`sum_i w_i G_i` for `weights [R, h]`, in groups of replicas and as two factors per layer.

        Workers without weight are not carried along: for Krum, all but one. Replicas with different numbers of weighted
        workers form groups of their own, since the length of a sum decides its rounding. `common` says that all weights
        are the same by construction, which saves a pass.
        """
        if common:
            factors = list(zip(self.inputs, self.deltas, strict=True))
            return [Part(slice(None), weights[0, 0].item() / self.batch_size, factors)]
        counts = (weights != 0).sum(-1)
        distinct = sorted(set(counts.tolist()))
        if len(distinct) == 1:
            return [self._weighted(None, weights, distinct[0])] if distinct[0] else []
        groups = [(count, (counts == count).nonzero().squeeze(-1)) for count in distinct if count]
        parts = [self._weighted(group, weights, count) for count, group in groups]
        # On the CPU, a copy of some replicas' parameters costs more than their sums; elsewhere, a call for each does.
        return [one for part in parts for one in part.one_by_one()] if compiled(self.like) else parts

    def _weighted(self, group: Tensor | None, weights: Tensor, used: int) -> "Part":
        """Of replicas that all give weight to as many workers."""
        replicas, h = weights.shape
        own = weights if group is None else weights[group]
        flat, chosen = own.reshape(-1), None
        if group is not None or used < h:
            place = flat.nonzero().squeeze(-1)
            flat, chosen = flat[place], place if group is None else group[place // h] * h + place % h
        per_worker = flat[:, None] / self.batch_size
        factors = []
        for x, delta in zip(self.inputs, self.deltas, strict=True):
            by_worker = [part.reshape(replicas * h, -1) for part in (x, delta)]
            if chosen is not None:
                by_worker = [part.index_select(0, chosen) for part in by_worker]
            of_x, of_delta = by_worker
            weighted = (of_delta * per_worker).view(len(own), -1, delta.shape[-1])
            factors.append((of_x.view(len(own), -1, x.shape[-1]), weighted))
        return Part(slice(None) if group is None else group, 1.0, factors)

    def inner_products(self, vectors: Tensor) -> Tensor:
        """`<G_i, E_k>` with flat `vectors [R, e, d]`: [R, h, e] float64."""
        replicas, count, _ = vectors.shape
        total = self.like.new_zeros((replicas, self.workers, count), dtype=torch.float64)
        for (x, delta), (weight, bias) in zip(
            zip(self.inputs, self.deltas, strict=True), self._unflatten(vectors), strict=True
        ):
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
            if x.shape[1] == self.workers:  # one row each: the outer product's norm is the product of the norms
                norms = torch.linalg.vector_norm(as_floats(x), dim=-1).square() + 1
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
        by_worker = self._by_worker(delta)
        weight, bias = outer_sums(self._by_worker(x), by_worker), by_worker.sum(1)
        return tuple(part.unflatten(0, (-1, self.workers)).flatten(2) / self.batch_size for part in (weight, bias))  # type: ignore[return-value]

    def _by_worker(self, rows: Tensor) -> Tensor:
        """[R, S, k] -> [R h, rows of a worker, k]."""
        return rows.reshape(rows.shape[0] * self.workers, rows.shape[1] // self.workers, rows.shape[2])

    def _unflatten(self, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
        return unflatten(vectors, [(x.shape[-1], d.shape[-1]) for x, d in zip(self.inputs, self.deltas, strict=True)])


@dataclass(frozen=True)
class ExplicitGradients:
    """The same questions answered for vectors that are there: flat [R, h, d]."""

    flat: Tensor

    @property
    def workers(self) -> int:
        """h."""
        return self.flat.shape[1]

    @property
    def like(self) -> Tensor:
        """A tensor of the same kind: dtype and device."""
        return self.flat

    @cached_property
    def gram(self) -> Tensor:
        """Inner products, [R, h, h] float64."""
        return product(self.flat, self.flat.mT).double()

    def inner_products(self, vectors: Tensor) -> Tensor:
        """With flat `vectors [R, e, d]`: [R, h, e] float64."""
        return product(self.flat, vectors.mT).double()

    def vectors(self) -> Tensor:
        """The vectors, flat: [R, h, d]."""
        return self.flat

    def of_replicas(self, chosen: Tensor) -> "ExplicitGradients":
        """The same for some replicas only."""
        return ExplicitGradients(self.flat[chosen])

    def sum(self, weights: Tensor) -> Tensor:
        """`sum_i w_i V_i` for `weights [R, h]`: [R, d]."""
        return product(weights[:, None], self.flat).squeeze(1)


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
    of the samples' losses. Samples may be bytes where `krum.models.compiled` takes the parameters.
    """
    inputs, activations, logits = model.forward(parameters, samples)
    at_logits = logits.mT.contiguous().softmax(1).mT.contiguous()  # along few classes, several times faster
    labels = labels[..., None]
    at_logits.scatter_add_(-1, labels, at_logits.new_full((), -1).expand(labels.shape))
    if shares is not None:
        at_logits *= shares[..., None]
    deltas = model.backward(parameters, activations, at_logits)
    return WorkerGradients(inputs, deltas, workers, samples.shape[1] // workers, branch)


def cheaper_branch(workers: int, rows: int, fan_in: int, fan_out: int) -> Branch:
    """The cheaper way to a layer's Gram matrix, by its multiply-adds: over pairs of rows, or formed gradients.

    `rows` is what each worker has in the layer: its samples, times the positions of a convolution.
    """
    every = workers * rows
    over_pairs = every * (every + min(workers, workers_at_once(rows)) * rows) / 2 * (fan_in + fan_out)
    formed = (every + workers**2 + PER_FORMED * workers) * fan_in * max(fan_out, NARROWEST)
    return "samples" if over_pairs <= formed else "gradients"


def workers_at_once(rows: int) -> int:
    """How many workers' rows meet all later ones in one matrix product."""
    return max(1, PAIRED_AT_ONCE // rows)


def unflatten(vectors: Tensor, layers: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
    """Views of flat `vectors [..., d]` as each layer's weight `[..., in, out]` and bias `[..., out]`."""
    parts, start = [], 0
    for fan_in, fan_out in layers:
        end = start + fan_in * fan_out
        weight = vectors[..., start:end].unflatten(-1, (fan_in, fan_out))
        parts.append((weight, vectors[..., end : end + fan_out]))
        start = end + fan_out
    return parts
