"""Single-view UNets."""
