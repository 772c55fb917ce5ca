"""Stage 5: what to minimise. Log-ratios and advantages in, a scalar and diagnostics out."""

from mvczigal_ref.objective.reward_difference import (
    ObjectiveStats,
    RewardDifferenceGradients,
    reward_difference_gradients,
    reward_difference_loss,
)

__all__ = [
    "ObjectiveStats",
    "RewardDifferenceGradients",
    "reward_difference_gradients",
    "reward_difference_loss",
]
