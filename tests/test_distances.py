"""Squared distances against exact rational arithmetic, and the bounds that float32 products prove."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from krum.rules import distances


def exact(vectors):
    rows = [[Fraction(float(x)) for x in row] for row in vectors]
    return np.array([[float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) for b in rows] for a in rows])


def difficult():
    """Vectors in float64, by what makes their distances difficult."""
    plain = np.random.default_rng(0).normal(size=(8, 30))
    first, some = plain.copy(), plain.copy()
    first[0], some[[1, 2, 7]] = 1e30, [[1e30], [1e30], [-1e25]]
    return {
        "plain": plain,
        "common offset": 1e4 + 1e-2 * plain,
        "clusters": 1e-5 * plain + 1e5 * (np.arange(8)[:, None] % 3),
        "outlier first": first,
        "outliers": some,
        "tiny": 1e-140 * plain,
        "huge": 1e140 * plain,
    }


def test_distances_are_those_of_exact_arithmetic(monkeypatch):
    for block in (2**17, 24):
        monkeypatch.setattr(distances, "BLOCK", block)
        for kind, vectors in difficult().items():
            squared = distances.squared_distances(torch.from_numpy(vectors)).numpy()
            assert np.allclose(squared, exact(vectors), rtol=2e-12, atol=0), kind
            assert np.array_equal(squared, squared.T), kind


def test_vectors_that_are_not_finite_are_infinitely_far():
    vectors = np.random.default_rng(0).normal(size=(7, 1003))
    expected = exact(vectors)
    expected[[2, 5]], expected[:, [2, 5]] = np.inf, np.inf
    for bad in (np.nan, np.inf, -np.inf):
        vectors[2, -1], vectors[5, 3] = bad, np.nan
        squared = distances.squared_distances(torch.from_numpy(vectors)).numpy()
        assert np.allclose(squared, expected, rtol=2e-12, atol=0)
        finite = distances.only_finiteness([torch.from_numpy(vectors)]).numpy()
        assert np.array_equal(np.isinf(finite), np.isinf(expected))


def test_identical_vectors_have_identical_rows():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 1001))[rng.integers(5, size=40)]
    squared = distances.squared_distances(torch.from_numpy(vectors)).numpy()
    for i in range(40):
        for j in range(40):
            if np.array_equal(vectors[i], vectors[j]):
                assert squared[i, j] == 0
                assert np.array_equal(squared[i], squared[j])


def test_distances_add_up_over_blocks_of_any_form():
    vectors = torch.randn(7, 5000, generator=torch.Generator().manual_seed(0))
    whole = distances.squared_distances(vectors)
    blocks = [vectors[:, :17], [row.clone() for row in vectors[:, 17:4000]], vectors[:, 4000:]]
    assert torch.allclose(distances.of_blocks(blocks), whole, rtol=1e-12)
    low, high = distances.bounds_from_float32(blocks)
    assert bool((low <= whole).all()) and bool((whole <= high).all())


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made, those of `given` left out."""

    def __init__(self, given):
        super().__init__()
        self.given, self.bytes = {tensor.untyped_storage().data_ptr() for tensor in given}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in self.given:
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


def test_memory_does_not_grow_with_the_dimension():
    vectors = torch.randn(20, 250_000)
    with LargestTensor([vectors]) as largest:
        distances.squared_distances(vectors)
    assert largest.bytes <= 2 * 8 * distances.BLOCK
    for form in (vectors, list(vectors)):
        with LargestTensor([vectors]) as largest:
            distances.bounds_from_float32([form])
        assert largest.bytes <= 4 * distances.PRODUCTS_BLOCK


# -------------------------------------------------------------------------------------------------------------- bounds


def gradients():
    """Float32 vectors by what spoils float32: a common part, outliers, scales, zeros, copies, parts that cancel."""
    rng = np.random.default_rng(5)
    plain = torch.from_numpy(rng.normal(size=(11, 10_000)).astype(np.float32))
    outlier, zeros, copies, one = plain.clone(), plain.clone(), plain + 3, torch.zeros(11, 10_000)
    outlier[4] *= 1e6
    zeros[7:9] = 0
    copies[5] = copies[2]
    one[:, 17] = torch.arange(11.0) ** 2
    return {
        "plain": plain,
        "common offset": 1e3 + plain,
        "one has the offset": torch.where(torch.arange(11)[:, None] == 3, 1e3, 0.0) + plain,
        "tiny": 1e-18 * plain,
        "subnormal": 1e-41 * plain,
        "huge": 1e15 * plain,
        "squares overflow": 1e25 * plain,
        "outlier": outlier,
        "zeros": zeros,
        "copies": copies,
        "one coordinate": one,
        "same length": torch.from_numpy(rng.choice([-1.0, 1.0], size=10_000).astype(np.float32)) + 1e-3 * plain,
        "rising": plain * torch.logspace(-6, 6, 10_000),
        "more rows than are multiplied at once": torch.from_numpy(rng.normal(size=(150, 700)).astype(np.float32)),
    }


def from_differences(vectors):
    exactly = vectors.double()
    return torch.stack([(row - exactly).square().sum(-1) for row in exactly])


def test_bounds_hold():
    told = set()
    for kind, vectors in gradients().items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            rounded = vectors.to(dtype)
            bounds = distances.bounds_from_float32([rounded]) if bool(rounded.isfinite().all()) else None
            if bounds is not None:
                expected = from_differences(rounded)
                assert bool((bounds[0] <= expected * (1 + 1e-12)).all()), (kind, dtype)
                assert bool((bounds[1] >= expected * (1 - 1e-12)).all()), (kind, dtype)
                rows = torch.tensor([1, 5])
                low, high = distances.narrowed(bounds, [rounded], rows)
                assert bool((low <= expected * (1 + 1e-12)).all()) and bool((high >= expected * (1 - 1e-12)).all())
                assert bool(((high - low)[rows] <= (bounds[1] - bounds[0])[rows] + 1e-30).all())
                told.add(kind)
    assert told == set(gradients()) - {"squares overflow"}


def test_bounds_are_close_also_where_vectors_share_a_large_part():
    for kind in ("plain", "common offset", "same length"):
        low, high = distances.bounds_from_float32([gradients()[kind]])
        between = ~torch.eye(11, dtype=torch.bool)
        assert bool((high < 1.001 * low)[between].all()), kind


def test_nothing_is_claimed_of_products_that_torch_may_round():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert distances.bounds_from_float32([gradients()["plain"]]) is None
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_claimed_of_vectors_that_are_not_finite(bad):
    vectors = gradients()["plain"]
    vectors[3, 100] = bad
    assert distances.bounds_from_float32([vectors]) is None
