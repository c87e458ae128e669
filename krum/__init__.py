"""Krum and its rivals: Byzantine-tolerant aggregation of gradients, and the experiments that measure it.

    krum.aggregate(vectors, aggregator="krum", f=2)   the aggregate of n gradients, torch or numpy
    krum.weights(gram, aggregator="krum", f=2)        the same choice from inner products alone
    krum.AGGREGATORS, ATTACKS, DATASETS, MODELS       what there is, by name

Importing this package does not import torch: `aggregate` and `weights` do so at their first use.
"""

from typing import TYPE_CHECKING, Any

from krum.aggregators import AGGREGATORS
from krum.attacks import ATTACKS
from krum.datasets import DATASETS
from krum.errors import InputError
from krum.models import MODELS

if TYPE_CHECKING:
    from krum.aggregation import aggregate, weights

__all__ = ["AGGREGATORS", "ATTACKS", "DATASETS", "MODELS", "InputError", "aggregate", "weights"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("aggregate", "weights"):
        from krum import aggregation

        return getattr(aggregation, name)
    raise AttributeError(f"module 'krum' has no attribute {name!r}")
