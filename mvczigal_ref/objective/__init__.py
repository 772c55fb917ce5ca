"""Stage 5: what to minimise. Log-ratios and advantages in, a scalar and diagnostics out."""

from mvczigal_ref.objective.augmented_conditions import (
    augmented_conditions_loss,
    probability_drift,
)
from mvczigal_ref.objective.clipped import (
    clipped_surrogate_loss,
    reference_kl,
    reference_kl_without_step_length,
    tempflow_step_weights,
)
from mvczigal_ref.objective.diffusion_nft import diffusion_nft_loss, old_policy_decay, optimality
from mvczigal_ref.objective.grpo_guard import guard_loss, guarded_log_ratio
from mvczigal_ref.objective.reward_difference import (
    ObjectiveStats,
    RewardDifferenceGradients,
    reward_difference_gradients,
    reward_difference_loss,
)

__all__ = [
    "ObjectiveStats",
    "RewardDifferenceGradients",
    "augmented_conditions_loss",
    "clipped_surrogate_loss",
    "diffusion_nft_loss",
    "guard_loss",
    "guarded_log_ratio",
    "old_policy_decay",
    "optimality",
    "probability_drift",
    "reference_kl",
    "reference_kl_without_step_length",
    "reward_difference_gradients",
    "reward_difference_loss",
    "tempflow_step_weights",
]
