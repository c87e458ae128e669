"""The Byzantine behaviours: one decorated function each.

An attack sees what an omniscient adversary sees in one round, `adversary` (`krum.adversary.Adversary`): how many
workers are honest and Byzantine, the honest gradients, the gradient over the whole training set, and its own random
generators. It returns what its f Byzantine workers send, in one of three forms:

    adversary.combinations(coefficients [R, f or 1, h])   linear combinations of the honest gradients
    adversary.vectors(vectors [R, f or 1, d])              any flat vectors; always possible, slower
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


def attack(function: "Attack") -> "Attack":
    """Register a function `(adversary, *, options) -> what the Byzantine workers send`."""
    ATTACKS[kebab(function)] = function
    return function


@attack
def none(adversary: "Adversary") -> None:
    """Nobody attacks: there are no Byzantine workers, whatever share the experiment names."""


@attack
def gaussian(adversary: "Adversary", *, standard_deviation: float = 200.0) -> "ByzantineVectors":
    """Each Byzantine worker sends its own draw of `N(0, standard_deviation^2 I)` (Blanchard et al., 2017, Figure 4)."""
    return adversary.gaussian(standard_deviation)


@attack
def omniscient(adversary: "Adversary", *, length: float = 100.0) -> "ByzantineVectors":
    """All send `-length g / ||g||`, with g the gradient over the whole training set (Blanchard et al., Figure 5)."""
    gradient = adversary.full_gradient()
    norm = gradient.norm(dim=-1, keepdim=True)
    return adversary.vectors((-length * gradient / norm.clamp(min=1e-30))[:, None])


@attack
def sign_flip(adversary: "Adversary", *, scale: float = 1.0) -> "ByzantineVectors":
    """All send `-scale` times the mean honest gradient."""
    coefficients = adversary.honest_gram.new_full((adversary.replicas, 1, adversary.honest), -scale / adversary.honest)
    return adversary.combinations(coefficients)
