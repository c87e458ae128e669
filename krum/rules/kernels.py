"""The sums that aggregation spends its time on, over rows where they lie, compiled for this processor by numba.

Each takes the n vectors as addresses, so that a matrix and a list of tensors are read alike and nothing is copied, and
computes a tile of 4 x 4 pairs at a time: eight numbers are loaded for sixteen products, and stay in registers. Only
half of a symmetric matrix is computed, and chunks of columns are short enough for the cache.

- `products`, `distance_bounds`: inner products of float32, float16 or bfloat16 vectors, and what they prove. Products
  and sums are float32, as many sums side by side as a register holds, over one chunk, which are added up in float64.
- `add_inner_products`: what a layer adds to those of the workers' gradients, from its inputs and derivatives.
- `squared_differences`: `||V_i - V_j||^2` in float64 from the differences, which cancel nothing.
- `sums_of_nearest`: a rule's scores from few neighbours.
- `weighted_sum`: a rule's combination of the rows, in float64.
- `sparse_affine`, `sparse_outer_sums`: matrix products that leave out the many zeros of one factor, which may be an
  image's bytes. `through_relu`: the derivatives before a layer, which the ReLU masks.

Columns are cut into spans by their number alone, and spans are added in order: threads change no bit. Same values in
two rows give the same bits.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from krum.rules.distances import Part


def as_floats(x):
    """As they are."""
    return x


LEVELS = 255


TILE = 4  # rows by rows
LANES = 8  # sums side by side
CHUNK = 1024  # columns that are added up before they go into float64
PROVING = 512  # columns of products that shall tell vectors apart: fewer, and so closer, for hardly more time
UNIT = 2.0**-24  # of float32: half the distance from 1 to the next number
LOST = 2.0**-120  # more than a product can lose to underflow, with vectors of length 1
ROUNDING = 1e-11  # of float64, relative, and to spare
BLOCK = 96  # rows that meet others while they are in the cache
SPAN_WORK, SPANS = 2**22, 16  # multiply-adds in a span at least, and spans at most
READ = 2**18  # numbers of a weighted sum that one thread reads at least
ADDED = 2**12  # columns of a weighted sum at a time
# What a pair of samples costs beside its products, in multiply-adds; and, against one of these, what a multiply-add
# costs that forms gradients, and one of their inner products.
PER_PAIR, PER_FORMED, PER_TILED = 230, 2.1, 1.9
DENSEST = 0.35  # share of numbers other than zero up to which leaving out zeros is faster
MARKED = 64  # numbers whose zeros one integer tells from others
MARKED_DOWN = 16  # columns of which that is found out at a time
LOOKED_AT = 64  # rows that tell whether leaving out zeros pays
NARROW = 32  # columns of a factor that is not taken in vectors
MET = 512  # rows of a sparse product's other factor that stay in the cache
SIDE = 13 * LANES  # columns of a product that stay in registers
# Where registers are wide and many enough, they hold three rows of a product, and zeros that all have are left out.
REGISTER = 2 * LANES if get_host_cpu_features().get("avx512f") else LANES  # numbers
IN_ROWS = (0,) * (3 if REGISTER > LANES else 1)  # one 0 a row
# The sums of a pair side by side, as many as LANES once or, where no bit depends on it, as a register holds.
PRODUCTS, DIFFERENCES = (np.float32(0),), (np.float64(0),)
WIDE_PRODUCTS = PRODUCTS * (REGISTER // LANES)
ALONE, ADDED_TO, RECTIFIED, MASKED = range(4)  # what becomes of a sum, see `_sum_marked`

LEVELS_OF_BYTES = np.arange(256, dtype=np.float32) / np.float32(LEVELS)

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
    rows = _rows(parts)
    return _over_spans(rows, rows, True, PROVING, WIDE_PRODUCTS), PROVING // REGISTER


def distance_bounds(parts: Sequence[Part]) -> Tensor | None:
    """Below and above all `||V_i - V_j||^2`, float64 [2, n, n], from float32 products; None where they cannot tell.

    A sum of products, in whatever order, in which no product passes through more than c additions is wrong by at most
    `c u / (1 - c u) sum_k |x_k y_k|`, u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
    3.1). Here c is at most PROVING / REGISTER however many columns there are.
    """
    rows = _rows(parts)
    passed = (PROVING // REGISTER + 1) * UNIT
    relative, lost = passed / (1 - 2 * passed) + ROUNDING, LOST * sum(some.d for some in rows)
    n = rows[0].addresses.shape[1]
    bounds = np.empty((2, n, n))
    if len(rows) == 1 and _spans(n * n, rows[0].d, PROVING) == 1:  # small vectors, whose calls cost more than they do
        some = rows[0]
        told = _bounds_at_once(some.padded, some.lengths, PROVING, some.like, WIDE_PRODUCTS, relative, lost, bounds)
    elif any(_share_a_large_part(some.addresses, some.lengths, some.like) for some in rows):
        told = False
    else:
        told = _bounds(_over_spans(rows, rows, True, PROVING, WIDE_PRODUCTS).numpy(), relative, lost, bounds)
    return torch.from_numpy(bounds) if told else None


def squared_differences(parts: Sequence[Part], chosen: Sequence[int] | None = None) -> Tensor:
    """`||V_i - V_j||^2`, float64: [n, n], or [k, n] from the k chosen rows of finite vectors to all.

    A vector with a NaN or an infinity is at distance `inf` from every vector, itself included.
    """
    rows = _rows(parts)
    if chosen is None:
        between = _over_spans(rows, rows, True, CHUNK, DIFFERENCES)
        _put_at_infinity(between.numpy())
        return between
    return _over_spans([some.of(chosen) for some in rows], rows, False, CHUNK, DIFFERENCES)


def sums_of_nearest(measure: Tensor, neighbours: int) -> Tensor:
    """For each i the sum of its `neighbours` least values `measure[..., i, j]`, j != i, where a NaN is infinite.

    `measure [..., n, n]` is float64 and contiguous, on the CPU; the sums are [..., n].
    """
    sums = measure.new_empty(measure.shape[:-1])
    n = measure.shape[-1]
    _sums_of_nearest(measure.numpy().reshape(-1, n, n), neighbours, sums.numpy().reshape(-1, n))
    return sums


def weighted_sum(weights: Sequence[float], part: Part, result: Tensor) -> None:
    """Write `sum_i weights_i V_i`, computed in float64, into `result [d]`; rows and result are float32 or float64."""
    used = [i for i, weight in enumerate(weights) if weight]
    missing = -len(used) % 4
    factors = np.array([weights[i] for i in used] + [0.0] * missing)
    addresses = np.array(_begin(part, used + used[:1] * missing), np.uint64)
    into, like = result.numpy(), np.empty(0, SEEN_AS[result.dtype])
    spans = max(1, min(torch.get_num_threads(), len(used) * len(into) // READ))
    if spans == 1:
        _add_up(addresses, factors, like, into, 0, len(into))
    else:
        cuts = [len(into) * i // spans // ADDED * ADDED for i in range(spans)] + [len(into)]
        list(_in_threads(partial(_add_up, addresses, factors, like, into), cuts, spans))


def add_inner_products(gram: Tensor, x: Tensor, delta: Tensor, branch: str | None = None) -> None:
    """Add `sum_{s in i, t in j} (x_s . x_t + 1) (delta_s . delta_t)` to the upper triangles of `gram [R, h, h]`.

    `x [R, S, in]` and `delta [R, S, out]` are contiguous on the CPU, float32, or x bytes, S / h rows of each worker
    after the other's; gram is float64. Each replica takes the branch that costs less, over pairs of "samples" or of the
    workers' "gradients", formed a few columns at a time, or the one given. Every replica has the bytes that it has
    alone.
    """
    workers, (replicas, rows, fan_in), fan_out = gram.shape[1], x.shape, delta.shape[-1]
    tiles = -(-workers // TILE)
    over_pairs = rows * (rows + 1) / 2 * (fan_in + fan_out + PER_PAIR)
    # The share of numbers other than zero from which on forming is no longer cheaper.
    most = (over_pairs / (fan_in * fan_out) - PER_TILED * tiles * (tiles + 1) / 2 * TILE**2) / (PER_FORMED * rows)
    forming = np.full(replicas, most >= 1 if branch is None else branch == "gradients")
    if branch is None and 0 < most < 1 and fan_out >= NARROW:
        _choose(_place(x), rows, most, forming, _like(x))
    like, zero = _like(delta), PRODUCTS
    if not forming.all():
        places, of_worker = (_place(x), _place(delta)), rows // workers
        _add_pairs(*places, rows, of_worker, forming, like, zero, _like(x), LEVELS_OF_BYTES, gram.numpy())
    if forming.any():
        ones = torch.ones(()).expand(replicas, rows, 1)
        of_weight = (x, delta) if fan_out >= NARROW else (delta, as_floats(x))
        for one, in_vectors in (of_weight, (ones, delta)):
            for first, count, in_lanes in _column_blocks(in_vectors.shape[-1]):
                places = _place(one), _place(in_vectors, first)
                rest = (forming, rows // workers, count, in_lanes, IN_ROWS, like, zero, _like(one))
                _add_products_of_formed(*places, *rest, gram.numpy())


def sparse_affine(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, rectify: bool = False) -> np.ndarray:
    """Write `x W + bias`, or 0 where that is less and `rectify` is said, to `out [R, S, k]`; says where, bool [R].

    x is [R, S, in], weight [R, in, k] and bias [R, k].

    It is for those whose first rows are zeros mostly (DENSEST) and whose W is finite, so that every product left out is
    a zero. Of others, out is undefined. All are float32 on the CPU, or x bytes (see `krum.models.as_floats`), the
    numbers of a row one after the other. Every replica has the bytes that it has alone, and every row those that it has
    alone.
    """
    there, end = (bias.data_ptr(), 4 * bias.stride(0), 0), RECTIFIED if rectify else ADDED_TO
    return _in_blocks(_row_products, np.ones(len(x), np.bool_), out, x, weight, end, True, there=there)


def through_relu(out: Tensor, delta: Tensor, weight: Tensor, activation: Tensor) -> None:
    """Write `delta W^T` where the activation is positive, and 0 elsewhere, to `out [R, S, in]`, for all replicas.

    delta is [R, S, k], weight [R, in, k], the activation [R, S, in].
    """
    across, there, done = weight.mT.contiguous(), _place(activation)[:3], np.ones(len(delta), np.bool_)
    _in_blocks(_row_products, done, out, delta, across, MASKED, False, there=there)


def sparse_outer_sums(out: Tensor, x: Tensor, delta: Tensor, scale: float = 1.0, add: bool = False) -> np.ndarray:
    """Likewise `scale x^T delta` to `out [R, in, k]`, for `x [R, S, in]` and finite `delta [R, S, k]`.

    With `add`, it is added, and where it says no, out is as before.
    """
    # Of several blocks of columns, none may be added before the last is known to be finite.
    finite = delta.sum((1, 2)).isfinite().numpy() if delta.shape[-1] > SIDE else np.ones(len(x), np.bool_)
    return _in_blocks(_sparse_outer_sums, finite, out, x, delta, np.float32(scale), add)


def _place(part: Tensor, column: int = 0) -> tuple[int, int, int, int]:
    """Where `[R, rows, width]` begins, from a column on, bytes from replica to replica and row to row, and width."""
    size, (of_replica, of_row, _) = part.element_size(), part.stride()
    return part.data_ptr() + size * column, size * of_replica, size * of_row, part.shape[2]


def _like(part: Tensor) -> np.ndarray:
    """No numbers, of the part's dtype."""
    return np.empty(0, np.uint8 if part.dtype == torch.uint8 else np.float32)


def _column_blocks(columns: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Blocks of about the same width that stay in registers: the first column, their number, and one 0 a vector."""
    vectors = -(-columns // LANES)
    at_once = LANES * -(-vectors // -(-columns // SIDE))
    for first in range(0, columns, at_once):
        count = min(at_once, columns - first)
        yield first, count, (0,) * -(-count // LANES)  # its length is known when a function is compiled


def _in_blocks(
    add: Callable,
    done: np.ndarray,
    out: Tensor,
    x: Tensor,
    other: Tensor,
    *rest: Any,
    there: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Call a compiled function for each block of `out`'s columns, and for the replicas that are not yet given up.

    `there` is where something with as many columns begins, and bytes from replica to replica and from row to row.
    """
    for first, count, in_lanes in _column_blocks(other.shape[-1]):
        places = _place(x), _place(other, first), _place(out, first)
        beside = () if there is None else ((there[0] + 4 * first, *there[1:]),)
        add(*places, *beside, x.shape[1], count, *rest, in_lanes, IN_ROWS, _like(x), done)
    return done


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


def _begin(part: Part, rows: Iterable[int] | None = None) -> list[int]:
    """Where each row begins, or some of them."""
    rows = range(len(part)) if rows is None else rows
    if not isinstance(part, Tensor):
        return [part[row].data_ptr() for row in rows]
    begin, step = part.data_ptr(), part.stride(0) * part.element_size()
    return [begin + step * row for row in rows]


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


def _over_spans(left: list[_Rows], right: list[_Rows], symmetric: bool, chunk: int, zero: tuple) -> Tensor:
    """The sums over all columns of all pairs; `zero` is PRODUCTS, WIDE_PRODUCTS or DIFFERENCES: what is summed."""
    rows, columns = left[0].addresses.shape[1], right[0].addresses.shape[1]
    total = np.zeros((rows + -rows % TILE, columns + -columns % TILE))
    for mine, others in zip(left, right, strict=True):
        _add_spans(mine, others, symmetric, chunk, zero, total)
    if symmetric:
        _mirror(total)
    return torch.from_numpy(np.ascontiguousarray(total[:rows, :columns]))


def _add_spans(left: _Rows, right: _Rows, symmetric: bool, chunk: int, zero: tuple, total: np.ndarray) -> None:
    d, a = left.d, left.padded
    b = a if right is left else right.padded
    spans = _spans(total.size, d, chunk)
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


def _spans(pairs: int, d: int, chunk: int) -> int:
    """How many spans d columns are cut into: a power of two, which divides among most numbers of cores."""
    return 2 ** (max(1, min(SPANS, pairs * d // SPAN_WORK, d // chunk)).bit_length() - 1)


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

FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
BIT, BYTE, SHORT, INT, LONG_INT = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
HALF = ir.HalfType()
LOADED = {types.float32: FLOAT, types.float64: DOUBLE, types.int16: HALF, types.uint16: SHORT, types.uint8: BYTE}


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
    numbers = ir.VectorType(kind, mask.type.count)
    return _converted(builder, _masked_load(builder, address, numbers, mask, seen.bitwidth // 8), kind, wanted)


def _masked_load(
    builder: ir.IRBuilder, address: ir.Value, vector: ir.VectorType, mask: ir.Value, align: int = 4
) -> ir.Value:
    """A vector, of zeros where `mask` does not say otherwise."""
    kind = vector.element
    kind_name = str(kind) if isinstance(kind, ir.IntType) else kind.intrinsic_name
    name = f"llvm.masked.load.v{vector.count}{kind_name}.p0"
    load = _declared(builder, name, vector, [vector.as_pointer(), INT, mask.type, vector])
    pointer = builder.inttoptr(address, vector.as_pointer())
    return builder.call(load, [pointer, ir.Constant(INT, align), mask, ir.Constant(vector, None)])


def _fused(builder: ir.IRBuilder, kind: ir.Type, lanes: int = LANES) -> ir.Function:
    """`a b + c`, rounded once."""
    vector = ir.VectorType(kind, lanes)
    return _declared(builder, f"llvm.fma.v{lanes}{kind.intrinsic_name}", vector, [vector] * 3)


def _declared(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    """A function of LLVM's own."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _either(builder: ir.IRBuilder, *values: tuple[ir.Value, ir.Block]) -> ir.PhiInstr:
    """The value that belongs to the block that was left last."""
    phi = builder.phi(values[0][0].type)
    for value, block in values:
        phi.add_incoming(value, block)
    return phi


def _first(builder: ir.IRBuilder, count: ir.Value, lanes: int) -> ir.Value:
    """A mask of the first lanes, of at least one."""
    bits = ir.IntType(lanes)
    others = builder.sub(ir.Constant(LONG_INT, lanes), count)
    others = others if bits == LONG_INT else builder.trunc(others, bits)
    return builder.bitcast(builder.lshr(ir.Constant(bits, -1), others), ir.VectorType(BIT, lanes))


def _in_all_lanes(builder: ir.IRBuilder, value: ir.Value, lanes: int = LANES) -> ir.Value:
    """A vector of the same number."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT, lanes), [0] * lanes))


def _row_vectors(count: int) -> list[ir.VectorType]:
    """The vectors that a row of `count` times LANES numbers is read in; the last has LANES of them."""
    whole, rest = divmod(LANES * (count - 1), REGISTER)
    lanes = [REGISTER] * whole + [LANES] * (rest // LANES) + [LANES]
    return [ir.VectorType(FLOAT, width) for width in lanes]


def _not_zero(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    """A mask of the numbers other than zero, NaN among them."""
    zeros = ir.Constant(values.type, None)
    if isinstance(values.type.element, ir.IntType):
        return builder.icmp_unsigned("!=", values, zeros)
    return builder.fcmp_unordered("!=", values, zeros)


def _factor(builder: ir.IRBuilder, address: ir.Value, seen: types.Type) -> ir.Value:
    """The number at an address as a float32; a byte stands for a LEVELS-th of itself."""
    value = builder.load(builder.inttoptr(address, LOADED[seen].as_pointer()), align=seen.bitwidth // 8)
    if seen != types.uint8:
        return value
    name, table = "krum.levels", ir.ArrayType(FLOAT, 256)
    levels = builder.module.globals.get(name)
    if levels is None:
        levels = ir.GlobalVariable(builder.module, table, name)
        levels.linkage, levels.global_constant = "internal", True
        levels.initializer = ir.Constant(table, LEVELS_OF_BYTES.tolist())
    place = builder.gep(levels, [ir.Constant(INT, 0), builder.zext(value, INT)], inbounds=True)
    return builder.load(place, align=4)


def _sums_of_lanes(builder: ir.IRBuilder, values: list[ir.Value]) -> list[ir.Value]:
    """The sum of each vector's numbers, as vectors of LANES doubles, in order: halves onto halves, two at a time."""
    if values[0].type.element == FLOAT:
        values = [builder.fpext(value, ir.VectorType(DOUBLE, value.type.count)) for value in values]
    while values[0].type.count > LANES:
        half = values[0].type.count // 2
        halves = [ir.Constant(ir.VectorType(INT, half), list(range(k, k + half))) for k in (0, half)]
        values = [builder.fadd(*(builder.shuffle_vector(a, a, places) for places in halves)) for a in values]
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
    kind, seen, lanes = (FLOAT if zero.dtype == types.float32 else DOUBLE), like.dtype, LANES * len(zero)
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
            fused, grown = _fused(builder, kind, lanes), []
            for pair, so_far in enumerate(sums):
                x, y = a[pair // TILE], b[pair % TILE]
                if kind == DOUBLE:
                    x = y = builder.fsub(x, y)
                grown.append(builder.call(fused, [x, y, so_far]))
            return grown

        def sums_from(*blocks: tuple[ir.Block, list[ir.Value]]) -> list[ir.Value]:
            return [_either(builder, *((values[k], block) for block, values in blocks)) for k in range(TILE * TILE)]

        left_rows = [begin(left_, i_, k) for k in range(TILE)]
        right_rows = [begin(right_, j_, k) for k in range(TILE)]
        rest = builder.and_(count_, number(lanes - 1))
        end = builder.mul(builder.sub(count_, rest), number(size))
        zeros = [ir.Constant(ir.VectorType(kind, lanes), None)] * (TILE * TILE)
        before = builder.block
        loop, after, tail, done = (builder.append_basic_block() for _ in range(4))
        builder.cbranch(builder.icmp_signed("<", number(0), end), loop, after)

        builder.position_at_end(loop)  # as many columns as lanes
        offset = builder.phi(LONG_INT)
        sums = sums_from((before, zeros))
        grown = with_products(sums, partial(_load, lanes=lanes), offset)
        further = builder.add(offset, number(lanes * size))
        offset.add_incoming(number(0), before)
        offset.add_incoming(further, loop)
        for so_far, then in zip(sums, grown, strict=True):
            so_far.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", further, end), loop, after)

        builder.position_at_end(after)
        whole = sums_from((before, zeros), (loop, grown))
        builder.cbranch(builder.icmp_signed("<", number(0), rest), tail, done)

        builder.position_at_end(tail)  # less
        mask = _first(builder, rest, lanes)
        with_rest = with_products(whole, partial(_load_first, mask=mask), end)
        builder.branch(done)

        builder.position_at_end(done)
        results = _sums_of_lanes(builder, sums_from((after, whole), (tail, with_rest)))
        a_row = ir.VectorType(DOUBLE, TILE)
        for row in range(TILE):
            place = builder.add(out_, builder.mul(step_, number(row)))
            pointer = builder.inttoptr(place, a_row.as_pointer())
            first = row * TILE % LANES
            places = ir.Constant(ir.VectorType(INT, TILE), list(range(first, first + TILE)))
            result = results[row * TILE // LANES]
            more = builder.shuffle_vector(result, result, places)
            builder.store(builder.fadd(builder.load(pointer, align=8), more), pointer, align=8)
        return context.get_dummy_value()

    address, number = types.uint64, types.intp
    return types.void(address, number, address, number, number, number, like, zero, address, number), generate


@intrinsic
def _byte(typing, address):
    """The byte at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], BYTE.as_pointer()))

    return types.uint8(types.intp), generate


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
def _sums_of_nearest(measure, neighbours, sums):
    nearest = np.empty(neighbours + 1)  # in order, and one to spare
    for problem in range(len(measure)):
        for i in range(measure.shape[1]):
            count = 0
            for j in range(measure.shape[2]):
                value = np.inf if np.isnan(measure[problem, i, j]) else measure[problem, i, j]
                if j == i or (count == neighbours and value >= nearest[count - 1]):
                    continue
                place = count
                while place > 0 and nearest[place - 1] > value:
                    nearest[place] = nearest[place - 1]
                    place -= 1
                nearest[place] = value
                count = min(count + 1, neighbours)
            sums[problem, i] = 0
            for value in nearest[:count]:
                sums[problem, i] += value


@_compiled
def _bounds(gram, relative, lost, bounds):
    """Write below and above all squared distances; False where an inner product is not finite. Reads an upper half."""
    for i in range(bounds.shape[1]):
        bounds[:, i, i] = 0
        for j in range(i):
            product = gram[j, i]
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
def _bounds_at_once(addresses, lengths, chunk, like, zero, relative, lost, bounds):
    """`_bounds` of the products of rows that are one span; False where they share a large part, too."""
    if _share_a_large_part(addresses, lengths, like):
        return False
    gram = np.zeros((addresses.shape[1], addresses.shape[1]))
    _add_tiles(addresses, addresses, lengths, True, 0, lengths.sum(), chunk, like, zero, gram)
    return _bounds(gram, relative, lost, bounds)


@_compiled
def _begin_rows(begin, of_row, rows, padded):
    """Where rows begin, the last one repeated until tiles are full, as [1, padded]."""
    addresses = np.empty((1, padded), np.uint64)
    for row in range(padded):
        addresses[0, row] = np.uint64(begin) + np.uint64(min(row, rows - 1) * of_row)
    return addresses


@_compiled
def _add_pairs(x, delta, total, rows, forming, like, zero, like_x, levels, gram):
    """Add the sums over pairs of rows, `rows` of each worker, where gradients are not formed; x and delta: `_place`."""
    padded = (total + TILE - 1) // TILE * TILE
    of_x, of_delta = np.empty((padded, padded)), np.empty((padded, padded))
    numbers = np.empty((total, x[3]) if like_x.itemsize == 1 else (0, 0), np.float32)  # what bytes stand for
    for replica in range(len(gram)):
        if forming[replica]:
            continue
        begin_x, step_x = x[0] + replica * x[1], x[2]
        if like_x.itemsize == 1:
            for s in range(total):
                for k in range(x[3]):
                    numbers[s, k] = levels[_byte(begin_x + s * x[2] + k)]
            begin_x, step_x = np.int64(numbers.ctypes.data), np.int64(4 * x[3])
        of_replica = delta[0] + replica * delta[1]
        for begin, of_row, width, products in (
            (begin_x, step_x, x[3], of_x),
            (of_replica, delta[2], delta[3], of_delta),
        ):
            products[:] = 0
            addresses = _begin_rows(begin, of_row, total, padded)
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


@intrinsic
def _marks_across(typing, address, count, like):
    """Bit k is set where the number k of `count` numbers is not zero."""

    def generate(context, builder, signature, arguments):
        numbers = ir.VectorType(LOADED[like.dtype], MARKED)
        mask = _first(builder, arguments[1], MARKED)
        values = _masked_load(builder, arguments[0], numbers, mask, like.dtype.bitwidth // 8)
        return builder.bitcast(_not_zero(builder, values), LONG_INT)

    return types.int64(types.intp, types.intp, like), generate


@intrinsic
def _marks_down(typing, address, step, rows, count, out, like):
    """Of each of `count` columns, bit s is set where the number in row s is not zero."""

    def generate(context, builder, signature, arguments):
        address_, step_, rows_, count_, out_, _ = arguments
        numbers, long = (ir.VectorType(kind, MARKED_DOWN) for kind in (LOADED[like.dtype], LONG_INT))
        ones, zeros = ir.Constant(long, [1] * MARKED_DOWN), ir.Constant(long, None)
        mask = _first(builder, count_, MARKED_DOWN)
        before, loop, done = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)

        builder.position_at_end(loop)
        row, bit, marks = builder.phi(LONG_INT), builder.phi(long), builder.phi(long)
        place = builder.add(address_, builder.mul(row, step_))
        values = _masked_load(builder, place, numbers, mask, like.dtype.bitwidth // 8)
        grown = builder.or_(marks, builder.select(_not_zero(builder, values), bit, zeros))
        further = builder.add(row, ir.Constant(LONG_INT, 1))
        for so_far, at_first, then in (
            (row, ir.Constant(LONG_INT, 0), further),
            (bit, ones, builder.shl(bit, ones)),
            (marks, zeros, grown),
        ):
            so_far.add_incoming(at_first, before)
            so_far.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", further, rows_), loop, done)

        builder.position_at_end(done)
        builder.store(grown, builder.inttoptr(out_, long.as_pointer()), align=8)
        return context.get_dummy_value()

    number = types.intp
    return types.void(number, number, number, number, number, like), generate


@intrinsic
def _count(typing, marks):
    """How many bits are set."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@intrinsic
def _sum_marked(
    typing, marks, words, x, x_step, x_next, rows, row_step, out, out_step, there, there_step, last, scale, end,
    in_lanes, in_rows, like,
):  # fmt: skip
    """Write `scale sum_k x_k row_k` over the marked k to `out`, once for each of as many x as `in_rows` is long.

    `marks` is where the marks of all k begin, MARKED of them in each of the words. From k to k + 1 there are `x_step`
    and `row_step` bytes, from one x to the next `x_next`, and from its result to the next one's `out_step`. A row has
    as many times LANES numbers as `in_lanes` is long, `last` in the last. What becomes of the sum in the `end`: it is
    written (ALONE), added to what is `there` (ADDED_TO), that and then rectified (RECTIFIED), or written where what is
    there is positive, and 0 elsewhere (MASKED); `there_step` bytes from one x to the next.
    """

    def generate(context, builder, signature, arguments):
        marks_, words_, x_, x_step_, x_next_, rows_, row_step_, out_, out_step_ = arguments[:9]
        there_, there_step_, last_, scale_, end_ = arguments[9:14]
        vectors, mask = _row_vectors(len(in_lanes)), _first(builder, last_, LANES)
        begin = [sum(vector.count for vector in vectors[:k]) for k in range(len(vectors))]
        zeros = [ir.Constant(vector, None) for _ in range(len(in_rows)) for vector in vectors]

        def number(value: int) -> ir.Constant:
            return ir.Constant(LONG_INT, value)

        def load(place: ir.Value) -> list[ir.Value]:
            at = [builder.add(place, number(4 * first)) for first in begin]
            whole = [_load(builder, a, types.float32, FLOAT, v.count) for a, v in zip(at[:-1], vectors, strict=False)]
            return [*whole, _masked_load(builder, at[-1], vectors[-1], mask)]

        def below(values: ir.Value, how: str) -> ir.Value:
            return builder.fcmp_ordered(how, values, ir.Constant(values.type, None))

        def times(factor: ir.Value, row: list[ir.Value], so_far: list[ir.Value]) -> list[ir.Value]:
            grown = []
            for part, there in zip(row, so_far, strict=True):
                lanes = part.type.count
                fused, factors = _fused(builder, FLOAT, lanes), _in_all_lanes(builder, factor, lanes)
                grown.append(builder.call(fused, [factors, part, there]))
            return grown

        before = builder.block
        word, loop, after, done = (builder.append_basic_block() for _ in range(4))
        builder.branch(word)

        builder.position_at_end(word)  # MARKED numbers
        which, of_word = builder.phi(LONG_INT), [builder.phi(zero.type) for zero in zeros]
        marks_here = builder.load(builder.gep(builder.inttoptr(marks_, LONG_INT.as_pointer()), [which]))
        first = builder.mul(which, number(MARKED))
        x_here = builder.add(x_, builder.mul(first, x_step_))
        rows_here = builder.add(rows_, builder.mul(first, row_step_))
        builder.cbranch(builder.icmp_signed("!=", marks_here, number(0)), loop, after)

        builder.position_at_end(loop)  # a marked one
        left, sums = builder.phi(LONG_INT), [builder.phi(zero.type) for zero in zeros]
        k = builder.cttz(left, ir.Constant(BIT, 1))
        of_x = builder.add(x_here, builder.mul(k, x_step_))
        row, grown = load(builder.add(rows_here, builder.mul(k, row_step_))), []
        for one in range(len(in_rows)):
            factor = _factor(builder, builder.add(of_x, builder.mul(x_next_, number(one))), like.dtype)
            grown += times(factor, row, sums[one * len(row) : (one + 1) * len(row)])
        fewer = builder.and_(left, builder.sub(left, number(1)))  # without the lowest bit
        for phi, at_first, then in zip([left, *sums], [marks_here, *of_word], [fewer, *grown], strict=True):
            phi.add_incoming(at_first, word)
            phi.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("!=", fewer, number(0)), loop, after)

        builder.position_at_end(after)
        totals = [_either(builder, (old, word), (new, loop)) for old, new in zip(of_word, grown, strict=True)]
        further = builder.add(which, number(1))
        for phi, at_first, then in zip([which, *of_word], [number(0), *zeros], [further, *totals], strict=True):
            phi.add_incoming(at_first, before)
            phi.add_incoming(then, after)
        builder.cbranch(builder.icmp_signed("<", further, words_), word, done)

        builder.position_at_end(done)
        ends = {end: builder.icmp_signed("==", end_, number(end)) for end in (ALONE, RECTIFIED, MASKED)}
        for one in range(len(in_rows)):
            start, read, write = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.cbranch(ends[ALONE], write, read)
            builder.position_at_end(read)
            present = load(builder.add(there_, builder.mul(there_step_, number(one))))
            builder.branch(write)
            builder.position_at_end(write)
            known = [_either(builder, (ir.Constant(old.type, None), start), (old, read)) for old in present]
            results, place = [], builder.add(out_, builder.mul(out_step_, number(one)))
            for k, beside in enumerate(known):
                nothing, lanes = ir.Constant(beside.type, None), beside.type.count
                more = builder.select(ends[MASKED], nothing, beside)
                (result,) = times(scale_, [totals[one * len(vectors) + k]], [more])
                masked = builder.and_(_in_all_lanes(builder, ends[MASKED], lanes), below(beside, "<="))
                negative = builder.and_(_in_all_lanes(builder, ends[RECTIFIED], lanes), below(result, "<"))
                results.append(builder.select(builder.or_(masked, negative), nothing, result))
            for offset, result in zip(begin[:-1], results, strict=False):
                pointer = builder.inttoptr(builder.add(place, number(4 * offset)), result.type.as_pointer())
                builder.store(result, pointer, align=4)
            name = f"llvm.masked.store.v{LANES}f32.p0"
            store = _declared(builder, name, ir.VoidType(), [vectors[-1], vectors[-1].as_pointer(), INT, mask.type])
            pointer = builder.inttoptr(builder.add(place, number(4 * begin[-1])), vectors[-1].as_pointer())
            builder.call(store, [results[-1], pointer, ir.Constant(INT, 4), mask])
        return context.get_dummy_value()

    number = types.intp
    return types.void(*[number] * 12, types.float32, number, in_lanes, in_rows, like), generate


@_compiled
def _sums_marked(
    count, marks, words, x, x_step, x_next, rows, row_step, out, out_step, there, there_step, last, scale, end,
    in_lanes, in_rows, like,
):  # fmt: skip
    """`_sum_marked` for `count` x, which are as many as `in_rows` is long, or fewer: then one after the other."""
    if count == len(in_rows):
        _sum_marked(
            marks, words, x, x_step, x_next, rows, row_step, out, out_step, there, there_step, last, scale, end,
            in_lanes, in_rows, like,
        )  # fmt: skip
    else:
        for k in range(count):
            _sum_marked(
                marks, words, x + k * x_next, x_step, 0, rows, row_step, out + k * out_step, 0, there + k * there_step,
                0, last, scale, end, in_lanes, (0,), like,
            )  # fmt: skip


@_compiled
def _finite(begin, step, count, columns, marks, last, in_lanes):
    """No number of `count` rows is an infinity or a NaN: zero times each is zero. `marks [words]` is overwritten."""
    marks[:] = -1
    if count % MARKED:
        marks[-1] = (1 << count % MARKED) - 1
    zero, sums = np.zeros(1, np.float32), np.empty(columns, np.float32)
    _sum_marked(
        marks.ctypes.data, len(marks), zero.ctypes.data, 0, 0, begin, step, sums.ctypes.data, 0, 0, 0, last,
        np.float32(1), ALONE, in_lanes, (0,), zero,
    )  # fmt: skip
    for total in sums:
        if total != 0:
            return False
    return True


@_compiled
def _row_products(x, weight, out, there, rows, columns, end, asks, in_lanes, in_rows, like, done):
    """Of x, weight, out and what is there: their `_place`.

    If it `asks`, only replicas whose x is sparse and whose W is finite are done; otherwise all, zeros and all.
    """
    width, together = x[3], len(in_rows)
    words = (width + MARKED - 1) // MARKED
    marks = np.empty(words, np.int64)
    to_marks = marks.ctypes.data
    last = columns - LANES * (len(in_lanes) - 1)
    for replica in range(len(done)):
        of_x, of_weight, of_out = x[0] + replica * x[1], weight[0] + replica * weight[1], out[0] + replica * out[1]
        of_there = there[0] + replica * there[1]
        if asks and not (done[replica] and _is_sparse(of_x, x[2], rows, width, DENSEST, like)):
            done[replica] = False
            continue
        finite = _finite(of_weight, weight[2], width, columns, marks, last, in_lanes)
        done[replica] = finite or not asks
        if done[replica]:
            for s in range(0, rows, together):
                here, to_out, one = of_x + s * x[2], of_out + s * out[2], np.float32(1)
                count = min(together, rows - s)
                for k in range(words if finite else 0):  # otherwise every number is marked
                    from_x, at_once = here + like.itemsize * MARKED * k, min(MARKED, width - MARKED * k)
                    marks[k] = _marks_across(from_x, at_once, like)
                    for more in range(1, count):
                        marks[k] |= _marks_across(from_x + more * x[2], at_once, like)
                _sums_marked(
                    count, to_marks, words, here, like.itemsize, x[2], of_weight, weight[2], to_out, out[2],
                    of_there + s * there[2], there[2], last, one, end, in_lanes, in_rows, like,
                )  # fmt: skip


@_compiled
def _is_sparse(begin, of_row, rows, width, most, like):
    """Of the numbers in the first rows, at most this share is not zero."""
    seen, first = 0, min(rows, LOOKED_AT)
    for s in range(first):
        for k in range(0, width, MARKED):
            seen += _count(_marks_across(begin + s * of_row + like.itemsize * k, min(MARKED, width - k), like))
    return seen <= most * first * width


@_compiled
def _choose(x, rows, most, forming, like):
    """Gradients are formed where x, of which this is the `_place`, is sparse."""
    for replica in range(len(forming)):
        forming[replica] = _is_sparse(x[0] + replica * x[1], x[2], rows, x[3], most, like)


@_compiled
def _outer_sums(
    x, x_step, delta, delta_step, rows, count, every, marks, out, out_step, last, scale, add, in_lanes, in_rows, like
):
    """Write `scale x^T delta` of at most MARKED_DOWN columns of x, zeros left out, or not; says if there are others.

    `marks [words, MARKED_DOWN]` and `out` are overwritten; every word has MARKED rows.
    """
    words, together, others = (rows + MARKED - 1) // MARKED, len(in_rows), False
    united = np.empty(words, np.int64)
    for word in range(words):
        at_once = min(MARKED, rows - word * MARKED)
        if every:
            marks[word] = -1 if at_once == MARKED else (1 << at_once) - 1
        else:
            _marks_down(x + word * MARKED * x_step, x_step, at_once, count, marks[word].ctypes.data, like)
    for k in range(0, count, together):
        some, any_marked = min(together, count - k), False
        for word in range(words):
            united[word] = marks[word, k]
            for more in range(1, some):
                united[word] |= marks[word, k + more]
            any_marked |= united[word] != 0
        others |= any_marked
        if add and not any_marked:
            continue
        from_x, to_out, to_marks = x + like.itemsize * k, out + k * out_step, united.ctypes.data
        _sums_marked(
            some, to_marks, words, from_x, x_step, like.itemsize, delta, delta_step, to_out, out_step, to_out, out_step,
            last, scale, ADDED_TO if add else ALONE, in_lanes, in_rows, like,
        )  # fmt: skip
    return others


@_compiled
def _sparse_outer_sums(x, delta, out, rows, columns, scale, add, in_lanes, in_rows, like, done):
    """Of x, delta and out: their `_place`."""
    width = x[3]
    of_rows = np.empty((rows + MARKED - 1) // MARKED, np.int64)
    marks = np.empty((MET // MARKED, MARKED_DOWN), np.int64)
    last = columns - LANES * (len(in_lanes) - 1)
    for replica in range(len(done)):
        of_x, of_delta, of_out = x[0] + replica * x[1], delta[0] + replica * delta[1], out[0] + replica * out[1]
        if done[replica] and _is_sparse(of_x, x[2], rows, width, DENSEST, like):
            done[replica] = _finite(of_delta, delta[2], rows, columns, of_rows, last, in_lanes)
        else:
            done[replica] = False
        if done[replica]:
            for top in range(0, rows, MET):
                some, count, more = of_delta + top * delta[2], min(MET, rows - top), add or top > 0
                for k in range(0, width, MARKED_DOWN):
                    from_x, to_out = of_x + top * x[2] + like.itemsize * k, of_out + k * out[2]
                    at_once = min(MARKED_DOWN, width - k)
                    _outer_sums(
                        from_x, x[2], some, delta[2], count, at_once, False, marks, to_out, out[2], last, scale, more,
                        in_lanes, in_rows, like,
                    )  # fmt: skip


@_compiled
def _add_products_of_formed(x, delta, forming, rows, columns, in_lanes, in_rows, like, zero, like_x, gram):
    """Add the inner products of all workers' `x^T delta` where `forming`, without zeros of x where delta is finite.

    Of x and delta: their `_place`.
    """
    workers, width = gram.shape[1], x[3]
    marks = np.empty(((rows + MARKED - 1) // MARKED, MARKED_DOWN), np.int64)
    of_rows = np.empty((workers * rows + MARKED - 1) // MARKED, np.int64)
    last = columns - LANES * (len(in_lanes) - 1)
    padded = (workers + TILE - 1) // TILE * TILE
    formed, products = np.empty((workers, MARKED_DOWN * columns), np.float32), np.empty((padded, padded))
    addresses = _begin_rows(formed.ctypes.data, 4 * MARKED_DOWN * columns, workers, padded)[0]
    for replica in range(len(gram)):
        if not forming[replica]:
            continue
        products[:] = 0
        of_replica = delta[0] + replica * delta[1]
        every = not _finite(of_replica, delta[2], workers * rows, columns, of_rows, last, in_lanes)
        for k in range(0, width, MARKED_DOWN):
            count, others = min(MARKED_DOWN, width - k), False
            for worker in range(workers):
                top = worker * rows
                from_x = x[0] + replica * x[1] + top * x[2] + like_x.itemsize * k
                of_delta = of_replica + top * delta[2]
                others |= _outer_sums(
                    from_x, x[2], of_delta, delta[2], rows, count, every, marks,
                    formed[worker].ctypes.data, 4 * columns, last, np.float32(1), False, in_lanes, in_rows, like_x,
                )  # fmt: skip
            if others:
                _over_tiles(addresses, addresses, True, 0, count * columns, like, zero, products)
        for i in range(workers):
            for j in range(i, workers):
                gram[replica, i, j] += products[i, j]
