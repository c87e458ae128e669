"""Krum and Multi-Krum as other packages compute them: functions of n vectors, f, and m (None: Krum).

The vectors are a matrix `[n, d]` or a list of n tensors. Whoever takes a matrix only has to stack the list first. What
each computes is its own affair: byzfl takes one neighbour more, torchjd does not square.
"""

import importlib.util

import torch

import krum
from krum.simulation.datasets import import_torchvision


def ours(vectors, f, m):
    return krum.aggregate(vectors, "krum", f=f) if m is None else krum.aggregate(vectors, "multi-krum", f=f, m=m)


def ten_lines(vectors, f, m):
    """What a reader would write in ten lines, in float32."""
    vectors = as_matrix(vectors)
    gram = vectors @ vectors.T
    norms = gram.diagonal()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    squared.fill_diagonal_(torch.inf)
    scores = squared.sort(-1).values[:, : len(vectors) - f - 2].sum(-1)
    if m is None:
        return vectors[scores.argmin()]
    return vectors[scores.topk(m, largest=False).indices].mean(0)


def byzfl(vectors, f, m):
    """It takes lists, and stacks them itself."""
    rule = import_byzfl().Krum if m is None else import_byzfl().MultiKrum
    return rule(f)(vectors)


def torchjd(vectors, f, m):
    from torchjd.aggregation import Krum

    return Krum(f, 1 if m is None else m)(as_matrix(vectors))


def flwr(vectors, f, m):
    """Its own form is a list of clients' lists of numpy arrays, which share the tensors' memory."""
    from flwr.server.strategy.aggregate import aggregate_krum

    return aggregate_krum([([row.numpy()], 1) for row in vectors], f, 0 if m is None else m)


def as_matrix(vectors):
    return vectors if isinstance(vectors, torch.Tensor) else torch.stack(vectors)


def import_byzfl():
    import_torchvision()  # which byzfl imports
    import byzfl

    return byzfl


OURS, BASELINE = "krum (ours)", "ten lines"
PEERS = {"byzfl": byzfl, "torchjd": torchjd, "flwr": flwr}
CPU_ONLY = {"flwr"}


def installed(device):
    """Ours, the baseline, and the peers that can be imported and run on the device."""
    here = {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(name)}
    return {OURS: ours, BASELINE: ten_lines} | {
        name: peer for name, peer in here.items() if device.type == "cpu" or name not in CPU_ONLY
    }
