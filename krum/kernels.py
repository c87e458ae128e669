"""The sums that aggregation spends its time on, over rows where they lie, compiled for this processor by numba.

Each takes the n vectors as addresses, so that a matrix and a list of tensors are read alike and nothing is copied, and
computes a tile of 4 x 4 pairs at a time: eight numbers are loaded for sixteen products, and stay in registers. Only
half of a symmetric matrix is computed, and chunks of columns are short enough for the cache.

- `products`: inner products of float32, float16 or bfloat16 vectors. Products and sums are float32, in LANES sums side
  by side over one chunk, which are added up in float64.
- `add_sums_over_pairs`: what a layer adds to the inner products of gradients, from its inputs and derivatives.
- `squared_differences`: `||V_i - V_j||^2` in float64 from the differences, which cancel nothing.
- `weighted_sum`: a rule's combination of the rows, in float64.

Columns are cut into spans by their number alone, and spans are added in order: threads change no bit. Same values in
two rows give the same bits.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from krum.distances import Part

TILE = 4  # rows by rows
LANES = 8  # sums side by side
CHUNK = 1024  # columns whose products are added up before they go into float64
LONG = 2**20  # columns: from here on vectors are closer to each other, and chunks half as long tell them apart
UNIT = 2.0**-24  # of float32: half the distance from 1 to the next number
LOST = 2.0**-120  # more than a product can lose to underflow, with vectors of length 1
ROUNDING = 1e-11  # of float64, relative, and to spare
BLOCK = 96  # rows that meet others while they are in the cache
SPAN_WORK, SPANS = 2**22, 16  # multiply-adds in a span at least, and spans at most
READ = 2**18  # numbers of a weighted sum that one thread reads at least
ADDED = 2**12  # columns of a weighted sum at a time

# How numba sees the numbers: it has no bfloat16, and its float16 is not for CPUs.
SEEN_AS = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.int16, torch.bfloat16: np.uint16}


def fit(parts: Sequence[Part]) -> bool:
    """The kernels can read them: on the CPU, and the numbers of a row one after the other."""
    for part in parts:
        first = part[0]
        if first.device.type != "cpu" or first.dtype not in SEEN_AS:
            return False
        if not all(row.is_contiguous() for row in ((first,) if isinstance(part, Tensor) else part)):
            return False
    return True


def products(parts: Sequence[Part]) -> tuple[Tensor, int]:
    """Inner products `<V_i, V_j>` of n vectors, float64 [n, n], and how many float32 additions each product passed."""
    return _products(_rows(parts))


def _products(rows: "list[_Rows]") -> tuple[Tensor, int]:
    chunk = CHUNK if sum(some.d for some in rows) < LONG else CHUNK // 2
    return _over_spans(rows, rows, True, chunk, np.float32(0)), chunk // LANES


def distance_bounds(parts: Sequence[Part]) -> Tensor | None:
    """Below and above all `||V_i - V_j||^2`, float64 [2, n, n], from float32 products; None where they cannot tell.

    A sum of products, in whatever order, in which no product passes through more than c additions is wrong by at most
    `c u / (1 - c u) sum_k |x_k y_k|`, u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
    3.1). Here c is at most CHUNK / LANES however many columns there are.
    """
    rows = _rows(parts)
    if any(_share_a_large_part(some.addresses, some.lengths, some.like) for some in rows):
        return None
    gram, additions = _products(rows)
    passed = (additions + 1) * UNIT
    lost = LOST * sum(some.d for some in rows)
    bounds = np.empty((2, *gram.shape))
    told = _bounds(gram.numpy(), passed / (1 - 2 * passed) + ROUNDING, lost, bounds)
    return torch.from_numpy(bounds) if told else None


def squared_differences(parts: Sequence[Part], chosen: Sequence[int] | None = None) -> Tensor:
    """`||V_i - V_j||^2`, float64: [n, n], or [k, n] from the k chosen rows of finite vectors to all.

    A vector with a NaN or an infinity is at distance `inf` from every vector, itself included.
    """
    rows = _rows(parts)
    if chosen is None:
        between = _over_spans(rows, rows, True, CHUNK, np.float64(0))
        _put_at_infinity(between.numpy())
        return between
    return _over_spans([some.of(chosen) for some in rows], rows, False, CHUNK, np.float64(0))


def weighted_sum(weights: Sequence[float], part: Part, result: Tensor) -> None:
    """Write `sum_i weights_i V_i`, computed in float64, into `result [d]`; rows and result are float32 or float64."""
    used = [i for i, weight in enumerate(weights) if weight]
    missing = -len(used) % 4
    factors = np.array([weights[i] for i in used] + [0.0] * missing)
    addresses = np.array(_begin(part), np.uint64)[used + used[:1] * missing]
    into, like = result.numpy(), np.empty(0, SEEN_AS[result.dtype])
    spans = max(1, min(torch.get_num_threads(), len(used) * len(into) // READ))
    if spans == 1:
        _add_up(addresses, factors, like, into, 0, len(into))
    else:
        cuts = [len(into) * i // spans // ADDED * ADDED for i in range(spans)] + [len(into)]
        list(_in_threads(partial(_add_up, addresses, factors, like, into), cuts, spans))


def add_sums_over_pairs(gram: Tensor, x: Tensor, delta: Tensor) -> None:
    """Add `sum_{s in i, t in j} (x_s . x_t + 1) (delta_s . delta_t)` to the upper triangles of `gram [R, h, h]`.

    `x [R, S, in]` and `delta [R, S, out]` are contiguous float32 on the CPU, S / h rows of each worker after the
    other's; gram is float64. Every replica has the bytes that it has alone.
    """
    replicas, total, _ = x.shape
    where = [(part.data_ptr(), 4 * part.stride(0), 4 * part.stride(1), part.shape[2]) for part in (x, delta)]
    _add_pairs(*where, replicas, total, total // gram.shape[1], np.empty(0, np.float32), np.float32(0), gram.numpy())


@dataclass(frozen=True)
class _Rows:
    """Parts of one dtype: where each row of each part begins."""

    addresses: np.ndarray  # [parts, n], uint64
    lengths: np.ndarray  # [parts]
    d: int  # columns of all parts
    like: np.ndarray  # no numbers, of the dtype

    def of(self, chosen: Sequence[int]) -> "_Rows":
        return _Rows(self.addresses.take(chosen, axis=1), self.lengths, self.d, self.like)

    @property
    def padded(self) -> np.ndarray:
        """The addresses, with the last row's repeated until tiles are full."""
        n = self.addresses.shape[1]
        return self.addresses if n % TILE == 0 else self.addresses.take([*range(n), *[n - 1] * (-n % TILE)], axis=1)


def _begin(part: Part) -> list[int]:
    """Where each row begins."""
    if not isinstance(part, Tensor):
        return [row.data_ptr() for row in part]
    begin, step = part.data_ptr(), part.stride(0) * part.element_size()
    return [begin + step * row for row in range(len(part))]


def _rows(parts: Sequence[Part]) -> list[_Rows]:
    by_dtype: dict[torch.dtype, list[tuple[Any, int]]] = {}
    for part in parts:
        first = part[0]
        by_dtype.setdefault(first.dtype, []).append((_begin(part), len(first)))
    return [
        _Rows(
            np.array([begin for begin, _ in some], np.uint64),
            np.array([length for _, length in some]),
            sum(length for _, length in some),
            np.empty(0, SEEN_AS[dtype]),
        )
        for dtype, some in by_dtype.items()
    ]


def _over_spans(left: list[_Rows], right: list[_Rows], symmetric: bool, chunk: int, zero: np.floating) -> Tensor:
    """The sums over all columns of all pairs; `zero` is of the type that sums have, which says what is summed."""
    rows, columns = left[0].addresses.shape[1], right[0].addresses.shape[1]
    total = np.zeros((rows + -rows % TILE, columns + -columns % TILE))
    for mine, others in zip(left, right, strict=True):
        _add_spans(mine, others, symmetric, chunk, zero, total)
    if symmetric:
        _mirror(total)
    return torch.from_numpy(np.ascontiguousarray(total[:rows, :columns]))


def _add_spans(left: _Rows, right: _Rows, symmetric: bool, chunk: int, zero: np.floating, total: np.ndarray) -> None:
    d, a = left.d, left.padded
    b = a if right is left else right.padded
    spans = max(1, min(SPANS, total.size * d // SPAN_WORK, d // chunk))
    spans = 2 ** (spans.bit_length() - 1)  # a power of two divides among most numbers of cores
    cuts = [d * i // spans // chunk * chunk for i in range(spans)] + [d]

    def span(first: int, last: int, out: np.ndarray | None = None) -> np.ndarray:
        out = np.zeros(total.shape) if out is None else out
        _add_tiles(a, b, left.lengths, symmetric, first, last, chunk, left.like, zero, out)
        return out

    if spans == 1:
        span(0, d, total)
    else:
        with np.errstate(invalid="ignore"):  # inf - inf, of vectors that are not finite
            for out in _in_threads(span, cuts, torch.get_num_threads()):
                total += out


def _in_threads(span: Callable[[int, int], Any], cuts: Sequence[int], threads: int) -> Iterable[Any]:
    """What a function of a span returns for each, in order."""
    count = len(cuts) - 1
    if threads == 1 or count == 1:
        return map(span, cuts, cuts[1:])
    start_team = _torchs_team()
    if start_team is None:
        with ThreadPoolExecutor(min(threads, count)) as pool:
            return list(pool.map(span, cuts, cuts[1:]))
    results: list[Any] = [None] * count
    errors: list[BaseException] = []
    left = iter(range(count))

    def work(_: int) -> None:
        try:
            for k in left:
                results[k] = span(cuts[k], cuts[k + 1])
        except BaseException as error:
            errors.append(error)

    start_team(TEAM_MEMBER(work), None, min(threads, count), 0)
    if errors:
        raise errors[0]
    return results


TEAM_MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _torchs_team() -> Any:
    """`GOMP_parallel`, which lets torch's own threads call a function; None where torch has other ones.

    After its own work they wait for more without sleeping, and keep others from the cores.
    """
    try:
        return ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None


# ------------------------------------------------------------------------------------------------------- compiled

FLOAT, DOUBLE, SHORT, INT, LONG_INT = ir.FloatType(), ir.DoubleType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
LOADED = {types.float32: FLOAT, types.float64: DOUBLE, types.int16: ir.HalfType(), types.uint16: SHORT}


def _of_lanes(kind: ir.Type) -> ir.Type:
    return ir.VectorType(kind, LANES)


def _load(builder: ir.IRBuilder, address: ir.Value, seen: types.Type, wanted: ir.Type, lanes: int = LANES) -> ir.Value:
    """Numbers from an address, a vector of `wanted`: FLOAT or DOUBLE."""
    kind = LOADED[seen]
    pointer = builder.inttoptr(address, ir.VectorType(kind, lanes).as_pointer())
    return _converted(builder, builder.load(pointer, align=seen.bitwidth // 8), kind, wanted)


def _converted(builder: ir.IRBuilder, value: ir.Value, kind: ir.Type, wanted: ir.Type) -> ir.Value:
    lanes = value.type.count
    if kind == SHORT:  # a bfloat16 is the upper half of a float32
        wide = ir.VectorType(INT, lanes)
        upper = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * lanes))
        value, kind = builder.bitcast(upper, ir.VectorType(FLOAT, lanes)), FLOAT
    return value if kind == wanted else builder.fpext(value, ir.VectorType(wanted, lanes))


def _load_first(
    builder: ir.IRBuilder, address: ir.Value, seen: types.Type, wanted: ir.Type, mask: ir.Value
) -> ir.Value:
    """Likewise where `mask` says so, without touching the memory behind, and zeros elsewhere."""
    kind = LOADED[seen]
    vector = _of_lanes(kind)
    name = f"llvm.masked.load.v{LANES}{'i16' if kind == SHORT else kind.intrinsic_name}.p0"
    load = _declared(builder, name, vector, [vector.as_pointer(), INT, mask.type, vector])
    pointer = builder.inttoptr(address, vector.as_pointer())
    value = builder.call(load, [pointer, ir.Constant(INT, seen.bitwidth // 8), mask, ir.Constant(vector, None)])
    return _converted(builder, value, kind, wanted)


def _fused(builder: ir.IRBuilder, kind: ir.Type) -> ir.Function:
    """`a b + c`, rounded once."""
    vector = _of_lanes(kind)
    return _declared(builder, f"llvm.fma.v{LANES}{kind.intrinsic_name}", vector, [vector] * 3)


def _declared(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    """A function of LLVM's own."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _in_all_lanes(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A vector of LANES times the same number."""
    one = builder.insert_element(ir.Constant(_of_lanes(value.type), ir.Undefined), value, ir.Constant(INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_of_lanes(INT), [0] * LANES))


def _sums_of_lanes(builder: ir.IRBuilder, values: list[ir.Value]) -> list[ir.Value]:
    """The sum of each vector's numbers, as vectors of LANES doubles, in order: halves onto halves, two at a time."""
    if values[0].type.element == FLOAT:
        values = [builder.fpext(value, _of_lanes(DOUBLE)) for value in values]
    width = LANES
    while width > 1:
        width //= 2
        places = [k for k in range(2 * LANES) if k // width % 2 == 0]
        lower, upper = (ir.Constant(_of_lanes(INT), [place + more for place in places]) for more in (0, width))
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [builder.fadd(*(builder.shuffle_vector(a, b, half) for half in (lower, upper))) for a, b in pairs]
    return values


def _compiled(function: Callable) -> Callable:
    """Compiled at its first call, without the interpreter's lock, and kept on disk where numba finds a place for it."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@intrinsic
def _tile(typing, left, i, right, j, start, count, like, zero, out, step):
    """Add sums over `count` columns from `start` on, of TILE rows and TILE rows, to `out`, with `step` bytes a row.

    float32 sums are of products, float64 sums of squared differences.
    """
    kind, seen = (FLOAT if zero == types.float32 else DOUBLE), like.dtype
    size = seen.bitwidth // 8

    def generate(context, builder, signature, arguments):
        left_, i_, right_, j_, start_, count_, _, _, out_, step_ = arguments

        def number(value: int) -> ir.Constant:
            return ir.Constant(LONG_INT, value)

        def begin(table: ir.Value, row: ir.Value, more: int) -> ir.Value:
            entries = builder.inttoptr(table, LONG_INT.as_pointer())
            address = builder.load(builder.gep(entries, [builder.add(row, number(more))]))
            return builder.add(address, builder.mul(start_, number(size)))

        def with_products(sums: list[ir.Value], load: Callable, offset: ir.Value) -> list[ir.Value]:
            a, b = (
                [load(builder, builder.add(row, offset), seen, kind) for row in rows]
                for rows in (left_rows, right_rows)
            )
            fused, grown = _fused(builder, kind), []
            for pair, so_far in enumerate(sums):
                x, y = a[pair // TILE], b[pair % TILE]
                if kind == DOUBLE:
                    x = y = builder.fsub(x, y)
                grown.append(builder.call(fused, [x, y, so_far]))
            return grown

        def sums_from(*blocks: tuple[ir.Block, list[ir.Value]]) -> list[ir.Value]:
            sums = [builder.phi(_of_lanes(kind)) for _ in range(TILE * TILE)]
            for block, values in blocks:
                for so_far, value in zip(sums, values, strict=True):
                    so_far.add_incoming(value, block)
            return sums

        left_rows = [begin(left_, i_, k) for k in range(TILE)]
        right_rows = [begin(right_, j_, k) for k in range(TILE)]
        rest = builder.and_(count_, number(LANES - 1))
        end = builder.mul(builder.sub(count_, rest), number(size))
        zeros = [ir.Constant(_of_lanes(kind), [0.0] * LANES)] * (TILE * TILE)
        before = builder.block
        loop, after, tail, done = (builder.append_basic_block() for _ in range(4))
        builder.cbranch(builder.icmp_signed("<", number(0), end), loop, after)

        builder.position_at_end(loop)  # LANES columns
        offset = builder.phi(LONG_INT)
        sums = sums_from((before, zeros))
        grown = with_products(sums, _load, offset)
        further = builder.add(offset, number(LANES * size))
        offset.add_incoming(number(0), before)
        offset.add_incoming(further, loop)
        for so_far, then in zip(sums, grown, strict=True):
            so_far.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", further, end), loop, after)

        builder.position_at_end(after)
        whole = sums_from((before, zeros), (loop, grown))
        builder.cbranch(builder.icmp_signed("<", number(0), rest), tail, done)

        builder.position_at_end(tail)  # less than LANES columns
        places = ir.Constant(_of_lanes(LONG_INT), list(range(LANES)))
        mask = builder.icmp_signed("<", places, _in_all_lanes(builder, rest))
        with_rest = with_products(whole, partial(_load_first, mask=mask), end)
        builder.branch(done)

        builder.position_at_end(done)
        results = _sums_of_lanes(builder, sums_from((after, whole), (tail, with_rest)))
        a_row = ir.VectorType(DOUBLE, TILE)
        for row in range(TILE):
            place = builder.add(out_, builder.mul(step_, number(row)))
            pointer = builder.inttoptr(place, a_row.as_pointer())
            first = row * TILE % LANES
            lanes = ir.Constant(ir.VectorType(INT, TILE), list(range(first, first + TILE)))
            result = results[row * TILE // LANES]
            more = builder.shuffle_vector(result, result, lanes)
            builder.store(builder.fadd(builder.load(pointer, align=8), more), pointer, align=8)
        return context.get_dummy_value()

    address, number = types.uint64, types.intp
    return types.void(address, number, address, number, number, number, like, zero, address, number), generate


@intrinsic
def _value(typing, address, like):
    """The number at an address, as a float64."""

    def generate(context, builder, signature, arguments):
        return builder.extract_element(_load(builder, arguments[0], like.dtype, DOUBLE, 1), ir.Constant(INT, 0))

    return types.float64(types.uint64, like), generate


@_compiled
def _over_tiles(left, right, symmetric, start, count, like, zero, out):
    """Add the sums over one chunk of columns to `out`, whose sides are multiples of TILE."""
    rows, columns = out.shape
    a, b, to_out = np.uint64(left.ctypes.data), np.uint64(right.ctypes.data), np.uint64(out.ctypes.data)
    for first in range(0, rows, BLOCK):
        for second in range(first if symmetric else 0, columns, BLOCK):
            for i in range(first, min(first + BLOCK, rows), TILE):
                for j in range(max(i, second) if symmetric else second, min(second + BLOCK, columns), TILE):
                    place = to_out + np.uint64(8 * (i * columns + j))
                    _tile(a, i, b, j, start, count, like, zero, place, 8 * columns)


@_compiled
def _mirror(square):
    """Make the lower triangle that of the upper one."""
    for i in range(len(square)):
        for j in range(i):
            square[i, j] = square[j, i]


@_compiled
def _put_at_infinity(between):
    """Make infinite what a vector that is not finite, and so not at distance 0 from itself, is from others."""
    for i in range(len(between)):
        for j in range(i + 1):
            if not (between[i, i] == 0 and between[j, j] == 0):
                between[i, j] = between[j, i] = np.inf


@_compiled
def _bounds(gram, relative, lost, bounds):
    """Write below and above all squared distances; False where an inner product is not finite."""
    for i in range(len(gram)):
        bounds[:, i, i] = 0
        for j in range(i):
            product = gram[i, j]
            both = np.sqrt(gram[i, i]) + np.sqrt(gram[j, j])
            error = relative * both**2 + lost * (both + 1) ** 2
            middle = gram[i, i] + gram[j, j] - 2 * product
            if not (np.isfinite(middle) and np.isfinite(error)):
                return False
            bounds[0, i, j] = bounds[0, j, i] = max(middle - error, 0.0)
            bounds[1, i, j] = bounds[1, j, i] = middle + error
    return True


@_compiled
def _share_a_large_part(addresses, lengths, like):
    """The first two vectors are much longer than they are apart, by a few columns; a wrong guess costs time only."""
    part = np.argmax(lengths)
    length = apart = 0.0
    for k in range(0, lengths[part], max(1, lengths[part] // 64)):
        here = np.uint64(k * like.itemsize)
        first, second = _value(addresses[part, 0] + here, like), _value(addresses[part, 1] + here, like)
        length += first**2
        apart += (second - first) ** 2
    return length > 100 * apart


@_compiled
def _add_tiles(left, right, lengths, symmetric, first, last, chunk, like, zero, out):
    """Add to `out` the sums over the columns `first` to `last` of all parts, laid end to end."""
    begin = 0
    for part in range(len(lengths)):
        start, stop = max(first - begin, 0), min(last - begin, lengths[part])
        while start < stop:
            count = min(chunk, stop - start)
            _over_tiles(left[part], right[part], symmetric, start, count, like, zero, out)
            start += count
        begin += lengths[part]


@_compiled
def _begin_rows(begin, of_row, rows, padded):
    """Where rows begin, the last one repeated until tiles are full, as [1, padded]."""
    addresses = np.empty((1, padded), np.uint64)
    for row in range(padded):
        addresses[0, row] = np.uint64(begin) + np.uint64(min(row, rows - 1) * of_row)
    return addresses


@_compiled
def _add_pairs(x, delta, replicas, total, rows, like, zero, gram):
    """Add the sums over pairs of rows, `rows` of each worker, in all replicas; x and delta: begin, steps and width."""
    padded = (total + TILE - 1) // TILE * TILE
    of_x, of_delta = np.empty((padded, padded)), np.empty((padded, padded))
    for replica in range(replicas):
        for (begin, of_replica, of_row, width), products in ((x, of_x), (delta, of_delta)):
            products[:] = 0
            addresses = _begin_rows(begin + replica * of_replica, of_row, total, padded)
            lengths = np.array([width])
            _add_tiles(addresses, addresses, lengths, True, 0, width, CHUNK, like, zero, products)
        for s in range(total):
            i = s // rows
            gram[replica, i, i] -= (of_x[s, s] + 1) * of_delta[s, s]  # which is not twice there
            first, last = s, (i + 1) * rows
            for j in range(i, total // rows):
                so_far = 0.0
                for t in range(first, last):
                    so_far += (of_x[s, t] + 1) * of_delta[s, t]
                gram[replica, i, j] += 2 * so_far if i == j else so_far
                first, last = last, last + rows


@intrinsic
def _add_lanes(typing, total, offset, row_a, row_b, row_c, row_d, a, b, c, d, like):
    """Add four weighted rows to `total`, LANES numbers from an offset in bytes on."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _of_lanes(DOUBLE).as_pointer())
        so_far, fused = builder.load(place, align=8), _fused(builder, DOUBLE)
        for row, weight in zip(arguments[2:6], arguments[6:10], strict=True):
            numbers = _load(builder, builder.add(row, arguments[1]), like.dtype, DOUBLE)
            so_far = builder.call(fused, [_in_all_lanes(builder, weight), numbers, so_far])
        builder.store(so_far, place, align=8)
        return context.get_dummy_value()

    return types.void(*[types.uint64] * 6, *[types.float64] * 4, like), generate


@_compiled
def _add_up(addresses, weights, like, into, first, last):
    """Write the weighted sum of rows in the columns `first` to `last`; the number of rows is a multiple of four."""
    total, size = np.empty(ADDED), like.itemsize
    to_total = np.uint64(total.ctypes.data)
    for start in range(first, last, ADDED):
        count = min(ADDED, last - start)
        total[:count] = 0
        whole = count // LANES * LANES
        for row in range(0, len(addresses), 4):
            a, b, c, d = addresses[row], addresses[row + 1], addresses[row + 2], addresses[row + 3]
            v, w, x, y = weights[row], weights[row + 1], weights[row + 2], weights[row + 3]
            for k in range(0, whole, LANES):
                offset = np.uint64((start + k) * size)
                place = to_total + np.uint64(k * 8)
                _add_lanes(place, offset, a, b, c, d, v, w, x, y, like)
            for k in range(whole, count):
                here = np.uint64((start + k) * size)
                total[k] += v * _value(a + here, like) + w * _value(b + here, like)
                total[k] += x * _value(c + here, like) + y * _value(d + here, like)
        into[start : start + count] = total[:count]
