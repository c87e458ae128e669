"""What the Byzantine workers know in a round, and what they send, in Gram space.

A rule needs the inner products of the Byzantine vectors with the honest ones and with each other; the vectors
themselves matter only to the extent that the rule gives them weight. Each form below provides both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from krum.simulation.gradients import Gradients

ROUNDS_AHEAD, NUMBERS_AHEAD = 50, 2**17  # of Gaussian draws, and numbers of one replica


class ByzantineVectors:
    """What f Byzantine workers send in R replicas."""

    def inner_products(self) -> tuple[Tensor, Tensor]:
        """`<G_i, B_k>` [R, h, f] and `<B_k, B_l>` [R, f, f], float64."""
        raise NotImplementedError

    def weighted(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """`sum_k w_k B_k` for `weights [R, f]`: coefficients [R, h] of the honest gradients plus a vector [R, d].

        Either may be None for zero.
        """
        raise NotImplementedError

    def vectors(self) -> Tensor:
        """The vectors themselves, flat: [R, f, d]."""
        raise NotImplementedError


@dataclass
class Adversary:
    """One round as an omniscient adversary sees it: R replicas, h honest workers, f Byzantine workers, d parameters."""

    gradients: Gradients
    byzantine: int
    learning_rate: float
    full_gradient: Callable[[Tensor, int | None], Tensor]
    """Some replicas' indices [r] -> the loss's gradient over their whole training folds, or as many samples, [r, d]."""
    parameters: Callable[[], Tensor]  # the current model x_t, flat [R, d]
    wrong_model: Callable[[], Tensor]  # a model trained on wrong labels, always the same, flat [R, d]
    own_vectors: Callable[..., Tensor]
    """What the Byzantine workers would send if honest, flat [R, f, d]; for wrong labels with `relabelled=True`."""
    round: int  # from 0
    memory: dict[str, Tensor]  # what an attack keeps from one round to the next, and draws ahead
    generators: Sequence[np.random.Generator]  # one per replica, for small draws
    noise: Sequence[torch.Generator]  # one per replica, for draws of d numbers
    dimension: int

    @property
    def replicas(self) -> int:
        """R."""
        return len(self.generators)

    @property
    def honest(self) -> int:
        """h."""
        return self.gradients.workers

    @property
    def honest_gram(self) -> Tensor:
        """Inner products of the honest gradients, [R, h, h] float64."""
        return self.gradients.gram

    def honest_vectors(self) -> Tensor:
        """The honest gradients themselves, flat [R, h, d]."""
        return self.gradients.vectors()

    def with_a_flipped_bit(self, vectors: Tensor) -> Tensor:
        """`vectors [R, f, d]` with one random bit flipped in one random coordinate of each, as float32."""
        vectors = vectors.clone()
        for rng, of_replica in zip(self.generators, vectors, strict=True):
            for vector in of_replica:
                place, bit = int(rng.integers(vector.shape[0])), int(rng.integers(32))
                value = np.array([vector[place].item()], np.float32)
                value.view(np.uint32)[0] ^= np.uint32(1 << bit)
                vector[place] = float(value[0])
        return vectors

    def coefficients(self, rows: int, value: float = 0.0) -> Tensor:
        """Coefficients of the honest gradients for `combinations`, [R, rows, h] float64, all of one value."""
        like = self.gradients.like
        return like.new_full((self.replicas, rows, self.honest), value, dtype=torch.float64)

    def combinations(self, coefficients: Tensor, plus: Tensor | None = None) -> ByzantineVectors:
        """`B_k = sum_i C_ki G_i + E_k`: `coefficients [R, f, h]`, or [R, 1, h] for one shared by all; `plus` alike."""
        return Linear(self, coefficients, plus)

    def vectors(self, vectors: Tensor) -> ByzantineVectors:
        """Explicit flat vectors [R, f, d], or [R, 1, d] for one shared by all."""
        return Linear(self, None, vectors)

    def along(self, direction: Callable[[Tensor], Tensor], length: float) -> ByzantineVectors:
        """All send one vector of that length along `direction(replicas [r]) -> [r, d]`, called only where it matters.

        Where the direction is the zero vector, it is the first coordinate's.
        """
        return Directed(self, direction, length)

    def gaussian(self, standard_deviation: float) -> ByzantineVectors:
        """Independent draws of `N(0, standard_deviation^2 I)`."""
        if self.dimension < self.honest + self.byzantine:  # too few dimensions for Bartlett's decomposition
            drawn = [self.draw(replica, self.byzantine) for replica in range(self.replicas)]
            return self.vectors(standard_deviation * torch.stack(drawn))
        return Gaussian(self, standard_deviation)

    def draw(self, replica: int, count: int) -> Tensor:
        """`[count, d]` standard normal numbers from the replica's own generator."""
        generator, dtype = self.noise[replica], self.gradients.like.dtype
        return torch.empty(count, self.dimension, dtype=dtype, device=generator.device).normal_(generator=generator)


@dataclass
class Linear(ByzantineVectors):
    """`B_k = sum_i C_ki G_i + E_k`; either part may be missing."""

    adversary: Adversary
    coefficients: Tensor | None  # C [R, f or 1, h]
    explicit: Tensor | None  # E [R, f or 1, d]

    def inner_products(self) -> tuple[Tensor, Tensor]:
        gradients, f = self.adversary.gradients, self.adversary.byzantine
        gram = self.adversary.honest_gram
        with_honest = gram.new_zeros((self.adversary.replicas, self.adversary.honest, f))
        among = gram.new_zeros((self.adversary.replicas, f, f))
        if self.explicit is not None:
            with_honest = with_honest + _for_all(gradients.inner_products(self.explicit), f, 2)
            explicit = self.explicit.bmm(self.explicit.mT).double()
            among = among + _for_all(_for_all(explicit, f, 1), f, 2)
        if self.coefficients is not None:
            coefficients = _for_all(self.coefficients.double(), f, 1)
            mixed = coefficients.bmm(with_honest)
            of_combinations = gram.bmm(coefficients.mT)
            among = among + mixed + mixed.mT + coefficients.bmm(of_combinations)
            with_honest = with_honest + of_combinations
        return with_honest, among

    def weighted(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return tuple(
            None if part is None else _weighted_sum(weights, part) for part in (self.coefficients, self.explicit)
        )  # type: ignore[return-value]

    def vectors(self) -> Tensor:
        parts = []
        if self.coefficients is not None:
            formed = self.adversary.gradients.vectors()
            parts.append(_for_all(self.coefficients.to(formed.dtype).bmm(formed), self.adversary.byzantine, 1))
        if self.explicit is not None:
            parts.append(_for_all(self.explicit, self.adversary.byzantine, 1))
        return sum(parts[1:], parts[0])


class Directed(ByzantineVectors):
    """One vector of known length, shared by all, whose direction costs more than everything else in the round."""

    def __init__(self, adversary: Adversary, direction: Callable[[Tensor], Tensor], length: float):
        self.adversary, self.direction, self.length = adversary, direction, length
        self._vector: Tensor | None = None

    def form(self, replicas: Tensor) -> None:
        """Compute the vector in some replicas, `replicas [r]`; it is zero in the others, who do not need it."""
        vector = self.direction(replicas)
        norm = vector.norm(dim=-1, keepdim=True)
        vector = vector * (self.length / norm.where(norm != 0, 1))
        vector[:, :1] = vector[:, :1].where(norm != 0, self.length)
        self._vector = vector.new_zeros((self.adversary.replicas, self.adversary.dimension))
        self._vector[replicas] = vector

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and greatest squared distance to each honest gradient, whatever the direction: [R, h] each."""
        norms = self.adversary.honest_gram.diagonal(dim1=-2, dim2=-1).sqrt()
        return (self.length - norms).clamp(min=0).square(), (self.length + norms).square()

    def inner_products(self) -> tuple[Tensor, Tensor]:
        return self._formed().inner_products()

    def weighted(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self._vector is None and not bool((weights != 0).any()):
            return None, None
        return self._formed().weighted(weights)

    def vectors(self) -> Tensor:
        return self._formed().vectors()

    def _formed(self) -> Linear:
        if self._vector is None:
            self.form(torch.arange(self.adversary.replicas, device=self.adversary.gradients.like.device))
        assert self._vector is not None
        return Linear(self.adversary, None, self._vector[:, None])


@dataclass
class Gaussian(ByzantineVectors):
    """`B_k ~ N(0, sigma^2 I)`, independent, known first by their inner products alone.

    In an orthonormal basis whose first h vectors span the honest gradients (with Gram matrix `A = L L^T`), B_k has
    coordinates z_k ~ N(0, I_h) there, so `<G_i, B_k> = sigma (L z_k)_i`; the rest of it, in d - h dimensions, has the
    Gram matrix `T T^T` of Bartlett's decomposition: T lower triangular, `T_kk^2 ~ chi^2(d - h - k)`, `T_kl ~ N(0, 1)`.
    If a rule gives weight to Byzantine vectors, their weighted sum is drawn conditionally on these inner products: its
    component in the honest span is determined, and the rest has a determined length and a uniform direction, taken
    from a fresh normal vector made orthogonal to the honest span. Likewise several such sums.
    """

    adversary: Adversary
    standard_deviation: float

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        adversary = self.adversary
        h, f = adversary.honest, adversary.byzantine
        ahead = max(1, min(ROUNDS_AHEAD, NUMBERS_AHEAD // (f * (h + f))))
        turn, kept = adversary.round % ahead, adversary.memory
        if turn == 0 or "gaussian in span" not in kept:
            kept["gaussian in span"], kept["gaussian beside"] = self._ahead(ahead, h, f)
        z, triangular = kept["gaussian in span"][turn], kept["gaussian beside"][turn]
        with_honest = _square_root(adversary.honest_gram).bmm(z.mT)
        among = z.bmm(z.mT) + triangular.bmm(triangular.mT)
        return self.standard_deviation * with_honest, self.standard_deviation**2 * among

    def _ahead(self, rounds: int, h: int, f: int) -> tuple[Tensor, Tensor]:
        """What the coming rounds need, [rounds, R, f, h] and [rounds, R, f, f]: small draws are slow one by one."""
        adversary = self.adversary
        in_span = np.empty((rounds, adversary.replicas, f, h))
        beside = np.zeros((rounds, adversary.replicas, f, f))
        below, diagonal = np.tril_indices(f, -1), np.arange(f)
        for replica, rng in enumerate(adversary.generators):
            in_span[:, replica] = rng.standard_normal((rounds, f, h))
            beside[:, replica, below[0], below[1]] = rng.standard_normal((rounds, len(below[0])))
            squares = rng.chisquare(adversary.dimension - h - diagonal, size=(rounds, f))
            beside[:, replica, diagonal, diagonal] = np.sqrt(squares)
        device = adversary.honest_gram.device
        return torch.from_numpy(in_span).to(device), torch.from_numpy(beside).to(device)

    def inner_products(self) -> tuple[Tensor, Tensor]:
        return self._drawn

    def weighted(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if not bool((weights != 0).any()):
            return None, None
        if "_drawn" not in self.__dict__:  # nobody looked at the inner products: the sum is one Gaussian vector
            drawn = torch.cat([self.adversary.draw(replica, 1) for replica in range(self.adversary.replicas)])
            scale = self.standard_deviation * weights.square().sum(-1, keepdim=True).sqrt()
            return None, drawn.mul_(scale)
        coefficients, explicit = self._formed(weights[:, None])
        return coefficients[:, 0], explicit[:, 0]

    def vectors(self) -> Tensor:
        adversary = self.adversary
        if "_drawn" not in self.__dict__:
            drawn = [adversary.draw(replica, adversary.byzantine) for replica in range(adversary.replicas)]
            return (self.standard_deviation * torch.stack(drawn)).to(adversary.gradients.like.device)
        honest = adversary.gradients.vectors()
        every = torch.eye(adversary.byzantine, dtype=honest.dtype, device=honest.device)
        coefficients, explicit = self._formed(every.expand(adversary.replicas, -1, -1))
        return coefficients.bmm(honest) + explicit

    def _formed(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """`sum_k w_k B_k` for `weights [R, c, f]`: coefficients [R, c, h] and vectors [R, c, d].

        For c sums, c fresh vectors are enough. A replica without weights draws nothing, so that its generator does not
        depend on the other replicas.
        """
        adversary = self.adversary
        needed = (weights != 0).any(-1).any(-1).nonzero().squeeze(-1)
        fresh = torch.stack([adversary.draw(r, weights.shape[1]) for r in needed.tolist()]).to(weights.device)
        gram, some = adversary.honest_gram[needed], weights[needed].double()
        with_honest, among = (part[needed] for part in self._drawn)
        with_honest, among = with_honest.bmm(some.mT), some.bmm(among).bmm(some.mT)
        inverse = torch.linalg.pinv(gram.nan_to_num(), rtol=10 * torch.finfo(weights.dtype).eps, hermitian=True)
        projection = inverse.bmm(with_honest)
        rest = _square_root(among - with_honest.mT.bmm(projection))
        fresh_with_honest = adversary.gradients.of_replicas(needed).inner_products(fresh)
        fresh_projection = inverse.bmm(fresh_with_honest)
        fresh_rest = fresh.bmm(fresh.mT).double() - fresh_with_honest.mT.bmm(fresh_projection)
        of_fresh = torch.linalg.solve(_square_root(fresh_rest), rest, left=False)
        of_honest = projection.mT - of_fresh.bmm(fresh_projection.mT)
        coefficients = weights.new_zeros((*weights.shape[:2], adversary.honest))
        vectors = weights.new_zeros((*weights.shape[:2], adversary.dimension))
        coefficients[needed] = of_honest.to(weights.dtype)
        vectors[needed] = of_fresh.to(weights.dtype).bmm(fresh)
        return coefficients, vectors


def _square_root(gram: Tensor) -> Tensor:
    """L with `L L^T = gram` [R, h, h]: Cholesky's, or the symmetric one where the matrix is singular.

    A replica that is not finite has no root, and gets NaN.
    """
    root, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()) or not bool(root.isfinite().all()):
        values, vectors = torch.linalg.eigh(gram.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        symmetric = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
        regular = (failed == 0)[:, None, None]
        root = root.where(regular, symmetric)
        root = root.where(gram.isfinite().all(-1).all(-1)[:, None, None], torch.nan)
    return root


def _for_all(distinct: Tensor, f: int, dim: int) -> Tensor:
    """One vector shared by f workers, or f of them: f entries along `dim`."""
    shape = list(distinct.shape)
    shape[dim] = f
    return distinct.expand(shape)


def _weighted_sum(weights: Tensor, part: Tensor) -> Tensor | None:
    """`sum_k w_k part_k` for `weights [R, f]`, `part [R, f or 1, ...]`; without weight, not even a NaN counts."""
    weights = weights.sum(-1, keepdim=True) if part.shape[1] == 1 else weights
    used = weights != 0
    if not bool(used.any()):
        return None
    part = part.to(weights.dtype)
    if not bool(used.all()):
        part = part.where(used[..., None], 0.0)
    return part[:, 0] * weights if part.shape[1] == 1 else weights[:, None].bmm(part).squeeze(1)
