"""Stage 4: turn rewards into advantages. Reward tables in, dimensionless numbers out."""

from mvczigal_ref.advantage.pair import (
    AdvantageMode,
    PairAdvantages,
    advantage_gap,
    joint_share,
    pair_advantages,
)
from mvczigal_ref.advantage.standardise import standardise

__all__ = [
    "AdvantageMode",
    "PairAdvantages",
    "advantage_gap",
    "joint_share",
    "pair_advantages",
    "standardise",
]
