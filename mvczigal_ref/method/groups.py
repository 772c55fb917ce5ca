"""GRPO and MV-GRPO: samples compared within groups, replayed under every condition."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from mvczigal_ref.advantage.pair import joint_share
from mvczigal_ref.method.caption import drift_entries, drift_metrics
from mvczigal_ref.method.drift import caption_drift
from mvczigal_ref.method.group_advantages import sample_advantages
from mvczigal_ref.method.group_batches import (
    decisions_under,
    group_update_settings,
    slice_batches,
)
from mvczigal_ref.method.group_loss import group_objective
from mvczigal_ref.method.group_metrics import joint_mean, reward_metrics
from mvczigal_ref.method.protocol import Advantages, Experience, Iteration, Learned, Learner
from mvczigal_ref.records import Samples
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.update.groups import update_groups
from mvczigal_ref.update.parameters import parameters_as

__all__ = ["compare", "joint_mean", "learn", "reward_metrics"]


def compare(
    rewards: RewardTable,
    samples: Sequence[Samples],
    iteration: Iteration,
    *,
    multiplier: float,
) -> Advantages:
    """Compare every sample with the others of its group, under each condition by itself.

    Source:
        arXiv:2505.05470 (Flow-GRPO) and its family by the section ``advantage``;
        arXiv:2603.12648 (MV-GRPO) for the conditions. The joint reward is mixed in as in
        arXiv:2505.20107.

    Args:
        rewards: Rewards of all prompts.
        samples: Slices of this process: their shape says how rewards belong to decisions.
        iteration: The sections ``reward``, ``advantage`` and ``rollout`` are read, and the index
            by the control that shuffles.
        multiplier: Multiplier of the constraint [1].

    Returns:
        Per condition one table per decision, of all prompts [1].

    Raises:
        NonFiniteError: If a reward is non-finite.
    """
    config = iteration.config
    weight = joint_share(
        config.advantage.mode, multiplier=multiplier, joint_weight=config.advantage.joint_weight
    )
    name = "edge_log_prob" if config.advantage.fusion == "edge" else "leaf_log_prob"
    paths = [scores for part in samples if (scores := getattr(part, name)) is not None]
    fuses = bool(config.advantage.fusion_inverse_temperature)
    advantages_of = partial(
        sample_advantages,
        samples=samples[0],
        tree_log_prob=iteration.share.gather(paths, iteration.world) if fuses else None,
        config=config,
    )
    apart = config.reward.combine == "advantages"
    per_view = rewards.per_view if apart else {"": rewards.per_view_total()}
    joint = rewards.joint if apart and rewards.joint else {"": rewards.joint_total()}
    weights = {**rewards.weights, "": 1.0}
    advantages = []
    for condition in range(next(iter(rewards.per_view.values())).shape[0]):
        of_views = {name: table[condition].movedim(-1, 0) for name, table in per_view.items()}
        of_objects = {name: table[condition] for name, table in joint.items()}
        by_view, by_object = (
            advantages_of(tables, weights={name: weights[name] for name in tables})
            for tables in (of_views, of_objects)
        )
        advantages.append(
            tuple(
                (1.0 - weight) * views.movedim(0, -1) + weight * whole[..., None]
                for views, whole in zip(by_view, by_object, strict=True)
            )
        )
    return iteration.controlled(advantages)


def learn(learner: Learner, experience: Experience, iteration: Iteration) -> Learned:
    """Replay every decision under every condition, and change the parameters.

    Source:
        arXiv:2603.12648 (MV-GRPO): with the clipped surrogate and groups the loss is
        :func:`~mvczigal_ref.objective.augmented_conditions.augmented_conditions_loss`; a text that
        several of a prompt's conditions share is replayed once, with their weights added up.

    Args:
        learner: System whose trainable parameters change; ``old`` is not read.
        experience: Groups, their conditions, and the advantages of all prompts.
        iteration: Iteration whose sections ``objective``, ``condition`` and ``optim`` are read.

    Returns:
        Means over the update, the captions' drift, and the loss scale of the next update.

    Raises:
        NonFiniteError: If a number is non-finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If replay does not reproduce the rollout.
    """
    config, system, conditions = iteration.config, learner.system, experience.conditions
    settings = group_update_settings(config)
    behaviour = learner.behaviour
    with nullcontext() if behaviour is None else parameters_as(system.trained(), behaviour):
        decisions = [
            decisions_under(system, part, condition, settings)
            for part, condition in zip(experience.samples, conditions, strict=True)
        ]
    batches = [
        slice_batches(system, objects, decisions[n], conditions[n], experience.advantages, config)
        for n, objects in enumerate(iteration.share.objects)
    ]
    metrics, loss_scale = update_groups(
        system.policy,
        system.sampler,
        learner.optimizer,
        batches,
        group_objective(config, system.sampler),
        parameters=system.trained(),
        world=iteration.world,
        settings=settings,
        reference=system.backbone.without_lora if config.objective.kl_weight else None,
        loss_scale=learner.loss_scale,
        on_policy=behaviour is None,
    )
    drift = caption_drift(conditions, decisions, iteration)
    if drift is not None:
        metrics |= drift_metrics(drift_entries(drift))
    return Learned(metrics=metrics, drift=drift, loss_scale=loss_scale)
