"""`krum.ddp`, by its older name."""

from krum.distributed.ddp import aggregate_, aggregate_with, cut, gather, receive_buffer, scatter

__all__ = ["aggregate_", "aggregate_with", "cut", "gather", "receive_buffer", "scatter"]
