"""Pretraining of the tiny world's weights, and the gate that they must pass."""
