"""Stage 5: what to minimise. Log-ratios and advantages in, a scalar and diagnostics out."""

from mvczigal_ref.objective.advantage_matching import (
    advantage_matching_loss,
    matching_error,
    matching_score,
)
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
from mvczigal_ref.objective.diffusion_nft import (
    diffusion_nft_loss,
    old_policy_decay,
    optimality,
    part_of_advantage,
)
from mvczigal_ref.objective.divergence import divergence_loss, outside_region
from mvczigal_ref.objective.group_preference import (
    group_preference_loss,
    group_preference_weight,
)
from mvczigal_ref.objective.grpo_guard import guard_loss, guarded_log_ratio
from mvczigal_ref.objective.joint import joint_gradients, joint_log_ratio
from mvczigal_ref.objective.noise_preference import noise_error, noise_preference_loss
from mvczigal_ref.objective.preference import preference_gradients, preference_loss
from mvczigal_ref.objective.rectified import rectified_step_weights
from mvczigal_ref.objective.reward_difference import (
    ObjectiveStats,
    RewardDifferenceGradients,
    reward_difference_gradients,
    reward_difference_loss,
)
from mvczigal_ref.objective.sequence import (
    sequence_log_ratio,
    sequence_loss,
    through_sequence,
)

__all__ = [
    "ObjectiveStats",
    "RewardDifferenceGradients",
    "advantage_matching_loss",
    "augmented_conditions_loss",
    "clipped_surrogate_loss",
    "diffusion_nft_loss",
    "divergence_loss",
    "group_preference_loss",
    "group_preference_weight",
    "guard_loss",
    "guarded_log_ratio",
    "joint_gradients",
    "joint_log_ratio",
    "matching_error",
    "matching_score",
    "noise_error",
    "noise_preference_loss",
    "old_policy_decay",
    "optimality",
    "outside_region",
    "part_of_advantage",
    "preference_gradients",
    "preference_loss",
    "probability_drift",
    "rectified_step_weights",
    "reference_kl",
    "reference_kl_without_step_length",
    "reward_difference_gradients",
    "reward_difference_loss",
    "sequence_log_ratio",
    "sequence_loss",
    "tempflow_step_weights",
    "through_sequence",
]
