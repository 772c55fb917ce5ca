"""Stage 3: score images. Images and prompts in, reward tables out, no gradients."""

from mvczigal_ref.reward.aggregate import joint_to_views, mean_over_views, weighted_sum
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer

__all__ = [
    "JointViewScorer",
    "Mixture",
    "PerViewScorer",
    "joint_to_views",
    "mean_over_views",
    "weighted_sum",
]
