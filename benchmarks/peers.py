"""Krum as other packages compute it: functions of n vectors, a matrix `[n, d]` or a list of n tensors, and f.

Whoever takes a matrix only has to stack the list first. What they compute differs: byzfl takes one neighbour more,
torchjd does not square.
"""

import importlib.util

import torch

import krum
from krum.simulation.mnist_download import import_torchvision


def ours(vectors, f):
    return krum.aggregate(vectors, "krum", f=f)


def ten_lines(vectors, f):
    """What a reader would write in ten lines, in float32."""
    vectors = as_matrix(vectors)
    gram = vectors @ vectors.T
    norms = gram.diagonal()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    squared.fill_diagonal_(torch.inf)
    scores = squared.sort(-1).values[:, : len(vectors) - f - 2].sum(-1)
    return vectors[scores.argmin()]


def byzfl(vectors, f):
    """It takes lists, and stacks them itself."""
    return import_byzfl().Krum(f)(vectors)


def torchjd(vectors, f):
    from torchjd.aggregation import Krum

    return Krum(f, 1)(as_matrix(vectors))


def flwr(vectors, f):
    """Its own form is a list of clients' lists of numpy arrays, which share the tensors' memory."""
    from flwr.server.strategy.aggregate import aggregate_krum

    return aggregate_krum([([row.numpy()], 1) for row in vectors], f, 0)


def as_matrix(vectors):
    return vectors if isinstance(vectors, torch.Tensor) else torch.stack(vectors)


def import_byzfl():
    import_torchvision()  # which byzfl imports
    import byzfl

    return byzfl


OURS, BASELINE = "krum (ours)", "ten lines"
PEERS = {"byzfl": byzfl, "torchjd": torchjd, "flwr": flwr}


def installed(device):
    """Ours, the baseline, and the peers that can be imported and run on the device."""
    others = {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(name)}
    if device.type != "cpu":
        others.pop("flwr", None)
    return {OURS: ours, BASELINE: ten_lines} | others
