"""Stage 1: sample trajectories from the policy, without gradients."""

from mvczigal_ref.rollout.branches import branched_rollout
from mvczigal_ref.rollout.finish import compressed_tail, finishing_sampler
from mvczigal_ref.rollout.group import group_rollout
from mvczigal_ref.rollout.group_plan import GroupPlan
from mvczigal_ref.rollout.noise import NoiseSource, SeededNoise
from mvczigal_ref.rollout.pair import paired_rollout
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.rollout.windows import (
    decaying_window,
    fixed_window,
    moving_steps,
    random_steps,
    random_window,
    sliding_window,
)
from mvczigal_ref.rollout.zigzag import zigzag_rollout

__all__ = [
    "GroupPlan",
    "NoiseSource",
    "SeededNoise",
    "branched_rollout",
    "compressed_tail",
    "decaying_window",
    "finishing_sampler",
    "fixed_window",
    "group_rollout",
    "moving_steps",
    "paired_rollout",
    "random_steps",
    "random_window",
    "sliding_window",
    "standard_rollout",
    "zigzag_rollout",
]
