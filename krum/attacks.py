"""The Byzantine behaviours: one decorated function each.

An attack sees what an omniscient adversary sees in one round, `adversary` (`krum.adversary.Adversary`): how many
workers are honest and Byzantine, the honest gradients, the parameters, the gradient over the training set, and its
own random generators. It returns what its f Byzantine workers send, in one of four forms:

    adversary.combinations(coefficients [R, f or 1, h])   linear combinations of the honest gradients, and
                          (..., plus=vectors [R, f or 1, d])   any flat vectors on top of them
    adversary.vectors(vectors [R, f or 1, d])              any flat vectors; always possible, slower
    adversary.along(direction, length)                     one direction at a known length, computed only if needed
    adversary.gaussian(standard_deviation)                 independent Gaussian vectors, formed only if needed

with 1 instead of f where all of them send the same. To add an attack, write one function here and decorate it;
keyword-only parameters are its options.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from krum.registry import kebab

if TYPE_CHECKING:
    from krum.adversary import Adversary, ByzantineVectors

    Attack = Callable[..., ByzantineVectors | None]

ATTACKS: dict[str, "Attack"] = {}
LEAST_BYZANTINE: dict[str, int] = {}  # how many workers an attack needs to be what it is


def attack(function: "Attack | None" = None, *, least: int = 1) -> Callable:
    """Register a function `(adversary, *, options) -> what the Byzantine workers send`; it takes `least` of them."""

    def decorate(function: "Attack") -> "Attack":
        ATTACKS[kebab(function)] = function
        LEAST_BYZANTINE[kebab(function)] = least
        return function

    return decorate if function is None else decorate(function)


@attack(least=0)
def none(adversary: "Adversary") -> None:
    """Nobody attacks: there are no Byzantine workers, whatever share the experiment names."""


@attack
def gaussian(adversary: "Adversary", *, standard_deviation: float = 200.0) -> "ByzantineVectors":
    """Each Byzantine worker sends its own draw of `N(0, standard_deviation^2 I)` (Blanchard et al., 2017, Figure 4)."""
    return adversary.gaussian(standard_deviation)


@attack
def omniscient(adversary: "Adversary", *, length: float = 100.0, samples: int | None = None) -> "ByzantineVectors":
    """All send `-length g / ||g||`, with g the gradient over the whole training set (Blanchard et al., Figure 5).

    With `samples`, g is estimated in each round from that many training samples, drawn anew with replacement.
    """
    return adversary.along(lambda replicas: -adversary.full_gradient(replicas, samples), length)


@attack
def sign_flip(adversary: "Adversary", *, scale: float = 1.0) -> "ByzantineVectors":
    """All send `-scale` times the mean honest gradient."""
    coefficients = adversary.honest_gram.new_full((adversary.replicas, 1, adversary.honest), -scale / adversary.honest)
    return adversary.combinations(coefficients)


@attack(least=2)
def barycentre_collusion(adversary: "Adversary", *, scale: float = 1.0) -> "ByzantineVectors":
    """All but one send `T = -scale` times the mean honest gradient, and the last moves the barycentre of all there.

    It sends `n T - sum_i G_i - (f - 1) T`, so that the mean of all n vectors is T: the rule that takes the vector
    nearest the barycentre takes T (Blanchard et al., 2017, Figure 2).
    """
    h, f = adversary.honest, adversary.byzantine
    coefficients = adversary.honest_gram.new_full((adversary.replicas, f, h), -scale / h)
    coefficients[:, -1] = -1 - (h + 1) * scale / h
    return adversary.combinations(coefficients)


@attack
def steer(adversary: "Adversary") -> "ByzantineVectors":
    """Averaging returns whatever vector U the Byzantine workers choose (Blanchard et al., 2017, Lemma 1).

    They send `(n U - sum_i G_i) / f` each; a single one suffices. `U = (x_t - x*) / learning_rate` makes the very
    next model x*, here one that was trained on wrong labels (`adversary.wrong_model`).
    """
    n, f = adversary.honest + adversary.byzantine, adversary.byzantine
    chosen = (adversary.parameters() - adversary.wrong_model()) / adversary.learning_rate
    coefficients = adversary.honest_gram.new_full((adversary.replicas, 1, adversary.honest), -1 / f)
    return adversary.combinations(coefficients, plus=(n / f * chosen)[:, None])
