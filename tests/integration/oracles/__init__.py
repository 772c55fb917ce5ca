"""Whole iterations and kernels, computed once more in plain torch from the equations.

The package is asked for its result, and for the network that both sides call; see ``real``.
"""
