"""All aggregation rules by name: those on distances in `gram_rules`, those by coordinate in `coordinate_rules`."""

from krum.rules import coordinate_rules, gram_rules
from krum.rules.registration import AGGREGATORS, Aggregator

RULES = (gram_rules, coordinate_rules)  # the modules that register rules

__all__ = ["AGGREGATORS", "RULES", "Aggregator"]
