"""What the Byzantine workers know in a round, and what they send, in Gram space.

A rule needs the inner products of the Byzantine vectors with the honest ones and with each other; the vectors
themselves matter only to the extent that the rule gives them weight. Each form below provides both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krum.simulation.gradients import Gradients, weighted_sum

ROUNDS_AHEAD, NUMBERS_AHEAD = 50, 2**17  # of Gaussian draws, and numbers of one replica


class ByzantineVectors:
    """What f Byzantine workers send in R replicas."""

    def inner_products(self) -> tuple[Tensor, Tensor]:
        """`<G_i, B_k>` [R, h, f] and `<B_k, B_l>` [R, f, f], float64."""
        raise NotImplementedError

    def weighted(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """`sum_k w_k B_k` for `weights [R, f]`: coefficients [R, h] of the honest gradients plus a vector [R, d].

        Either may be None for zero. A vector without weight counts for nothing, NaN or not.
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
    full_gradient: Callable[[int | None], Callable[[], Tensor]]
    """How to compute the loss's gradient over the whole training folds, or so many samples drawn now, flat [R, d]."""
    parameters: Callable[[], Tensor]  # the current model x_t, flat [R, d]
    wrong_model: Callable[[], Tensor]  # a model trained on wrong labels, always the same, flat [R, d]
    own_vectors: Callable[..., Tensor]
    """What the Byzantine workers would send if honest, flat [R, f, d]; for wrong labels with `relabelled=True`."""
    round: int  # from 0
    memory: dict[str, Any]  # what an attack keeps from one round to the next, and draws ahead
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

    def along(self, direction: Callable[[], Tensor], length: float) -> ByzantineVectors:
        """All send one vector of that length along `direction()`, flat [R, d], which is called only where it matters.

        Where the direction is the zero vector, it is the first coordinate's.
        """
        return Directed(self, direction, length)

    def gaussian(self, standard_deviation: float) -> ByzantineVectors:
        """Independent draws of `N(0, standard_deviation^2 I)`."""
        if self.dimension < self.honest + self.byzantine:  # too few dimensions for Bartlett's decomposition
            return self.vectors(standard_deviation * self.draw(self.byzantine, range(self.replicas)))
        return Gaussian(self, standard_deviation)

    def draw(self, count: int, replicas: Sequence[int]) -> Tensor:
        """`[r, count, d]` standard normal numbers from the generators of some replicas."""
        drawn = self.gradients.like.new_empty((len(replicas), count, self.dimension))
        for replica, numbers in zip(replicas, drawn, strict=True):
            numbers.normal_(generator=self.noise[replica])
        return drawn


@dataclass
class Linear(ByzantineVectors):
    """`B_k = sum_i C_ki G_i + E_k`; either part may be missing."""

    adversary: Adversary
    coefficients: Tensor | None  # C [R, f or 1, h]
    explicit: Tensor | None  # E [R, f or 1, d]

    def inner_products(self) -> tuple[Tensor, Tensor]:
        gradients, f = self.adversary.gradients, self.adversary.byzantine
        gram = gradients.gram
        with_honest = gram.new_zeros((self.adversary.replicas, self.adversary.honest, f))
        among = gram.new_zeros((self.adversary.replicas, f, f))
        if self.explicit is not None:
            with_honest = with_honest + gradients.inner_products(self.explicit)
            among = among + self.explicit.bmm(self.explicit.mT).double()
        if self.coefficients is not None:
            coefficients = self.coefficients.double().expand(-1, f, -1)
            mixed = coefficients.bmm(with_honest)
            of_combinations = gram.bmm(coefficients.mT)
            among = among + mixed + mixed.mT + coefficients.bmm(of_combinations)
            with_honest = with_honest + of_combinations
        return with_honest, among

    def weighted(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        def of_part(part: Tensor | None) -> Tensor | None:
            if part is None:
                return None
            of_rows = weights.sum(-1, keepdim=True) if part.shape[1] == 1 else weights
            return weighted_sum(of_rows, part.to(weights.dtype))

        return of_part(self.coefficients), of_part(self.explicit)

    def vectors(self) -> Tensor:
        parts = [] if self.explicit is None else [self.explicit]
        if self.coefficients is not None:
            honest = self.adversary.gradients.vectors()
            parts.append(self.coefficients.to(honest.dtype).bmm(honest))
        return sum(parts[1:], parts[0]).expand(-1, self.adversary.byzantine, -1)


class Directed(Linear):
    """One vector of known length, shared by all, whose direction costs more than everything else in the round."""

    def __init__(self, adversary: Adversary, direction: Callable[[], Tensor], length: float):
        self.adversary, self.direction, self.length = adversary, direction, length
        self.coefficients = None

    @cached_property
    def explicit(self) -> Tensor:  # type: ignore[override]  # computed when it is first asked for
        """The vector, [R, 1, d]."""
        vector = self.direction()
        norm = vector.norm(dim=-1, keepdim=True)
        vector = vector * (self.length / norm.where(norm != 0, 1))
        vector[:, :1] = vector[:, :1].where(norm != 0, self.length)
        return vector[:, None]

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and greatest squared distance to each honest gradient, whatever the direction: [R, h] each."""
        norms = self.adversary.gradients.gram.diagonal(dim1=-2, dim2=-1).sqrt()
        return (self.length - norms).clamp(min=0).square(), (self.length + norms).square()


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
        turn = adversary.round % ahead
        if turn == 0 or "gaussian" not in adversary.memory:
            adversary.memory["gaussian"] = self._ahead(ahead, h, f)
        z, triangular = (of_rounds[turn] for of_rounds in adversary.memory["gaussian"])
        with_honest = _square_root(adversary.gradients.gram).bmm(z.mT)
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
        device = adversary.gradients.gram.device
        return torch.from_numpy(in_span).to(device), torch.from_numpy(beside).to(device)

    def inner_products(self) -> tuple[Tensor, Tensor]:
        return self._drawn

    def weighted(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        adversary = self.adversary
        if "_drawn" not in self.__dict__:  # nobody looked at the inner products: the sum is one Gaussian vector
            scale = self.standard_deviation * weights.square().sum(-1, keepdim=True).sqrt()
            return None, adversary.draw(1, range(adversary.replicas))[:, 0].mul_(scale)
        coefficients, explicit = self._formed(weights[:, None])
        return coefficients[:, 0], explicit[:, 0]

    def vectors(self) -> Tensor:
        adversary = self.adversary
        if "_drawn" not in self.__dict__:
            return self.standard_deviation * adversary.draw(adversary.byzantine, range(adversary.replicas))
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
        fresh = adversary.draw(weights.shape[1], needed.tolist())
        gram, some = adversary.gradients.gram[needed], weights[needed].double()
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
