"""Figures: from a tidy frame to a picture."""
