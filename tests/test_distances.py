"""Squared distances against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from krum.rules import distances


def exact(vectors):
    rows = [[Fraction(float(x)) for x in row] for row in vectors]
    return np.array([[float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) for b in rows] for a in rows])


def by_products(vectors):
    """The way of other devices, in blocks of a few columns."""
    return distances._by_products(vectors)


WAYS = {"differences": distances.squared_distances, "products": by_products}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", [2**17, 24])
@pytest.mark.parametrize("kind", ["plain", "offset", "clusters", "outlier first", "outliers", "tiny", "huge"])
def test_relative_error(kind, block, way, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    vectors = np.random.default_rng(0).normal(size=(8, 30))
    if kind == "offset":
        vectors = 1e4 + 1e-2 * vectors
    elif kind == "clusters":
        vectors = 1e-5 * vectors + 1e5 * (np.arange(8)[:, None] % 3)
    elif kind == "outlier first":
        vectors[0] = 1e30
    elif kind == "outliers":
        vectors[[1, 2, 7]] = [[1e30], [1e30], [-1e25]]
    elif kind in ("tiny", "huge"):
        vectors *= {"tiny": 1e-140, "huge": 1e140}[kind]
    found = WAYS[way](torch.from_numpy(vectors)).numpy()
    assert np.allclose(found, exact(vectors), rtol=2e-12, atol=0)
    assert np.array_equal(found, found.T)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far(way, bad):
    vectors = np.random.default_rng(0).normal(size=(7, 1003))
    expected = exact(vectors)
    vectors[2, -1], vectors[5, 3] = bad, np.nan
    found = WAYS[way](torch.from_numpy(vectors)).numpy()
    expected[[2, 5]], expected[:, [2, 5]] = np.inf, np.inf
    assert np.allclose(found, expected, rtol=2e-12, atol=0)
    finite = distances.only_finiteness([torch.from_numpy(vectors)]).numpy()
    assert np.array_equal(np.isinf(finite), np.isinf(expected))


@pytest.mark.parametrize("way", WAYS)
def test_identical_vectors_have_identical_rows(way):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 1001))[rng.integers(5, size=40)]
    found = WAYS[way](torch.from_numpy(vectors)).numpy()
    for i in range(40):
        for j in range(40):
            if np.array_equal(vectors[i], vectors[j]):
                assert found[i, j] == 0
                assert np.array_equal(found[i], found[j])


@pytest.mark.parametrize("way", WAYS)
def test_memory_does_not_grow_with_d(way):
    """No tensor of n x d numbers is made beside the input."""
    vectors = torch.randn(20, 200_000)
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() != vectors.data_ptr():
                self.numel = max(self.numel, result.untyped_storage().nbytes() // result.element_size())
            return result

    with Largest() as largest:
        WAYS[way](vectors)
    assert largest.numel <= 2 * distances.BLOCK
