"""Every rule and every attack on hostile vectors: no error but a promised one, nothing infinite, the oracle's choice.

How many cases are drawn is the profile's budget (conftest.py): a few hundred, or by `make torture` a hundred thousand.
"""

import math
from dataclasses import dataclass

import numpy as np
import oracle
import pytest
import torch
from hostile import HONEST, SIZES, honest_vectors, hostile
from hypothesis import given
from hypothesis import strategies as st

import krum
from krum.rules import distances
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.adversary import Adversary
from krum.simulation.attacks import ATTACKS
from krum.simulation.gradients import ExplicitGradients

SCORES = {**oracle.SCORES, "1-p-krum": oracle.krum_scores}
CONTEXT = {"1-p-krum": {"round": 1, "coin": 0.9}}


def most_byzantine(name):
    """The largest f that a rule's guarantee covers, for n workers; half of them where it has none."""

    def most(n):
        rule = AGGREGATORS[name]
        return max((f for f in range((n + 1) // 2) if rule.within_guarantee(n, f)), default=0)

    return most


def check_choice(name, case, result, m):
    """The m vectors of least score; the first of identical ones; between scores that float64 cannot tell apart, any."""
    vectors = case.exact
    scores = np.array(SCORES[name](vectors, case.f))
    ranked = sorted(range(len(scores)), key=lambda i: (not case.finite[i], scores[i], i))
    close = 1e-11 * scores[ranked[m - 1]] + 1e-290  # and what underflows
    if m == 1:
        equal = [i for i in range(len(vectors)) if torch.equal(case.vectors[i], result)]
        assert equal, "not one of the vectors"
        if not math.isfinite(scores[ranked[0]]):  # no n - f - 2 vectors have finite distances
            assert case.finite[equal].any()
            return
        assert scores[equal[0]] <= scores[ranked[0]] + close, f"took {equal}, should be {ranked[0]}"
        return
    clear = m == len(ranked) or scores[ranked[m]] > scores[ranked[m - 1]] + close
    if clear or all(
        np.array_equal(vectors[i], vectors[ranked[m - 1]])
        for i in ranked
        if abs(scores[i] - scores[ranked[m - 1]]) <= close
    ):
        expected = vectors[ranked[:m]].mean(0)
        same = np.abs(vectors[ranked[:m]]).max(0)
        eps = torch.finfo(result.dtype).eps
        smallest = torch.finfo(result.dtype).smallest_normal
        assert (np.abs(result.double().numpy() - expected) <= (eps + 1e-14) * same + smallest).all()


def check_range(name, case, result):
    """Between the least and the greatest finite value of every coordinate, and 0 for a rule that begins there."""
    values = np.ma.masked_invalid(case.exact)
    low, high = values.min(0).filled(0), values.max(0).filled(0)
    if AGGREGATORS[name].previous:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    found, slack = result.double().numpy(), 1e-6 * np.maximum(np.abs(low), np.abs(high))
    eps = torch.finfo(result.dtype).eps
    assert (found >= low - slack - eps * np.abs(low)).all() and (found <= high + slack + eps * np.abs(high)).all()


def check_by_definition(name, case, result):
    """Rules that are no choice, against numpy, or loops where they are quick."""
    vectors, f, n = case.exact, case.f, len(case.exact)
    quick = vectors.size * n <= 3000
    ordered = np.sort(np.where(np.isnan(vectors), np.inf, vectors), 0)
    if name == "average":
        expected = vectors.mean(0)
    elif name == "median":
        expected = ordered[(n - 1) // 2] / 2 + ordered[n // 2] / 2
    elif name == "trimmed-mean":
        expected = ordered[f : n - f].mean(0)
    elif name == "centred-clipping" and quick:
        expected = np.array(oracle.centred_clipping(vectors.tolist(), [0.0] * vectors.shape[1], 1.0, 3))
    else:
        return
    scale = np.abs(np.ma.masked_invalid(vectors)).max(0).filled(0)
    tolerance = torch.finfo(result.dtype).eps * (np.abs(expected) + scale) + torch.finfo(result.dtype).smallest_normal
    if name == "centred-clipping":
        tolerance = tolerance + 1e-6
    assert (np.abs(result.double().numpy() - expected) <= 1e-11 * scale + tolerance).all()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_hostile_vectors_do_not_break_a_rule(name, count):
    rule, cases = AGGREGATORS[name], 0

    @given(case=hostile(most_byzantine(name)), data=st.data())
    def run(case, data):
        nonlocal cases
        cases += 1
        n = len(case.vectors)
        options = dict(CONTEXT.get(name, {}))
        m = 1
        if name == "multi-krum":
            options["m"] = m = data.draw(st.integers(1, n - case.f))
        if rule.fixed_weights and not case.finite.all():
            with pytest.raises(krum.InputError, match="weight to vectors that hold NaN or infinity"):
                krum.aggregate(case.given(), name, f=case.f, **options)
            return
        result = case.flat(krum.aggregate(case.given(), name, f=case.f, **options))
        assert result.dtype == case.vectors.dtype and result.shape == case.vectors.shape[1:]
        assert bool(result.isfinite().all()), "not finite"
        check_range(name, case, result)
        if name in SCORES:
            check_choice(name, case, result, m)
        else:
            check_by_definition(name, case, result)

    run()
    count("vectors drawn for a rule", cases)


@given(data=st.data())
def test_more_bad_vectors_than_declared_are_refused(data):
    name = data.draw(st.sampled_from(list(AGGREGATORS)))
    case = data.draw(hostile(most_byzantine(name), more_than_f=True))
    with pytest.raises(krum.InputError) as refusal:
        krum.aggregate(case.given(), name, f=case.f, **CONTEXT.get(name, {}))
    assert "hold NaN or infinity" in str(refusal.value) and "\n" not in str(refusal.value)


# ------------------------------------------------------------------------------------------------------------ attacks


@dataclass(frozen=True)
class Round:
    """What an adversary sees in two replicas, of which the first is calm."""

    honest: torch.Tensor  # [2, h, d]
    own: torch.Tensor  # [2, f, d]
    parameters: torch.Tensor  # [2, d]
    wrong: torch.Tensor  # [2, d]
    number: int
    seed: int
    kind: str  # of the second replica's vectors

    def seen(self) -> Adversary:
        """The adversary."""
        parts = (self.honest, self.own, self.parameters, self.wrong)
        honest, own, parameters, wrong = (part.clone() for part in parts)
        return Adversary(
            gradients=ExplicitGradients(honest),
            byzantine=own.shape[1],
            learning_rate=0.1,
            full_gradient=lambda samples: lambda: parameters.clone(),
            parameters=lambda: parameters,
            wrong_model=lambda: wrong,
            own_vectors=lambda relabelled=False: -own if relabelled else own,
            round=self.number,
            memory={},
            generators=[np.random.default_rng((self.seed, number)) for number in range(2)],
            noise=[torch.Generator().manual_seed(self.seed + number) for number in range(2)],
            dimension=honest.shape[-1],
        )

    def __repr__(self) -> str:
        shapes = f"honest {list(self.honest.shape)}, Byzantine {self.own.shape[1]}"
        return f"round {self.number}: {shapes}, {self.honest.dtype}, {self.kind}, seed {self.seed}"

    def _repr_pretty_(self, printer, cycle):  # for hypothesis, in place of every number
        printer.text(repr(self))


@st.composite
def rounds(draw, attack):
    """A round of n workers, f of them Byzantine."""
    n = draw(st.integers(max(3, ATTACKS[attack].least + 1), 60))
    f = draw(st.integers(max(1, ATTACKS[attack].least), n - 1))
    d, dtype = draw(st.sampled_from(SIZES)), draw(st.sampled_from((torch.float32, torch.float64)))
    kind, seed = draw(st.sampled_from((*HONEST, "nan", "inf"))), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)

    def vectors(rows):
        calm = honest_vectors("normal", rows, d, dtype, rng)
        hostile = honest_vectors(kind if kind in HONEST else "normal", rows, d, dtype, rng)
        if kind not in HONEST:
            hostile[rng.integers(rows)] = float(kind)
        return torch.stack([calm, hostile])

    one = (vectors(1)[:, 0] for _ in range(2))
    return Round(vectors(n - f), vectors(f), *one, number=draw(st.integers(0, 100)), seed=seed, kind=kind)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "none"])
def test_an_attack_says_the_truth_of_its_vectors(name, count):
    """No error; the inner products are those of the vectors; rules take them as they come."""
    cases = 0
    torch.manual_seed(0)

    @given(drawn=rounds(name))
    def run(drawn):
        nonlocal cases
        cases += 1
        (_, h, d), f = drawn.honest.shape, drawn.own.shape[1]
        adversary = drawn.seen()
        sent = ATTACKS[name](adversary)
        with_honest, among = sent.inner_products()
        vectors = sent.vectors()
        assert with_honest.shape == (2, h, f) and among.shape == (2, f, f) and vectors.shape == (2, f, d)
        assert nothing(sent.weighted(drawn.honest.new_zeros((2, f)))), "without weight, nothing counts"
        # They are the inner products of the vectors.
        honest, sent_vectors = drawn.honest[0].double(), vectors[0].double()
        if bool((sent_vectors.norm(dim=-1) < 1e18).all()):  # beyond it, float32 holds no square
            # Rounding is relative to what was combined; a conditional draw amplifies it by the Gram matrix's condition.
            eps = (3e6 if name == "gaussian" else 300) * torch.finfo(drawn.honest.dtype).eps
            combined = honest.norm(dim=-1).sum() + 10 * (drawn.parameters[0].norm() + drawn.wrong[0].norm()).double()
            of_honest, of_sent = honest.norm(dim=-1), sent_vectors.norm(dim=-1) + (h + f) / f * combined
            assert close(with_honest[0], honest @ sent_vectors.mT, eps * of_honest[:, None] * of_sent)
            assert close(among[0], sent_vectors @ sent_vectors.mT, eps * of_sent[:, None] * of_sent)
        # Rules take them as they come.
        of_all = [[adversary.gradients.gram, with_honest], [with_honest.mT, among]]
        squared = distances.from_gram(torch.cat([torch.cat(row, 2) for row in of_all], 1))
        for rule in AGGREGATORS.values():
            if rule.sees == "distances" and not rule.previous:
                most = most_byzantine(rule.name)(h + f)
                weights = rule(squared, f=most, coin=0.9)
                assert weights.shape == (2, h + f)
                bad = ~squared[0].diagonal().isfinite()
                if not rule.fixed_weights and int(bad.sum()) <= most:
                    assert bool(weights[0].isfinite().all()) and not bool(weights[0][bad].any())

    run()
    count("rounds drawn for an attack", cases)


def nothing(parts):
    return all(part is None or not part.any() for part in parts)


def close(one, other, tolerance):
    return bool(((one - other).abs() <= tolerance + 1e-280).all())
