"""Notebooks of the documentation, run from the first cell to the last."""
