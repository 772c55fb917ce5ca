"""Stage 4: turn rewards into advantages. Reward tables in, dimensionless numbers out."""

from mvczigal_ref.advantage.branches import (
    depth_advantages,
    fuse_edge_rewards,
    fuse_leaf_rewards,
    granular_advantages,
)
from mvczigal_ref.advantage.group import (
    CombineRewards,
    GroupSpread,
    combined_group_advantages,
    group_advantages,
    ragged_group_advantages,
)
from mvczigal_ref.advantage.pair import (
    AdvantageMode,
    PairAdvantages,
    advantage_gap,
    joint_share,
    pair_advantages,
)
from mvczigal_ref.advantage.pruning import (
    PrunedLeaves,
    prune_nodes,
    prune_samples,
    spread_weights,
)
from mvczigal_ref.advantage.standardise import standardise

__all__ = [
    "AdvantageMode",
    "CombineRewards",
    "GroupSpread",
    "PairAdvantages",
    "PrunedLeaves",
    "advantage_gap",
    "combined_group_advantages",
    "depth_advantages",
    "fuse_edge_rewards",
    "fuse_leaf_rewards",
    "granular_advantages",
    "group_advantages",
    "joint_share",
    "pair_advantages",
    "prune_nodes",
    "prune_samples",
    "ragged_group_advantages",
    "spread_weights",
    "standardise",
]
