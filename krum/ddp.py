"""`krum.distributed.ddp`, by its public name."""

from krum.distributed.ddp import aggregate_, aggregate_with

__all__ = ["aggregate_", "aggregate_with"]
