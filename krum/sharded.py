"""`krum.distributed.sharded`, by its public name."""

from krum.distributed.sharded import aggregate, weights

__all__ = ["aggregate", "weights"]
