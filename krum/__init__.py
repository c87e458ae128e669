"""Krum and its rivals: Byzantine-tolerant aggregation of gradients, and the experiments that measure it.

    krum.aggregate(vectors, aggregator="krum", f=2)   the aggregate of n gradients, torch or numpy
    krum.weights(gram, aggregator="krum", f=2)        the same choice from inner products alone
    krum.AGGREGATORS, ATTACKS, DATASETS, MODELS       what there is, by name

Importing this package imports nothing else yet: a job of the workflow should not wait for what it does not need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krum.aggregation import aggregate, weights
    from krum.aggregators import AGGREGATORS
    from krum.attacks import ATTACKS
    from krum.datasets import DATASETS
    from krum.errors import InputError
    from krum.models import MODELS

__all__ = ["AGGREGATORS", "ATTACKS", "DATASETS", "MODELS", "InputError", "aggregate", "weights"]
__version__ = "0.1.0"

_MODULES = {
    "AGGREGATORS": "aggregators",
    "ATTACKS": "attacks",
    "DATASETS": "datasets",
    "MODELS": "models",
    "InputError": "errors",
    "aggregate": "aggregation",
    "weights": "aggregation",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"krum.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'krum' has no attribute {name!r}")
