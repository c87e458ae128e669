"""`krum.distributed.ddp`, by its public name."""

from krum.distributed.ddp import Aggregation, aggregate_, aggregate_with

__all__ = ["Aggregation", "aggregate_", "aggregate_with"]
