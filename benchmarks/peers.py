"""Krum and Multi-Krum as other packages compute them: functions of vectors `[n, d]`, f, and m (None: Krum).

What each computes is its own affair: byzfl takes one neighbour more, torchjd does not square.
"""

import torch

import krum
from krum.datasets import import_torchvision


def ours(vectors, f, m):
    return krum.aggregate(vectors, "krum", f=f) if m is None else krum.aggregate(vectors, "multi-krum", f=f, m=m)


def ten_lines(vectors, f, m):
    """What a reader would write in ten lines, in float32."""
    gram = vectors @ vectors.T
    norms = gram.diagonal()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    squared.fill_diagonal_(torch.inf)
    scores = squared.sort(-1).values[:, : len(vectors) - f - 2].sum(-1)
    if m is None:
        return vectors[scores.argmin()]
    return vectors[scores.topk(m, largest=False).indices].mean(0)


def byzfl(vectors, f, m):
    import_torchvision()  # byzfl imports it
    import byzfl

    return byzfl.Krum(f)(vectors) if m is None else byzfl.MultiKrum(f)(vectors)


def torchjd(vectors, f, m):
    from torchjd.aggregation import Krum

    return Krum(f, 1 if m is None else m)(vectors)


def flwr(vectors, f, m):
    from flwr.server.strategy.aggregate import aggregate_krum

    rows = [([row.numpy()], 1) for row in vectors]
    return aggregate_krum(rows, f, 0 if m is None else m)


PEERS = {"krum (ours)": ours, "ten lines": ten_lines, "byzfl": byzfl, "torchjd": torchjd, "flwr": flwr}
CPU_ONLY = {"flwr"}
