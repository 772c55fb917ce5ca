"""Training: the loop around the iterations, its state, checkpoints and run folder."""
