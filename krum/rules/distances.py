"""Squared distances between vectors, or from their Gram matrix, without loss to cancellation, NaN or overflow.

On the CPU, those between vectors come from differences (`krum.kernels`), which cancel nothing; elsewhere from matrix
products, and from differences for the pairs that cancel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Part = Tensor | Sequence[Tensor]  # [n, d], or n vectors [d]

# A pair whose distance is below this share of the two vectors' lengths (from a common reference) is computed again
# from its differences: the expansion ||a||^2 + ||b||^2 - 2 a.b has lost three of float64's sixteen digits by then.
CANCELLATION = 1e-3
# Numbers held in float64 at a time. Blocks of this size stay in the cache.
BLOCK = 2**17


def squared_distances(vectors: Tensor) -> Tensor:
    """All `||V_i - V_j||^2` of `vectors [n, d]`, any floating dtype, as float64 [n, n].

    Every distance is exact to about 1e-12 relative, at any common offset and, as its square must be a float64, at any
    scale from 1e-150 to 1e150. Identical vectors have distance 0 and identical rows, so that ties stay ties. A vector
    with a NaN or an infinity is at distance `inf` from every vector, itself included. Extra memory is independent of d.
    """
    return of_parts([vectors])


def of_parts(parts: Sequence[Part]) -> Tensor:
    """The same of n vectors in parts, each a tensor `[n, d_p]` or n tensors `[d_p]`: distances add up over parts."""
    from krum.rules import kernels

    if kernels.fit(parts):
        return kernels.squared_differences(parts)
    total = _by_products(parts[0])
    for part in parts[1:]:
        total += _by_products(part)
    return total


def only_finiteness(parts: Sequence[Part]) -> Tensor:
    """What a rule needs that looks at no distance: 0, or `inf` from and to a vector that is not finite, [n, n]."""
    first = parts[0][0]
    finite = torch.ones(len(parts[0]), dtype=torch.bool, device=first.device)
    for part in parts:
        # a float64 sum of narrower numbers cannot overflow
        finite &= _finite(part, torch.stack([row.sum(dtype=torch.float64) for row in part]))
    zero = torch.zeros(len(finite), len(finite), dtype=torch.float64, device=first.device)
    return _put_at_infinity(zero, ~finite)


def _by_products(part: Part) -> Tensor:
    """The same by matrix products, on any device: one pass in blocks of coordinates, one for the pairs that cancel."""
    n, d = len(part), len(part[0])
    columns = max(1, min(d, BLOCK // n))
    gram = torch.zeros(n, n, dtype=torch.float64, device=part[0].device)
    block = float64_block(part, 0, columns)
    reference = central_row(block)
    for start in range(0, d, columns):
        block = float64_block(part, start, start + columns)
        block -= block[reference].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        gram.addmm_(block, block.mT)
    finite = _finite(part, gram.diagonal())
    distances = _from_gram(gram)
    norms = gram.diagonal()
    trusted = distances > CANCELLATION * (norms[:, None] + norms[None, :])
    pairs = (~trusted & finite[:, None] & finite[None, :]).triu(1).nonzero()
    if len(pairs):
        exact = _by_differences(part, pairs)
        distances[pairs[:, 0], pairs[:, 1]] = exact
        distances[pairs[:, 1], pairs[:, 0]] = exact
        twin = (distances == 0).byte().argmax(-1)
        distances = distances[twin][:, twin]
    return _put_at_infinity(distances, ~finite)


def float64_block(part: Part, start: int, stop: int) -> Tensor:
    """Some columns of n vectors, a copy in float64: `[n, stop - start]`, less at the end."""
    if isinstance(part, Tensor):
        return part[:, start:stop].to(torch.float64, copy=True)
    return torch.stack([row[start:stop] for row in part]).double()


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


def _finite(part: Part, norms: Tensor) -> Tensor:
    """Which vectors have no NaN and no infinity; those of a finite squared length need no look."""
    finite = norms.isfinite()
    for row in (~finite).nonzero().squeeze(-1).tolist():
        finite[row] = all(piece.isfinite().all() for piece in part[row].split(BLOCK))
    return finite


def central_row(block: Tensor) -> Tensor:
    """The index of a vector amid the others, to measure from; a poor choice costs time, never exactness."""
    sample = block[:, :: max(1, block.shape[1] // 32)]
    distances = torch.cdist(sample, sample, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.nan_to_num(nan=torch.inf).sort(-1).values[:, : len(block) // 2 + 1].sum(-1).argmin()


def _by_differences(part: Part, pairs: Tensor) -> Tensor:
    """`||V_i - V_j||^2` for `pairs [p, 2]`, from the coordinates' differences."""
    total = torch.zeros(len(pairs), dtype=torch.float64, device=pairs.device)
    n, d = len(part), len(part[0])
    columns = max(1, min(d, BLOCK // n))
    for start in range(0, d, columns):
        block = float64_block(part, start, start + columns)
        for some, sums in zip(pairs.split(BLOCK // columns + 1), total.split(BLOCK // columns + 1), strict=True):
            sums += (block[some[:, 0]] - block[some[:, 1]]).square_().sum(-1)
    return total
