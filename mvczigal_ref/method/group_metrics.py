"""Metrics of groups: means and spreads of their rewards."""

from mvczigal_ref.advantage.standardise import equal_up_to_rounding
from mvczigal_ref.diffusion.precision import widest_dtype
from mvczigal_ref.reward.table import RewardTable

__all__ = ["joint_mean", "reward_metrics"]


def reward_metrics(rewards: RewardTable) -> dict[str, float]:
    """Summarise the rewards of groups.

    Args:
        rewards: Rewards of all prompts.

    Returns:
        Means and spreads within groups under the prompts, the mean under captions where there
        are some, and the mean of every scorer.
    """
    per_view, joint = rewards.per_view_total(), rewards.joint_total()
    by_sample = per_view[0].mean(-1)
    wide = widest_dtype(by_sample.device)
    metrics = {
        "per_view_reward/mean": by_sample.mean(),
        "per_view_reward/group_std": by_sample.std(-1, correction=0).mean(),
        "joint_view_reward/mean": joint[0].mean(),
        "joint_view_reward/group_std": joint[0].std(-1, correction=0).mean(),
        # Groups that were all scored alike teach nothing.
        "groups_alike": equal_up_to_rounding(by_sample, dim=(-1,)).to(wide).mean(),
    }
    if len(per_view) > 1:
        metrics["per_view_reward/under_captions"] = per_view[1:].mean()
    for name, table in (*rewards.per_view.items(), *rewards.joint.items()):
        metrics[f"reward/{name}"] = table[0].mean()
    return {name: float(value) for name, value in metrics.items()}


def joint_mean(rewards: RewardTable) -> float:
    """Average the joint reward over all prompts and samples, under the prompts themselves.

    Args:
        rewards: Rewards of all prompts.

    Returns:
        The mean that the constraint compares with its threshold [reward units].
    """
    return float(rewards.joint_total()[0].mean())
