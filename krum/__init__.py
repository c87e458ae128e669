"""Krum and its rivals: Byzantine-tolerant aggregation of gradients, and the experiments that measure it.

    krum.aggregate(vectors, aggregator="krum", f=2)   the aggregate of n gradients, torch or numpy
    krum.weights(gram, aggregator="krum", f=2)        the same choice from inner products alone
    krum.AGGREGATORS, ATTACKS, DATASETS, MODELS       what there is, by name
    krum.ddp, krum.sharded, krum.train                the same rules in real processes

Four rooms, each of which imports from those after it alone: `krum.suite` (from YAML to figures), `krum.distributed`
(real processes), `krum.simulation` (one cell to curves), `krum.rules` (n vectors to one).
"""

import os
import warnings
from importlib import metadata

PROJECT = "krum-experiments"  # on an index; `krum.errors` looks whether this file is still here

# Without this, MKL's matrix products depend on how their operands are aligned in memory, and so the last bits of a
# result on what was computed before it. MKL reads it at its first product; it costs no measurable time.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import torch

from krum.errors import InputError
from krum.rules.aggregation import aggregate, weights
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import DATASETS
from krum.simulation.models import MODELS

__all__ = ["AGGREGATORS", "ATTACKS", "DATASETS", "MODELS", "InputError", "aggregate", "weights"]
__version__ = "0.1.0"

if hasattr(os, "register_at_fork"):
    # The threads of OpenMP do not live on in a forked child, which would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

for _ in metadata.distributions(name="krum"):
    warnings.warn(
        f"another package named krum is installed beside {PROJECT}, and their files overwrite each other; "
        f"uninstall both, then install the one you want",
        RuntimeWarning,
        stacklevel=2,
    )
