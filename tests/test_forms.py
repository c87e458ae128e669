"""The forms in which callers hold their vectors: the same aggregate from each."""

import numpy as np
import pytest
import torch
from test_distances import LargestTensor

import krum
from krum.rules.aggregators import AGGREGATORS

N, F = 15, 2
SHAPES = {"weight": (7, 5), "bias": (5,), "scale": ()}


def matrix(dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(N, 41))).to(dtype)


def models(rows):
    """Each row as a model's gradients by name."""
    named = []
    for row in rows:
        pieces = row.split([int(np.prod(shape)) for shape in SHAPES.values()])
        named.append({name: piece.reshape(SHAPES[name]).clone() for name, piece in zip(SHAPES, pieces, strict=True)})
    return named


def joined(result):
    parts = result.values() if isinstance(result, dict) else result
    return torch.cat([torch.as_tensor(part).reshape(-1) for part in parts])


def call(vectors, name, previous=None):
    options = {"f": F} | ({"round": 2, "coin": 0.3} if name == "1-p-krum" else {})
    return krum.aggregate(vectors, name, **options, **({} if previous is None else {"previous": previous}))


def test_every_form_gives_the_same_aggregate():
    for name, rule in AGGREGATORS.items():
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            rows = matrix(dtype)
            rows[3] = torch.inf if not rule.fixed_weights else 1.0
            expected = call(rows, name)
            for form in (list(rows), tuple(rows), list(rows[:, None])):
                result = call(form, name)
                assert result.dtype == dtype and result.shape == form[0].shape
                assert torch.allclose(result.reshape(-1), expected, rtol=1e-6, atol=0), name
            by_name, by_place = models(rows), [list(model.values()) for model in models(rows)]
            for form, kind in ((by_name, dict), (by_place, list), ([tuple(model) for model in by_place], list)):
                result = call(form, name)
                assert type(result) is kind and len(result) == 3
                leaves = result.values() if kind is dict else result
                assert [tuple(leaf.shape) for leaf in leaves] == list(SHAPES.values())
                assert torch.allclose(joined(result), expected, rtol=1e-6, atol=0), name
            if dtype != torch.bfloat16:
                result = call([[leaf.numpy() for leaf in model] for model in by_place], name)
                assert all(isinstance(leaf, np.ndarray) for leaf in result)
                assert torch.allclose(joined(result), expected, rtol=1e-6, atol=0), name


def test_previous_has_the_form_of_the_result():
    rows, before = matrix(), models(matrix()[:1] * 3)[0]
    expected = call(rows, "centred-clipping", matrix()[0] * 3)
    assert torch.allclose(joined(call(models(rows), "centred-clipping", before)), expected, rtol=1e-6)
    with pytest.raises(krum.InputError, match="previous: found shapes"):
        call(models(rows), "centred-clipping", matrix()[0])


def test_results_are_the_callers_own():
    rows = models(matrix())
    copies = [{name: part.clone() for name, part in model.items()} for model in rows]
    result = call(rows, "krum")
    for part in result.values():
        part.fill_(7)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(rows, copies, strict=True) for name in SHAPES)


def test_a_models_gradients_are_not_joined(monkeypatch):
    """No tensor of a large layer's size is made but the result, and blocks of coordinates."""
    monkeypatch.setattr("krum.rules.distances.BLOCK", 2**16)
    vectors = [[torch.randn(300_000), torch.randn(10, 20)] for _ in range(N)]
    for name in ("nnm-krum", "median"):
        with LargestTensor(leaf for vector in vectors for leaf in vector) as largest:
            call(vectors, name)
        assert largest.bytes <= 4 * 300_000, name
