"""`krum.ddp`, by its older name."""

from krum.distributed.ddp import aggregate_, aggregate_with

__all__ = ["aggregate_", "aggregate_with"]
