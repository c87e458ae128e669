"""Squared distances between vectors, or from their Gram matrix, without loss to cancellation, NaN or overflow."""

import torch
from torch import Tensor

# A pair whose distance is below this share of the two vectors' lengths (from a common reference) is computed again
# from its differences: the expansion ||a||^2 + ||b||^2 - 2 a.b has lost three of float64's sixteen digits by then.
CANCELLATION = 1e-3
# Numbers held in float64 at a time. Blocks of this size stay in the cache.
BLOCK = 2**17


def squared_distances(vectors: Tensor) -> Tensor:
    """All `||V_i - V_j||^2` of `vectors [n, d]`, any floating dtype, as float64 [n, n].

    Every distance is exact to about 1e-12 relative, at any common offset and, as its square must be a float64, at any
    scale from 1e-150 to 1e150. Identical
    vectors have distance 0 and identical rows, so that ties stay ties. A vector with a NaN or an infinity is at
    distance `inf` from every vector, itself included. One pass over the vectors in blocks of coordinates, and another
    one for the pairs that cancel; extra memory is independent of d.
    """
    n, d = vectors.shape
    columns = max(1, min(d, BLOCK // n))
    gram = torch.zeros(n, n, dtype=torch.float64, device=vectors.device)
    reference = central_row(vectors[:, :columns])
    block = torch.empty(n, columns, dtype=torch.float64, device=vectors.device)
    for start in range(0, d, columns):
        block = block[:, : d - start].copy_(vectors[:, start : start + columns])
        block -= block[reference].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        gram.addmm_(block, block.mT)
    finite = _finite(vectors, gram.diagonal())
    distances = _from_gram(gram)
    norms = gram.diagonal()
    trusted = distances > CANCELLATION * (norms[:, None] + norms[None, :])
    pairs = (~trusted & finite[:, None] & finite[None, :]).triu(1).nonzero()
    if len(pairs):
        exact = _by_differences(vectors, pairs)
        distances[pairs[:, 0], pairs[:, 1]] = exact
        distances[pairs[:, 1], pairs[:, 0]] = exact
        twin = (distances == 0).byte().argmax(-1)
        distances = distances[twin][:, twin]
    return _put_at_infinity(distances, ~finite)


def rows_of_squared_distances(vectors: Tensor, rows: Tensor) -> Tensor:
    """`||V_i - V_j||^2` for some rows i and all j of finite `vectors [n, d]`, as exact as all: float64 [rows, n]."""
    n, d = vectors.shape
    columns = max(1, min(d, 8 * BLOCK // n))
    block = torch.empty(n, columns, dtype=torch.float64, device=vectors.device)
    products = torch.zeros(len(rows), n, dtype=torch.float64, device=vectors.device)
    norms = torch.zeros(n, dtype=torch.float64, device=vectors.device)
    for start in range(0, d, columns):
        block = block[:, : d - start].copy_(vectors[:, start : start + columns])
        products.addmm_(block[rows], block.mT)
        norms += torch.linalg.vector_norm(block, dim=-1).square_()
    both = norms[rows, None] + norms
    distances = (both - 2 * products).clamp_(min=0)
    own = torch.arange(len(rows), device=rows.device), rows
    distances[own] = torch.inf  # not to be computed again
    untrusted = (distances <= CANCELLATION * both).nonzero()
    distances[own] = 0
    if len(untrusted):
        pairs = torch.stack([rows[untrusted[:, 0]], untrusted[:, 1]], -1)
        distances[untrusted[:, 0], untrusted[:, 1]] = _by_differences(vectors, pairs)
    return distances


def from_gram(gram: Tensor) -> Tensor:
    """Squared distances from inner products `gram [..., n, n]`: `G_ii + G_jj - 2 G_ij`, in float64.

    A vector whose squared length is NaN or infinite is at distance `inf` from every vector, itself included. The upper
    triangle is read.
    """
    gram = gram.double()
    infinite = ~gram.diagonal(dim1=-2, dim2=-1).isfinite()
    return _put_at_infinity(_from_gram(gram), infinite)


def _from_gram(gram: Tensor) -> Tensor:
    norms = gram.diagonal(dim1=-2, dim2=-1)
    distances = (norms[..., :, None] + norms[..., None, :]).sub_(gram, alpha=2).clamp_(min=0).triu_(1)
    # A matrix product's two triangles may differ in their last bits; one of them stands for both, or ties would break.
    return distances + distances.mT


def _put_at_infinity(distances: Tensor, infinite: Tensor) -> Tensor:
    infinite = infinite[..., :, None] | infinite[..., None, :]
    return distances.masked_fill_(infinite | distances.isnan(), torch.inf)


def _finite(vectors: Tensor, norms: Tensor) -> Tensor:
    """Which vectors have no NaN and no infinity; those of a finite squared length need no look."""
    finite = norms.isfinite()
    for row in (~finite).nonzero().squeeze(-1).tolist():
        finite[row] = all(part.isfinite().all() for part in vectors[row].split(BLOCK))
    return finite


def central_row(vectors: Tensor) -> Tensor:
    """The index of a vector amid the others, to measure from; a poor choice costs time, never exactness."""
    sample = vectors[:, :: max(1, vectors.shape[1] // 32)].double()
    distances = torch.cdist(sample, sample, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.nan_to_num(nan=torch.inf).sort(-1).values[:, : vectors.shape[0] // 2 + 1].sum(-1).argmin()


def _by_differences(vectors: Tensor, pairs: Tensor) -> Tensor:
    """`||V_i - V_j||^2` for `pairs [p, 2]`, from the coordinates' differences."""
    total = torch.zeros(len(pairs), dtype=torch.float64, device=vectors.device)
    columns = max(1, min(vectors.shape[1], BLOCK // vectors.shape[0]))
    for start in range(0, vectors.shape[1], columns):
        block = vectors[:, start : start + columns].double()
        for some, part in zip(pairs.split(BLOCK // columns + 1), total.split(BLOCK // columns + 1), strict=True):
            part += (block[some[:, 0]] - block[some[:, 1]]).square_().sum(-1)
    return total
