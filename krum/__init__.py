"""Krum and its rivals: Byzantine-tolerant aggregation of gradients, and the experiments that measure it.

    krum.aggregate(vectors, aggregator="krum", f=2)   the aggregate of n gradients, torch or numpy
    krum.weights(gram, aggregator="krum", f=2)        the same choice from inner products alone
    krum.AGGREGATORS, ATTACKS, DATASETS, MODELS       what there is, by name
    krum.ddp, krum.sharded, krum.train                the same rules in real processes

Four rooms, each of which imports from those after it alone: `krum.suite` (from YAML to figures), `krum.distributed`
(real processes), `krum.simulation` (one cell to curves), `krum.rules` (n vectors to one).
"""

import os

# Without this, MKL's matrix products depend on how their operands are aligned in memory, and so the last bits of a
# result on what was computed before it. MKL reads it at its first product; it costs no measurable time.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

from krum.errors import InputError
from krum.rules.aggregation import aggregate, weights
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import DATASETS
from krum.simulation.models import MODELS

__all__ = ["AGGREGATORS", "ATTACKS", "DATASETS", "MODELS", "InputError", "aggregate", "weights"]
__version__ = "0.1.0"
