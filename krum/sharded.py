"""`krum.distributed.sharded`, by its public name."""

from krum.distributed.sharded import aggregate, squared_distances, weights

__all__ = ["aggregate", "squared_distances", "weights"]
