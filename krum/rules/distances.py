"""Squared distances between n vectors, exact whatever they have in common, and quick float32 bounds on them.

Nothing here copies the vectors but for a block of coordinates at a time.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Some coordinates of all n vectors: a matrix [n, d], or n vectors [d]. A model's gradients are one for each layer.
RowBlock = Tensor | Sequence[Tensor]

# A pair whose distance is below this share of the two vectors' lengths (from a common reference) is computed again
# from its differences: the expansion ||a||^2 + ||b||^2 - 2 a.b has lost three of float64's sixteen digits by then.
CANCELLATION = 1e-3
BLOCK = 2**19  # numbers that are held in float64 at a time
PRODUCTS_BLOCK = 2**22  # numbers whose float32 products are computed at a time
GROUP = 8  # float32 products are summed over a chunk of columns, GROUP of these sums in float32, then in float64
ROWS = 64  # at least so many have their products with those after them computed together: the matrix is symmetric
FLOAT64_ROUNDING = 1e-12  # relative, of what is added up in float64 to a score


def squared_distances(vectors: Tensor) -> Tensor:
    """All `||V_i - V_j||^2` of `vectors [n, d]`, any floating dtype, as float64 [n, n].

    Every distance is exact to about 1e-12 relative, at any common offset and, as its square must be a float64, at any
    scale from 1e-150 to 1e150. Identical vectors have distance 0 and identical rows, so that ties stay ties. A vector
    with a NaN or an infinity is at distance `inf` from every vector, itself included. Extra memory is independent of d.
    """
    return of_blocks([vectors])


def of_blocks(blocks: Sequence[RowBlock]) -> Tensor:
    """The same of vectors whose coordinates lie in several blocks: distances add up."""
    total = _exact_distances(blocks[0])
    for block in blocks[1:]:
        total += _exact_distances(block)
    return total


def from_gram(gram: Tensor) -> Tensor:
    """Squared distances from inner products `gram [..., n, n]`: `G_ii + G_jj - 2 G_ij`, in float64.

    A vector whose squared length is NaN or infinite is at distance `inf` from every vector, itself included. The upper
    triangle is read.
    """
    gram = gram.double()
    infinite = ~gram.diagonal(dim1=-2, dim2=-1).isfinite()
    return _put_at_infinity(_expanded(gram), infinite)


def only_finiteness(blocks: Sequence[RowBlock]) -> Tensor:
    """What a rule needs that looks at no distance: 0, or `inf` from and to a vector that is not finite, [n, n]."""
    first = blocks[0][0]
    finite = torch.ones(len(blocks[0]), dtype=torch.bool, device=first.device)
    for block in blocks:
        finite &= _finite(block, torch.stack([row.sum() for row in block]))
    zero = torch.zeros(len(finite), len(finite), dtype=torch.float64, device=first.device)
    return _put_at_infinity(zero, ~finite)


# -------------------------------------------------------------------------------------------------------------- bounds


def bounds_from_float32(blocks: Sequence[RowBlock]) -> Tensor | None:
    """Below and above all `||V_i - V_j||^2`, float64 [2, n, n], from float32 products; None where they tell nothing.

    A sum of c products, in whatever order, is wrong by at most `c u / (1 - c u) sum_k |x_k y_k|`, u = 2^-24 (Higham,
    Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), and `sum_k |x_k y_k| <= |x| |y|`. So
    `||a||^2 + ||b||^2 - 2 a.b` is wrong by at most `c u / (1 - c u) (|a| + |b|)^2`; c is the chunk and GROUP, since the
    sums of so many products are added up in float64. A large common part would make that useless, so one of the vectors
    is subtracted then; that rounds every coordinate once, which four more in c cover, and the lengths' own error, too.
    What underflow loses, at most 2^-126 a product or subnormal factor, is less than 2^-120 for every coordinate.
    """
    if not _multiplies_in_float32():
        return None
    n, d = len(blocks[0]), sum(len(block[0]) for block in blocks)
    # The scores of longer vectors lie closer together, by 1 / sqrt(d) of their size: there, tighter bounds save time.
    chunk = 512 if d <= 10**6 else 128
    width = max(1, PRODUCTS_BLOCK // n // (chunk * GROUP)) * chunk * GROUP
    gram = torch.zeros(n, n, dtype=torch.float64, device=blocks[0][0].device)
    for block in blocks:
        for columns in _centred(block, width, torch.float32):
            _add_products(gram, columns, chunk)
    unit = (chunk + GROUP + 4) * 2.0**-24
    norms = gram.diagonal().clamp(min=0).sqrt()
    error = (unit / (1 - 2 * unit) + FLOAT64_ROUNDING) * (norms[:, None] + norms).square() + d * 2.0**-120
    return _interval(_expanded(gram), error) if math.isfinite(error.max()) else None


def narrowed(bounds: Tensor, blocks: Sequence[RowBlock], rows: Tensor) -> Tensor:
    """The same bounds, narrower by far to and from a few of the vectors: from products in float64."""
    n, width = len(blocks[0]), max(1, BLOCK // len(blocks[0]))
    products = torch.zeros(len(rows), n, dtype=torch.float64, device=blocks[0][0].device)
    lengths = torch.zeros(n, dtype=torch.float64, device=products.device)
    for block in blocks:
        for columns in _centred(block, width, torch.float64):
            products.addmm_(columns.index_select(0, rows), columns.mT)
            lengths += torch.linalg.vector_norm(columns, dim=1).square()
    distances = lengths[rows, None] + lengths - 2 * products
    norms = lengths.sqrt()
    summed = width + sum(len(block[0]) for block in blocks) // width + len(blocks) + 4
    error = (2.0**-53 * summed + FLOAT64_ROUNDING) * (norms[rows, None] + norms).square() + 1e-300
    closer = torch.stack([(distances - error).clamp(min=0), distances + error])
    closer[:, torch.arange(len(rows)), rows] = 0
    bounds = bounds.clone()
    bounds[:, rows] = closer
    bounds[:, :, rows] = closer.mT
    return bounds


def _multiplies_in_float32() -> bool:
    """Whether torch has been told, as by default, to round nothing to bfloat16 or TF32 before it multiplies."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it has been told in two ways
        return False


def _add_products(gram: Tensor, columns: Tensor, chunk: int) -> None:
    """Add the upper triangle of the inner products of float32 `columns [n, c]`, and some of the others."""
    n, count = len(columns), columns.shape[1] // chunk
    groups = count // GROUP
    chunks = columns[:, : count * chunk].unflatten(1, (count, chunk)).transpose(0, 1)  # [count, n, chunk]
    rest = columns[:, count * chunk :]
    rows = max(ROWS, n // 4)
    for top in range(0, n, rows):
        bottom = top + rows
        products = torch.bmm(chunks[:, top:bottom], chunks[:, top:].mT)
        grouped = products[: groups * GROUP].unflatten(0, (groups, GROUP)).sum(1)
        triangle = gram[top:bottom, top:]
        triangle += grouped.sum(0, dtype=torch.float64)
        triangle += products[groups * GROUP :].sum(0) + rest[top:bottom] @ rest[top:].mT


def _interval(distances: Tensor, error: Tensor) -> Tensor:
    """Both ends, with zeros on the diagonal."""
    bounds = torch.stack([(distances - error).clamp_(min=0), distances + error])
    bounds.diagonal(dim1=-2, dim2=-1).zero_()
    return bounds


# --------------------------------------------------------------------------------------------------------------- exact


def _exact_distances(block: RowBlock) -> Tensor:
    """One pass over the coordinates for products in float64, one for the differences of the pairs that cancel."""
    n = len(block)
    gram = torch.zeros(n, n, dtype=torch.float64, device=block[0].device)
    for columns in _centred(block, max(1, BLOCK // n), torch.float64):
        gram.addmm_(columns, columns.mT)
    finite = _finite(block, gram.diagonal())
    distances = _expanded(gram)
    lengths = gram.diagonal()
    trusted = distances > CANCELLATION * (lengths[:, None] + lengths)
    pairs = (~trusted & finite[:, None] & finite).triu(1).nonzero()
    if len(pairs):
        exact = _from_differences(block, pairs)
        distances[pairs[:, 0], pairs[:, 1]] = exact
        distances[pairs[:, 1], pairs[:, 0]] = exact
        distances = keep_ties(distances)
    return _put_at_infinity(distances, ~finite)


def keep_ties(distances: Tensor) -> Tensor:
    """One triangle stands for both, and one of identical vectors for all of them, or rounding would decide ties."""
    distances = distances.triu() + distances.triu(1).mT
    twin = (distances == 0).fill_diagonal_(True).byte().argmax(-1)
    return distances[twin][:, twin]


def _from_differences(block: RowBlock, pairs: Tensor) -> Tensor:
    """`||V_i - V_j||^2` for `pairs [p, 2]`, from the coordinates' differences."""
    total = torch.zeros(len(pairs), dtype=torch.float64, device=pairs.device)
    for columns in columns_of(block, max(1, BLOCK // len(block)), torch.float64):
        at_once = BLOCK // columns.shape[1] + 1
        for some, sums in zip(pairs.split(at_once), total.split(at_once), strict=True):
            sums += (columns[some[:, 0]] - columns[some[:, 1]]).square_().sum(-1)
    return total


# ------------------------------------------------------------------------------------------------------------- columns


def columns_of(block: RowBlock, width: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The columns, `width` at a time, as matrices [n, width], each to be used, and not changed, before the next one.

    A float32 matrix gives views if float32 is wanted; all else is copied into one buffer.
    """
    d = len(block[0])
    if isinstance(block, Tensor) and block.dtype == dtype == torch.float32:
        yield from block.split(width, dim=1)
        return
    buffer = torch.empty(len(block), min(width, d), dtype=dtype, device=block[0].device)
    for start in range(0, d, width):
        columns, stop = buffer[:, : d - start], start + width
        if isinstance(block, Tensor):
            columns.copy_(block[:, start:stop])
        elif block[0].dtype == dtype:
            torch.stack([row[start:stop] for row in block], out=columns)
        else:  # to convert once is quicker than row by row
            columns.copy_(torch.stack([row[start:stop] for row in block]))
        yield columns


def _centred(block: RowBlock, width: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The columns, `width` at a time, less those of one of the vectors where the vectors have much in common."""
    reference = None
    for place, columns in enumerate(columns_of(block, width, dtype)):
        if place == 0:
            reference = _reference(columns)
        if reference is None:
            yield columns
        else:
            yield columns - columns[reference].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _reference(columns: Tensor) -> int | None:
    """A vector amid the others, if most of them are nearer to it than to zero: by a sample of the coordinates.

    A poor choice costs time, never exactness.
    """
    sample = columns[:, :: max(1, columns.shape[1] // 32)].double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    from_median = (sample - sample.median(0).values).square().sum(1)
    near = from_median < sample.square().sum(1) / 4  # two vectors differ by twice as much
    return int(from_median.argmin()) if 2 * int(near.sum()) > len(sample) else None


def _expanded(gram: Tensor) -> Tensor:
    lengths = gram.diagonal(dim1=-2, dim2=-1)
    distances = (lengths[..., :, None] + lengths[..., None, :]).sub_(gram, alpha=2).clamp_(min=0).triu_(1)
    # A matrix product's two triangles may differ in their last bits; one of them stands for both, or ties would break.
    return distances + distances.mT


def _put_at_infinity(distances: Tensor, infinite: Tensor) -> Tensor:
    infinite = infinite[..., :, None] | infinite[..., None, :]
    return distances.masked_fill_(infinite | distances.isnan(), torch.inf)


def _finite(block: RowBlock, lengths: Tensor) -> Tensor:
    """Which vectors have no NaN and no infinity; those of a finite squared length, or sum, need no look."""
    finite = lengths.isfinite()
    for row in (~finite).nonzero().squeeze(-1).tolist():
        finite[row] = all(piece.isfinite().all() for piece in block[row].split(BLOCK))
    return finite
