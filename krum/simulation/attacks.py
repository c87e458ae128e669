"""The Byzantine behaviours, attacks and plain faults: one decorated function each.

An attack sees what an omniscient adversary sees in one round, `adversary` (see `krum.simulation.adversary`): how many
workers are honest and Byzantine, the honest gradients, what the Byzantine workers themselves would send if they were
honest, the parameters, the gradient over the training set, and its own random generators. It returns what its f
Byzantine workers send, in one of four forms:

    adversary.combinations(coefficients [R, f or 1, h])   linear combinations of the honest gradients, and
                          (..., plus=vectors [R, f or 1, d])   any flat vectors on top of them
    adversary.vectors(vectors [R, f or 1, d])              any flat vectors; always possible, slower
    adversary.along(direction, length)                     one direction at a known length, computed only if needed
    adversary.gaussian(standard_deviation)                 independent Gaussian vectors, formed only if needed

with 1 instead of f where all of them send the same. To add an attack, write one function here and decorate it;
keyword-only parameters are its options.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from krum.registry import kebab
from krum.simulation.adversary import Adversary, ByzantineVectors

Function = Callable[..., ByzantineVectors | None]


@dataclass(frozen=True)
class Attack:
    """A registered attack. Calling it calls its function."""

    name: str
    function: Function
    least: int  # how many workers it needs to be what it is
    lasting: bool  # it has a memory, so that a worker cannot commit it for a single round

    def __call__(self, adversary: Adversary, **options: object) -> ByzantineVectors | None:
        return self.function(adversary, **options)


ATTACKS: dict[str, Attack] = {}


def attack(*, least: int = 1, lasting: bool = False) -> Callable[[Function], Function]:
    """Register a function `(adversary, *, options) -> what the Byzantine workers send`; it takes `least` of them."""

    def decorate(function: Function) -> Function:
        name = kebab(function)
        ATTACKS[name] = Attack(name, function, least, lasting)
        return function

    return decorate


@attack(least=0)
def none(adversary: Adversary) -> None:
    """Nobody attacks: there are no Byzantine workers, whatever share the experiment names."""


@attack()
def gaussian(adversary: Adversary, *, standard_deviation: float = 200.0) -> ByzantineVectors:
    """Each Byzantine worker sends its own draw of `N(0, standard_deviation^2 I)` (Blanchard et al., 2017, Figure 4)."""
    return adversary.gaussian(standard_deviation)


@attack()
def omniscient(adversary: Adversary, *, length: float = 100.0, samples: int | None = None) -> ByzantineVectors:
    """All send `-length g / ||g||`, with g the gradient over the whole training set (Blanchard et al., Figure 5).

    With `samples`, g is estimated in each round from that many training samples, drawn anew with replacement.
    """
    gradient = adversary.full_gradient(samples)
    return adversary.along(lambda: -gradient(), length)


@attack()
def sign_flip(adversary: Adversary, *, scale: float = 1.0) -> ByzantineVectors:
    """All send `-scale` times the mean honest gradient (sign flipping, Li et al., 2019)."""
    return adversary.combinations(adversary.coefficients(1, -scale / adversary.honest))


@attack(least=2)
def barycentre_collusion(adversary: Adversary, *, scale: float = 1.0) -> ByzantineVectors:
    """All but one send `T = -scale` times the mean honest gradient, and the last moves the barycentre of all there.

    It sends `n T - sum_i G_i - (f - 1) T`, so that the mean of all n vectors is T: the rule that takes the vector
    nearest the barycentre takes T (Blanchard et al., 2017, Figure 2).
    """
    h, f = adversary.honest, adversary.byzantine
    coefficients = adversary.coefficients(f, -scale / h)
    coefficients[:, -1] = -1 - (h + 1) * scale / h
    return adversary.combinations(coefficients)


@attack()
def steer(adversary: Adversary) -> ByzantineVectors:
    """Averaging returns whatever vector U the Byzantine workers choose (Blanchard et al., 2017, Lemma 1).

    They send `(n U - sum_i G_i) / f` each; a single one suffices. `U = (x_t - x*) / learning_rate` makes the very
    next model x*, here one that was trained on wrong labels (`adversary.wrong_model`).
    """
    n, f = adversary.honest + adversary.byzantine, adversary.byzantine
    chosen = (adversary.parameters() - adversary.wrong_model()) / adversary.learning_rate
    return adversary.combinations(adversary.coefficients(1, -1 / f), plus=(n / f * chosen)[:, None])


# ------------------------------------------------------------------------------------ attacks that came after Krum


@attack()
def a_little_is_enough(adversary: Adversary, *, deviations: float | None = None) -> ByzantineVectors:
    """All send, by coordinate, the honest mean minus z honest deviations (Baruch et al., 2019, algorithm 3).

    By default z is the paper's: with `s = floor(n / 2 + 1) - f` and h honest workers, the standard normal's
    quantile at `(h - s) / h`, the largest shift that a majority might still overlook.
    """
    n, f, h = adversary.honest + adversary.byzantine, adversary.byzantine, adversary.honest
    supporters = min(max(n // 2 + 1 - f, 1), h - 1)
    if deviations is not None or not supporters:  # a single honest vector deviates by nothing
        z = deviations or 0.0
    else:
        z = max(NormalDist().inv_cdf((h - supporters) / h), 0.0)
    honest = adversary.gradients.vectors()
    mean = honest.mean(1, keepdim=True)
    deviation = (honest - mean).square_().mean(1, keepdim=True).sqrt_()  # many times as fast as torch's own
    return adversary.vectors(mean - z * deviation)


@attack()
def inner_product_manipulation(adversary: Adversary, *, epsilon: float = 0.5) -> ByzantineVectors:
    """All send `-epsilon` times the mean honest gradient, small enough to hide (Xie et al., 2019, section 4)."""
    return adversary.combinations(adversary.coefficients(1, -epsilon / adversary.honest))


@attack()
def mimic(adversary: Adversary) -> ByzantineVectors:
    """All send what the first honest worker sends, so that it counts f + 1 times (Karimireddy et al., 2022).

    Their attack picks the worker to copy by the data that it alone has; with data dealt at random, any is as good.
    """
    coefficients = adversary.coefficients(1)
    coefficients[:, :, 0] = 1
    return adversary.combinations(coefficients)


# ---------------------------------------------------------------------------------------------- faults with a name


@attack()
def bit_flip(adversary: Adversary) -> ByzantineVectors:
    """Each sends its own gradient with one random bit of one random float32 flipped: silent data corruption.

    Dixit et al. (2021) and Hochschild et al. (2021) find a few machines in a thousand that corrupt silently.
    """
    return adversary.vectors(adversary.with_a_flipped_bit(adversary.own_vectors()))


@attack()
def label_flip(adversary: Adversary) -> ByzantineVectors:
    """Each sends its own gradient for wrong labels: class c becomes `classes - 1 - c` (Biggio et al., 2012)."""
    return adversary.vectors(adversary.own_vectors(relabelled=True))


@attack()
def crash(adversary: Adversary) -> ByzantineVectors:
    """All send zeros, as a server sees a worker that is gone (ours)."""
    return adversary.combinations(adversary.coefficients(1))


@attack(lasting=True)
def stale(adversary: Adversary, *, rounds: int = 50) -> ByzantineVectors:
    """Each repeats one of its own gradients for that many rounds, then takes a new one (ours)."""
    if adversary.round % rounds == 0 or "stale" not in adversary.memory:
        adversary.memory["stale"] = adversary.own_vectors()
    return adversary.vectors(adversary.memory["stale"])


@attack()
def wrong_scale(adversary: Adversary, *, factor: float = 100.0) -> ByzantineVectors:
    """Each sends `factor` times its own gradient, as with a wrong learning rate or a forgotten division (ours)."""
    return adversary.vectors(factor * adversary.own_vectors())


@attack()
def nan(adversary: Adversary) -> ByzantineVectors:
    """All send NaN in every coordinate (ours)."""
    return adversary.vectors(adversary.own_vectors()[:, :1] * float("nan"))
