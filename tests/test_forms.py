"""The forms in which callers hold their vectors: the same aggregate from each."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_same_aggregate_from_every_form(name, dtype):
    rows = matrix(dtype)
    rows[3] = torch.inf if not AGGREGATORS[name].fixed_weights else 1.0
    expected = call(rows, name)
    for form in (list(rows), tuple(rows), list(rows[:, None])):
        found = call(form, name)
        assert found.dtype == dtype and found.shape == form[0].shape
        assert torch.allclose(found.reshape(-1), expected, rtol=1e-6, atol=0)
    by_name, by_place = models(rows), [list(model.values()) for model in models(rows)]
    for form, kind in ((by_name, dict), (by_place, list), ([tuple(model) for model in by_place], list)):
        found = call(form, name)
        assert type(found) is kind and len(found) == 3
        assert [tuple(part.shape) for part in (found.values() if kind is dict else found)] == list(SHAPES.values())
        assert torch.allclose(joined(found), expected, rtol=1e-6, atol=0)
    if dtype != torch.bfloat16:
        found = call([[part.numpy() for part in model] for model in by_place], name)
        assert all(isinstance(part, np.ndarray) for part in found)
        assert torch.allclose(joined(found), expected, rtol=1e-6, atol=0)


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
    """Large layers go through as they lie: no tensor of their size is made but the result."""
    from torch.utils._python_dispatch import TorchDispatchMode

    vectors = [[torch.randn(300_000), torch.randn(10, 20)] for _ in range(N)]

    class Largest(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            given = {leaf.untyped_storage().data_ptr() for vector in vectors for leaf in vector}
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
                self.made = max(self.made, result.untyped_storage().nbytes())
            return result

    for name in ("krum", "multi-krum", "geometric-median", "median"):
        with Largest() as largest:
            call(vectors, name)
        assert largest.made <= 4 * 300_000, name
