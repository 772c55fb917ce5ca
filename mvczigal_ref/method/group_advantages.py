"""Advantages of the members of every decision, from the rewards of the samples."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.branches import fuse_leaf_rewards, granular_advantages
from mvczigal_ref.advantage.group import combined_group_advantages
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.records import Samples

__all__ = ["sample_advantages"]


def sample_advantages(
    rewards: Mapping[str, Float[Tensor, "*view prompt sample"]],
    *,
    weights: Mapping[str, float],
    samples: Samples,
    leaf_log_prob: Float[Tensor, "prompt sample"] | None,
    config: TrainConfig,
) -> tuple[Float[Tensor, "*view prompt member"], ...]:
    """Turn rewards into one advantage for each member of each decision.

    Each reward is compared by itself; their weighted sum is clipped, once.

    Args:
        rewards: Rewards by scorer, of every judged sample [reward units].
        weights: One for every name in ``rewards`` [1].
        samples: Any slice: how its samples divide.
        leaf_log_prob: Log-density of each leaf's path, where likelier ones count more [nats].
        config: The sections ``rollout`` and ``advantage`` are read.

    Returns:
        One table per decision; one alone where there are none.
    """
    rollout, settings = config.rollout, config.advantage
    if rollout.kind == "branches":
        shape = (len(samples.decisions), len(rollout.strides), rollout.trunks, -1)
        by_step = {
            name: table.unflatten(-1, shape).transpose(-3, -2) for name, table in rewards.items()
        }
        each = granular_advantages(
            by_step, weights=weights, ddof=settings.ddof, delta=settings.delta, clip=settings.clip
        )
        return tuple(each.flatten(-2).movedim(-2, 0))
    fused = {
        name: fuse_leaf_rewards(
            table,
            branching=samples.branching,
            leaf_log_prob=None if leaf_log_prob is None else leaf_log_prob.expand_as(table),
            inverse_temperature=settings.fusion_inverse_temperature,
        )
        for name, table in rewards.items()
    }
    by_depth = [
        combined_group_advantages(
            {name: rows[depth] for name, rows in fused.items()},
            weights=weights, spread=settings.spread, ddof=settings.ddof, delta=settings.delta,
            clip=settings.clip,
        )
        for depth in range(len(samples.branching))
    ]  # fmt: skip
    return tuple(by_depth[d.depth] for d in samples.decisions) or (by_depth[-1],)
