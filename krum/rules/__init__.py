"""From n vectors to one: the aggregation rules, exact distances, and the front door `krum.aggregate`."""
