"""Advantages of the members of every decision, from the rewards of the samples."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.branches import (
    fuse_edge_rewards,
    fuse_leaf_rewards,
    granular_advantages,
)
from mvczigal_ref.advantage.group import combined_group_advantages
from mvczigal_ref.advantage.pruning import prune_nodes, prune_samples
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.records import Samples

__all__ = ["sample_advantages"]


def sample_advantages(
    rewards: Mapping[str, Float[Tensor, "*view prompt sample"]],
    *,
    weights: Mapping[str, float],
    samples: Samples,
    tree_log_prob: Float[Tensor, "prompt *depth sample"] | None,
    config: TrainConfig,
) -> tuple[Float[Tensor, "*view prompt member"], ...]:
    """Turn rewards into one advantage for each member of each decision.

    Each reward is compared by itself; their weighted sum is clipped, once.

    Args:
        rewards: Rewards by scorer, of every judged sample [reward units].
        weights: One for every name in ``rewards`` [1].
        samples: Any slice: how its samples divide.
        tree_log_prob: Log-density of each leaf's path, or of its edges at every depth, where
            likelier ones count more [nats].
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
    fused = {name: _fused(table, tree_log_prob, samples, config) for name, table in rewards.items()}
    by_depth = [
        combined_group_advantages(
            {name: rows[depth] for name, rows in fused.items()},
            weights=weights, spread=settings.spread, ddof=settings.ddof, delta=settings.delta,
            clip=settings.clip,
        )
        for depth in range(len(samples.branching))
    ]  # fmt: skip
    tables = tuple(by_depth[d.depth] for d in samples.decisions) or (by_depth[-1],)
    if rollout.kind == "group" and settings.pruned_share > 0.0:
        return tuple(prune_samples(table, share=settings.pruned_share) for table in tables)
    if rollout.kind == "tree" and rollout.pruned_leaves != "none":
        return tuple(
            prune_nodes(
                table, keep=rollout.pruned_leaves, siblings=samples.branching[-1],
                share=rollout.pruned_share,
            )
            if decision.step > max(rollout.split_steps)
            else table
            for table, decision in zip(tables, samples.decisions, strict=True)
        )  # fmt: skip
    return tables


def _fused(
    table: Float[Tensor, "*view prompt sample"],
    tree_log_prob: Tensor | None,
    samples: Samples,
    config: TrainConfig,
) -> tuple[Float[Tensor, "*view prompt node"], ...]:
    """Give every node of a tree its reward, by its leaves' paths or by its children's edges."""
    shape: dict[str, Any] = {
        "branching": samples.branching,
        "inverse_temperature": config.advantage.fusion_inverse_temperature,
    }
    if tree_log_prob is None:
        return fuse_leaf_rewards(table, leaf_log_prob=None, **shape)
    if config.advantage.fusion == "edge":
        edges = tree_log_prob.expand(*table.shape[:-1], *tree_log_prob.shape[1:])
        return fuse_edge_rewards(table, edge_log_prob=edges, **shape)
    return fuse_leaf_rewards(table, leaf_log_prob=tree_log_prob.expand_as(table), **shape)
