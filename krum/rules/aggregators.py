"""All aggregation rules by name."""

from krum.rules import coordinate_rules, gram_rules, krum
from krum.rules.registration import AGGREGATORS, Aggregator

RULES = (krum, gram_rules, coordinate_rules)  # the modules that register rules

__all__ = ["AGGREGATORS", "RULES", "Aggregator"]
