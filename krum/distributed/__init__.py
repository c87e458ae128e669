"""The same rules in real processes."""
