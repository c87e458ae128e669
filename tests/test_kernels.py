"""The compiled sums against numpy's in float64, over every form, dtype, number of rows and columns."""

import itertools
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from krum.rules import kernels
from krum.simulation.models import as_floats

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ADDITIONS = kernels.PROVING // kernels.REGISTER


def drawn(n, d, dtype, seed=0):
    return torch.from_numpy(np.random.default_rng([seed, n, d]).normal(size=(n, d))).to(dtype)


def cut(vectors, places):
    """The same vectors as parts: matrices, slices of one, and lists of tensors in turn."""
    ends = sorted({0, *(place for place in places if place < vectors.shape[1]), vectors.shape[1]})
    parts = [vectors[:, start:stop] for start, stop in itertools.pairwise(ends)]
    return [[row.clone() for row in part] if i % 2 else part for i, part in enumerate(parts)]


def all_differences(vectors):
    v = vectors.double().numpy()
    return np.stack([np.square(row - v).sum(-1) for row in v])


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 23),
    d=st.sampled_from([1, 2, 7, 8, 9, 15, 1023, 1024, 1025, 3001]),
    dtype=st.sampled_from(DTYPES),
    places=st.lists(st.integers(1, 3000), max_size=4),
    seed=st.integers(0, 999),
)
def test_sums_of_parts(n, d, dtype, places, seed):
    vectors = drawn(n, d, dtype, seed)
    parts = cut(vectors, places)
    assert kernels.fit(parts)
    expected = all_differences(vectors)
    found = kernels.squared_differences(parts).numpy()
    assert np.allclose(found, expected, rtol=1e-13, atol=0) and np.array_equal(found, found.T)
    chosen = sorted({0, n // 2, n - 1})
    assert np.allclose(kernels.squared_differences(parts, chosen).numpy(), expected[chosen], rtol=1e-13, atol=0)
    if dtype == torch.float64:
        return
    v = vectors.double().numpy()
    products, additions = kernels.products(parts)
    bound = 1.001 * additions * 2.0**-24 * (abs(v) @ abs(v).T) + 1e-40
    assert (abs(products.numpy() - v @ v.T) <= bound).all()
    assert additions <= ADDITIONS


@pytest.mark.parametrize("n", [95, 96, 97, 203])
def test_blocks_of_rows(n):
    vectors = drawn(n, 1030, torch.float32)
    v = vectors.double().numpy()
    assert np.allclose(kernels.products([vectors])[0].numpy(), v @ v.T, rtol=0, atol=1e-3)
    assert np.allclose(kernels.squared_differences([vectors]).numpy(), all_differences(vectors), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(20, 300_001), (130, 20_000)])
def test_threads_change_no_bit(n, d, dtype):
    vectors, before = drawn(n, d, dtype), torch.get_num_threads()
    weights, result = np.linspace(-1, 2, n).tolist(), [torch.empty(d, dtype=dtype) for _ in range(3)]
    found = []
    try:
        for threads, into in zip((1, 2, 3), result, strict=True):
            torch.set_num_threads(threads)
            sums = [] if dtype == torch.float64 else [kernels.products([vectors])[0]]
            found.append([*sums, kernels.squared_differences([vectors])])
            if dtype in (torch.float32, torch.float64):
                kernels.weighted_sum(weights, vectors, into)
                found[-1].append(into)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 7, 8, 4095, 4096, 4097, 50_001])
@pytest.mark.parametrize("used", [0, 1, 2, 3, 4, 5, 9])
def test_weighted_sum(used, d, dtype):
    vectors, result = drawn(9, d, dtype), torch.empty(d, dtype=dtype)
    weights = np.random.default_rng(d).normal(size=9) * (np.arange(9) < used)
    vectors[used:] = torch.nan  # without weight: not read
    expected = weights[:used] @ vectors.double().numpy()[:used]
    for part in (vectors, list(vectors)):
        kernels.weighted_sum(weights.tolist(), part, result.fill_(7))
        assert np.allclose(result.numpy(), expected, rtol=2e-7 if dtype == torch.float32 else 1e-12, atol=1e-12)


@pytest.mark.skipif(sys.platform == "win32", reason="pages are protected by mprotect")
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_behind_the_last_number(dtype):
    """Vectors that end where a page ends whose successor may not be read: one number more would kill the process."""
    script = f"""if True:
        import ctypes, mmap, torch
        from krum.rules import kernels
        dtype = {dtype}
        memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        protect = ctypes.CDLL(None).mprotect
        assert protect(ctypes.c_void_p(begin + mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        readable = torch.frombuffer(memory, dtype=dtype, count=mmap.PAGESIZE // dtype.itemsize).normal_()
        for n in (5, 8):
            for d in range(1, 28):
                last = readable[-n * d:].view(n, d)
                squared = kernels.squared_differences([last])
                differences = last[:, None].double() - last.double()
                assert torch.allclose(squared, differences.square().sum(-1), rtol=1e-12, atol=0)
                if dtype != torch.float64:
                    kernels.products([last])
        if dtype == torch.float32:
            for rows in range(1, 9):
                for width in (1, 7, 8, 9, 17):
                    at_end, zeros = readable[-rows * width:].view(1, rows, width), torch.zeros(1, 20, 20)
                    x, y, others = zeros[:, :rows, :rows], zeros[:, :rows, :9], torch.ones(1, 20, 20)
                    bias = others[0, :1, :width]
                    assert kernels.sparse_affine(at_end.zero_(), y, others[:, :9, :width], bias).all()
                    assert kernels.sparse_affine(torch.ones(1, rows, width), x, at_end, bias).all()
                    out, weight, active = torch.ones(1, rows, width), others[:, :rows, :width], others[:, :width, :9]
                    assert kernels.sparse_affine(out, x, weight, at_end[0, -1:]).all()
                    kernels.through_relu(at_end, y, active, others[:, :rows, :width])
                    kernels.through_relu(out, y, active, at_end)
                    kernels.through_relu(torch.ones(1, rows, 9), at_end, others[:, :9, :width], others[:, :rows, :9])
                    assert kernels.sparse_outer_sums(at_end, x, others[:, :rows, :width], 1.0).all()
                    assert kernels.sparse_outer_sums(torch.ones(1, 9, width), y, at_end, 1.0).all()
                    at_end[0, -1, -1] = rows * width > 2
                    assert kernels.sparse_affine(
                        torch.ones(1, rows, 9), at_end, others[:, :width, :9], others[0, :1, :9]
                    ).all()
                    assert kernels.sparse_outer_sums(torch.ones(1, width, 9), at_end, y, 1.0).all()
            in_bytes = torch.frombuffer(memory, dtype=torch.uint8, count=mmap.PAGESIZE).zero_()
            for rows in range(1, 9):
                for width in (1, 7, 15, 16, 17, 63, 64, 65):
                    at_end, delta = in_bytes[-rows * width:].view(1, rows, width), torch.ones(1, rows, 9)
                    at_end[0, -1, -1] = rows * width > 2
                    assert kernels.sparse_affine(
                        torch.ones(1, rows, 9), at_end, torch.ones(1, width, 9), torch.ones(1, 9)
                    ).all()
                    assert kernels.sparse_outer_sums(torch.ones(1, width, 9), at_end, delta, 1.0).all()
                    gram = torch.zeros(1, rows, rows, dtype=torch.float64)
                    kernels.add_inner_products(gram, at_end, torch.ones(1, rows, 40), "gradients")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"


def test_what_does_not_fit():
    vectors = drawn(6, 40, torch.float32)
    assert kernels.fit([vectors[:, 3:9], list(vectors), vectors[::2], vectors[:, ::8][:, :1]])
    assert not kernels.fit([vectors, vectors[:, ::2]])
    assert not kernels.fit([[row[::2] for row in vectors]])
    assert not kernels.fit([vectors.to("meta")])


def test_without_a_place_for_compiled_code():
    """An installation that nobody can write to, and no home: compiled anew in each process."""
    script = """if True:
        import numba.core.caching as caching
        caching.CacheImpl._locator_classes = []
        import torch, krum
        vectors = torch.randn(7, 3_000)
        assert torch.equal(krum.aggregate(vectors, "krum", f=2), krum.aggregate(list(vectors), "krum", f=2))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_error_in_a_thread_is_raised():
    def fail(first, last):
        if first:
            raise ZeroDivisionError
        return last

    with pytest.raises(ZeroDivisionError):
        list(kernels._in_threads(fail, [0, 5, 9], 2))
    assert list(kernels._in_threads(lambda first, last: last, [0, 5, 9], 2)) == [5, 9]


def test_threads_of_our_own_where_torchs_cannot_be_had(monkeypatch):
    vectors = drawn(20, 200_000, torch.float32)
    expected = kernels.squared_differences([vectors])
    monkeypatch.setattr(kernels, "_torchs_team", lambda: None)
    assert torch.equal(kernels.squared_differences([vectors]), expected)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, top) for top in (4, 9, 7, 30, 12)])
    | st.tuples(*map(st.sampled_from, [[2], [1, 4, 5], [1, 40, 65, 130], [17], [32, 105]])),
    seed=st.integers(0, 999),
    sparse=st.booleans(),
    spoiled=st.sampled_from([None, torch.nan, torch.inf]),
    branch=st.sampled_from([None, "samples", "gradients"]),
)
def test_inner_products(sizes, seed, sparse, spoiled, branch):
    """Every pair of rows in float64; a replica alone, and beside one that is not finite."""
    replicas, workers, rows, fan_in, fan_out = sizes
    generator = torch.Generator().manual_seed(seed)
    x, delta = (torch.randn(replicas, workers * rows, width, generator=generator) for width in (fan_in, fan_out))
    if sparse:
        x *= torch.rand(x.shape, generator=generator) < 0.2
    if spoiled is not None:
        delta[-1, 0] = spoiled
    gram = torch.ones(replicas, workers, workers, dtype=torch.float64)
    kernels.add_inner_products(gram, x, delta, branch)
    pairs = (x.double() @ x.double().mT + 1) * (delta.double() @ delta.double().mT)
    expected = 1 + pairs.view(replicas, workers, rows, workers, rows).sum((2, 4))
    size = (x.norm(dim=-1).square() + 1).amax() * delta.nan_to_num(0, 0, 0).norm(dim=-1).square().amax() * rows**2
    close = (gram - expected).abs() <= 1e-5 * size.double() + 1e-12
    upper = torch.ones(workers, workers).triu().bool().expand_as(close)
    assert bool((close | ~expected.isfinite())[upper].all())
    assert torch.equal(gram[upper].isfinite(), expected[upper].isfinite()), "zero times infinity is a NaN"
    for replica in range(replicas):
        alone = torch.ones(1, workers, workers, dtype=torch.float64)
        of_replica = (part[replica : replica + 1].clone() for part in (x, delta))
        kernels.add_inner_products(alone, *of_replica, branch)
        assert alone[0].numpy().tobytes() == gram[replica].numpy().tobytes()


@pytest.mark.parametrize(("workers", "batch_size", "share", "expected"), [
    (14, 3, 0.2, "samples"), (14, 3, 1, "samples"), (20, 20, 0.2, "gradients"), (14, 100, 1, "gradients")
])  # fmt: skip
def test_the_branch_follows_the_zeros(workers, batch_size, share, expected):
    """Each replica's own zeros decide; here the same bytes as with that branch given."""
    x = mostly_zeros(2, workers * batch_size, 784, share=share)
    delta = drawn(2 * workers * batch_size, 100, torch.float32).view(2, -1, 100)
    chosen, given_ = (torch.zeros(2, workers, workers, dtype=torch.float64) for _ in range(2))
    kernels.add_inner_products(chosen, x, delta)
    kernels.add_inner_products(given_, x, delta, expected)
    assert torch.equal(chosen, given_)


def mostly_zeros(replicas, rows, width, seed=0, share=0.2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(replicas, rows, width, generator=generator)
    return x * (torch.rand(x.shape, generator=generator) < share)


def affine(out, x, weight, rectify=False):
    """`kernels.sparse_affine` with a bias of eighths, which are exact."""
    bias = torch.arange(weight.shape[-1]).expand(len(x), -1) / 8
    return kernels.sparse_affine(out, x, weight, bias.contiguous(), rectify)


@settings(max_examples=60, deadline=None)
@given(
    replicas=st.integers(1, 3),
    rows=st.sampled_from([1, 2, 3, 63, 64, 65, 129, 300]),
    width=st.sampled_from([1, 15, 63, 64, 65, 127, 130, 784]),
    columns=st.sampled_from([1, 7, 8, 32, 100, 104, 105, 211]),
    seed=st.integers(0, 999),
    sliced=st.booleans(),
)
def test_sparse_affine_and_outer_sums(replicas, rows, width, columns, seed, sliced):
    """Both in float64, with the bound that no order of summation exceeds; a replica alone, and a row alone."""
    x = mostly_zeros(replicas, rows, width, seed)
    if sliced:
        x = torch.cat([x, x.new_ones(replicas, rows, 3)], -1)[..., :width]
    x[:, 0, 0] = 1.5
    x[:, :, 1:] *= (x[:, :, 1:] != 0).float().mean() < 0.3  # so that few numbers are sparse, too
    weight = drawn(replicas * width, columns, torch.float32, seed).view(replicas, width, columns)
    delta = drawn(replicas * rows, columns, torch.float32, seed).view(replicas, rows, columns)
    forward, backward = torch.full((replicas, rows, columns), 7.0), torch.full((replicas, width, columns), 7.0)
    bias = torch.arange(columns) / 8
    for write, other, at_first, factor, exact in (
        (affine, weight, forward, 0, lambda a, b: a @ b + bias),
        (partial(affine, rectify=True), weight, forward, 0, lambda a, b: (a @ b + bias).relu()),
        (kernels.sparse_outer_sums, delta, backward, 0, lambda a, b: a.mT @ b),
        (partial(kernels.sparse_outer_sums, scale=-0.5, add=True), delta, backward, 1, lambda a, b: -0.5 * (a.mT @ b)),
    ):
        out = at_first.clone()
        assume(write(out, x, other).all())
        expected = factor * at_first + exact(x.double(), other.double())
        size = factor * at_first + exact(x.abs().double(), other.abs().double()).abs()
        assert bool(((out - expected).abs() <= (width + rows + 1) * kernels.UNIT * size).all())
        for replica in range(replicas):
            alone = at_first[:1].clone()
            write(alone, x[replica : replica + 1].clone(), other[replica : replica + 1].clone())
            assert alone.numpy().tobytes() == out[replica].numpy().tobytes()
    alone = torch.ones(replicas, 1, columns)
    if affine(alone, x[:, -1:], weight).all():
        out = torch.ones(replicas, rows, columns)
        affine(out, x, weight)
        assert torch.equal(alone, out[:, -1:])


@settings(max_examples=60, deadline=None)
@given(
    replicas=st.integers(1, 3),
    rows=st.sampled_from([1, 2, 3, 4, 50]),
    width=st.sampled_from([1, 2, 10, 64, 65]),
    columns=st.sampled_from([1, 8, 100, 104, 105, 211]),
    seed=st.integers(0, 999),
    spoiled=st.sampled_from([None, torch.nan, torch.inf]),
)
def test_through_relu(replicas, rows, width, columns, seed, spoiled):
    """As the product and autograd's mask; a replica alone, and beside one whose weights are not finite."""
    delta, weight = (drawn(replicas * n, width, torch.float32, seed).view(replicas, n, width) for n in (rows, columns))
    activation = drawn(replicas * rows, columns, torch.float32, seed + 1).view(replicas, rows, columns).relu()
    delta[:, :, 0] *= torch.arange(rows) % 2
    activation[0, 0, 0] = torch.nan
    if spoiled is not None:
        weight[-1, -1, 0] = spoiled
    out = torch.full((replicas, rows, columns), 7.0)
    kernels.through_relu(out, delta, weight, activation)
    exact = delta.double() @ weight.double().mT
    expected = exact.where(~(activation <= 0), 0.0)
    assert torch.equal(out.isfinite(), expected.isfinite()), "zero times infinity is a NaN"
    size = delta.abs().double() @ weight.abs().double().mT
    close = ((out - expected).abs() <= (width + 1) * kernels.UNIT * size) | (out == expected)
    assert bool((close | ~expected.isfinite()).all())
    for replica in range(replicas):
        alone = torch.ones(1, rows, columns)
        one = (part[replica : replica + 1].clone() for part in (delta, weight, activation))
        kernels.through_relu(alone, *one)
        assert alone.numpy().tobytes() == out[replica].numpy().tobytes()


@settings(max_examples=100, deadline=None)
@given(
    problems=st.integers(1, 3),
    n=st.integers(1, 70),
    seed=st.integers(0, 999),
    among=st.sampled_from([2, 5, 10**6]),
    data=st.data(),
)
def test_sums_of_nearest(problems, n, seed, among, data):
    """Sorted and added up in order, to the last bit, with ties, infinities and NaN; alone and among others."""
    neighbours = data.draw(st.integers(0, n - 1))
    rng = np.random.default_rng(seed)
    measure = rng.integers(among, size=(problems, n, n)) / 7
    measure[rng.random(measure.shape) < 0.05] = rng.choice([np.inf, np.nan])
    found = kernels.sums_of_nearest(torch.from_numpy(measure), neighbours).numpy()
    for problem, row in np.ndindex(problems, n):
        others = np.sort(np.delete(np.nan_to_num(measure[problem, row], nan=np.inf, posinf=np.inf), row))
        assert found[problem, row] == sum(others[:neighbours].tolist(), 0.0)


@settings(max_examples=60, deadline=None)
@given(
    workers=st.sampled_from([1, 2, 5]),
    rows=st.sampled_from([1, 3, 64, 65]),
    width=st.sampled_from([1, 63, 64, 130, 784]),
    columns=st.sampled_from([7, 100, 211]),
    seed=st.integers(0, 999),
    spoiled=st.booleans(),
)
def test_bytes_stand_for_their_255ths(workers, rows, width, columns, seed, spoiled):
    """Every result is, to the last bit, that of the same numbers as float32."""
    x = (mostly_zeros(2, workers * rows, width, seed).abs() * 80).clamp(max=255).to(torch.uint8)
    x[0, 0, 0], x[0, -1, -1] = 255, 1
    floats = as_floats(x)
    assert floats.dtype == torch.float32 and np.array_equal(floats.numpy(), x.numpy() / np.float32(255))
    weight, delta = (drawn(2 * n, columns, torch.float32, seed).view(2, n, columns) for n in (width, workers * rows))
    if spoiled:
        weight[1, 0, 0] = delta[1, 0, 0] = torch.nan
    for write, size, other in (
        (affine, workers * rows, weight),
        (kernels.sparse_outer_sums, width, delta),
        (partial(kernels.sparse_outer_sums, scale=-0.5, add=True), width, delta),
    ):
        out, expected = torch.ones(2, size, columns), torch.ones(2, size, columns)
        done = write(out, x, other)
        assert np.array_equal(done, write(expected, floats, other))
        assert out[done].numpy().tobytes() == expected[done].numpy().tobytes()
    for branch in (None, "samples", "gradients"):
        out, expected = (torch.zeros(2, workers, workers, dtype=torch.float64) for _ in range(2))
        kernels.add_inner_products(out, x, delta, branch)
        kernels.add_inner_products(expected, floats, delta, branch)
        assert out.numpy().tobytes() == expected.numpy().tobytes()


def test_what_is_not_sparse_or_not_finite_is_left():
    """Each reason in a replica of its own, in the last column block and the last rows, too."""
    x = mostly_zeros(5, 200, 300)
    weight, delta = (drawn(5 * rows, 211, torch.float32).view(5, rows, 211) for rows in (300, 200))
    x[1] = 1
    weight[2, 299, 210] = torch.nan
    weight[3, 0, 0] = -torch.inf
    delta[2, 199, 210] = torch.nan
    delta[3, 0, 0] = torch.inf
    out, sums = torch.zeros(5, 200, 211), torch.ones(5, 300, 211)
    assert affine(out, x, weight).tolist() == [True, False, False, False, True]
    assert kernels.sparse_outer_sums(sums, x, delta, add=True).tolist() == [True, False, False, False, True]
    assert bool((sums[1:4] == 1).all()), "as before"
    assert torch.allclose(out[4], x[4] @ weight[4] + torch.arange(211) / 8, atol=1e-4)
    assert torch.allclose(sums[4], 1 + x[4].mT @ delta[4], atol=1e-4)
    x[4, 0, 0], x[4, 1, 1] = torch.nan, torch.inf
    out.zero_(), sums.fill_(1)
    assert affine(out, x, weight)[4] and kernels.sparse_outer_sums(sums, x, delta, add=True)[4]
    assert torch.equal(out[4].isnan(), (x[4] @ weight[4]).isnan()), "what is not zero is multiplied"
    assert torch.equal(sums[4].isfinite(), (x[4].mT @ delta[4]).isfinite())
