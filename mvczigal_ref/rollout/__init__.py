"""Stage 1: sample trajectories from the policy, without gradients."""
