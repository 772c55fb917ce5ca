"""GRPO and MV-GRPO: samples compared within groups, replayed under every condition."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.branches import fuse_leaf_rewards, granular_advantages
from mvczigal_ref.advantage.group import combined_group_advantages
from mvczigal_ref.advantage.pair import joint_share
from mvczigal_ref.condition.distinct import TextColumn, every_condition
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.method.caption import Conditions, drift_entries, drift_metrics
from mvczigal_ref.method.group_loss import group_objective, step_weights
from mvczigal_ref.method.protocol import Advantages, Drift, Learned
from mvczigal_ref.method.slices import Share
from mvczigal_ref.objective.augmented_conditions import probability_drift
from mvczigal_ref.records import GroupDecision, Samples
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.rollout.noise import derived_generator
from mvczigal_ref.system import System
from mvczigal_ref.update.group_batch import GroupBatch
from mvczigal_ref.update.groups import update_groups
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.replay import GroupUpdateSettings, decision_under

__all__ = [
    "compare",
    "group_update_settings",
    "joint_mean",
    "learn",
    "reward_metrics",
    "sample_advantages",
]

Decisions = tuple[GroupDecision, ...]
"""Decisions of some prompts of a slice."""


def compare(
    rewards: RewardTable,
    samples: Sequence[Samples],
    *,
    multiplier: float,
    share: Share,
    config: TrainConfig,
    world: World,
    iteration: int,
) -> Advantages:
    """Compare every sample with the others of its group, under each condition by itself.

    Source:
        arXiv:2505.05470 (Flow-GRPO) and its family by the section ``advantage``;
        arXiv:2603.12648 (MV-GRPO) for the conditions. The joint reward is mixed in as in
        arXiv:2505.20107.

    Args:
        rewards: Rewards of all prompts.
        samples: Slices of this process: their shape says how rewards belong to decisions.
        multiplier: Multiplier of the constraint [1].
        share: Gathers the paths' log-densities, where likelier leaves count more.
        config: The sections ``reward``, ``advantage`` and ``rollout`` are read.
        world: This process among all.
        iteration: Index of the iteration, for the control that shuffles.

    Returns:
        Per condition one table per decision, of all prompts [1].

    Raises:
        NonFiniteError: If a reward is not finite.
    """
    weight = joint_share(
        config.advantage.mode, multiplier=multiplier, joint_weight=config.advantage.joint_weight
    )
    paths = [part.leaf_log_prob for part in samples if part.leaf_log_prob is not None]
    fuses = bool(config.advantage.fusion_inverse_temperature)
    advantages_of = partial(
        sample_advantages,
        samples=samples[0],
        leaf_log_prob=share.gather(paths, world) if fuses else None,
        config=config,
    )
    apart = config.reward.combine == "advantages"
    per_view = rewards.per_view if apart else {"": rewards.per_view_total()}
    joint = rewards.joint if apart and rewards.joint else {"": rewards.joint_total()}
    weights = {**rewards.weights, "": 1.0}
    advantages = []
    for condition in range(next(iter(rewards.per_view.values())).shape[0]):
        by_view, by_object = (
            advantages_of(tables, weights={name: weights[name] for name in tables})
            for tables in (
                {name: table[condition].movedim(-1, 0) for name, table in per_view.items()},
                {name: table[condition] for name, table in joint.items()},
            )
        )
        advantages.append(
            tuple(
                (1.0 - weight) * views.movedim(0, -1) + weight * whole[..., None]
                for views, whole in zip(by_view, by_object, strict=True)
            )
        )
    if config.advantage.shuffle:
        generator = derived_generator(config.run.seed, iteration, "shuffle")
        order = torch.randperm(advantages[0][0].shape[0], generator=generator)
        advantages = [tuple(table[order] for table in tables) for tables in advantages]
    return advantages


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


def learn(
    system: System,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Samples],
    conditions: Sequence[Conditions],
    advantages: Advantages,
    *,
    share: Share,
    config: TrainConfig,
    world: World,
    iteration: int,
    old: Mapping[str, Tensor] | None,
    loss_scale: LossScale | None = None,
) -> Learned:
    """Replay every decision under every condition, and change the parameters.

    Args:
        system: Network and sampler; the trained parameters change.
        optimizer: Over the trained parameters.
        samples: One record per slice of this process.
        conditions: Columns of distinct texts of each slice, the prompts' own first.
        advantages: Advantages of all prompts.
        share: Objects of each slice.
        config: The sections ``objective``, ``condition`` and ``optim`` are read.
        world: This process among all.
        iteration: Not read.
        old: Not read.
        loss_scale: Factor on the loss in the backward pass; None where gradients do not need it.

    Returns:
        Means over the update, the captions' drift, and the loss scale of the next update.

    Raises:
        NonFiniteError: If a number is not finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If replay does not reproduce the rollout.
    """
    settings = group_update_settings(config)
    decisions = [
        [_decisions_under(system, part, condition, place, settings)
         for place in range(len(condition.columns))]
        for part, condition in zip(samples, conditions, strict=True)
    ]  # fmt: skip
    batches = [
        _batches(system, objects, decisions[n], conditions[n], advantages, config)
        for n, objects in enumerate(share.objects)
    ]
    metrics, loss_scale = update_groups(
        system.policy,
        system.sampler,
        optimizer,
        batches,
        group_objective(config, system.sampler),
        parameters=system.trained(),
        world=world,
        settings=settings,
        reference=system.backbone.without_lora if config.objective.kl_weight else None,
        loss_scale=loss_scale,
    )
    drift = _drift(conditions, decisions, share, world)
    if drift is not None:
        metrics |= drift_metrics(drift_entries(drift))
    return Learned(metrics=metrics, drift=drift, loss_scale=loss_scale)


def group_update_settings(config: TrainConfig) -> GroupUpdateSettings:
    """Gather the settings of a group's replay.

    Args:
        config: The run.

    Returns:
        Cuts, passes, guidance and clip range.
    """
    return GroupUpdateSettings(
        nodes_per_call=1 if config.rollout.kind == "pair" else config.rollout.nodes_per_call,
        step_per_decision=config.optim.step_per_decision,
        epochs=config.optim.epochs_per_iteration,
        optimizer_steps=config.optim.optimizer_steps_per_epoch,
        max_grad_norm=config.optim.max_grad_norm,
        scale_growth_interval=config.optim.loss_scale_growth_interval,
        clip_range=config.objective.clip_range,
        guidance_scale=config.sampler.guidance_scale,
        camera_scale=config.sampler.camera_scale,
        reduction=config.objective.reduction,
    )


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
    metrics = {
        "per_view_reward/mean": by_sample.mean(),
        "per_view_reward/group_std": by_sample.std(-1, correction=0).mean(),
        "joint_view_reward/mean": joint[0].mean(),
        "joint_view_reward/group_std": joint[0].std(-1, correction=0).mean(),
        # Groups that were all scored alike teach nothing.
        "groups_alike": (by_sample.amax(-1) == by_sample.amin(-1)).double().mean(),
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


def _decisions_under(
    system: System,
    samples: Samples,
    condition: Conditions,
    place: int,
    settings: GroupUpdateSettings,
) -> Decisions:
    """Score the decisions of a column's prompts as the network that drew them does there."""
    column, decisions = condition.columns[place], samples.decisions
    if len(column.prompts) < samples.denoised.shape[0]:
        decisions = tuple(decision.prompts(column.prompts) for decision in decisions)
    if place == 0:  # the prompts' own column, under which they were drawn
        return decisions
    return tuple(
        decision_under(
            system.policy, system.sampler, decision, condition.conditioning[place],
            settings=settings, nodes_per_call=settings.nodes_per_call,
        )
        for decision in decisions
    )  # fmt: skip


def _batches(
    system: System,
    objects: range,
    decisions: Sequence[Decisions],
    condition: Conditions,
    advantages: Advantages,
    config: TrainConfig,
) -> list[GroupBatch]:
    """Put one slice together, one batch per column of distinct texts; weights are 1 on average."""
    weights = [1.0, *[config.condition.weight] * (len(advantages) - 1)]
    relative = [weight * len(weights) / sum(weights) for weight in weights]
    steps = step_weights(config, system.sampler, decisions[0])
    return [
        GroupBatch(
            decisions=drawn,
            conditioning=conditioning,
            advantage=_advantages_of(column, objects, advantages, device=system.device),
            step_weight=steps,
            condition_weight=column.weights(relative),
            repeats=tuple(map(len, column.conditions)),
            objects=tuple(objects.start + prompt for prompt in column.prompts),
        )
        for drawn, column, conditioning in zip(
            decisions, condition.columns, condition.conditioning, strict=True
        )
    ]


def _advantages_of(
    column: TextColumn, objects: range, advantages: Advantages, *, device: torch.device
) -> tuple[Tensor, ...]:
    """Look up each prompt's advantages under its text; equal texts have equal ones."""
    return tuple(
        torch.stack(
            [
                advantages[places[0]][decision][objects.start + prompt]
                for prompt, places in zip(column.prompts, column.conditions, strict=True)
            ]
        ).to(device)
        for decision in range(len(advantages[0]))
    )


def _drift(
    conditions: Sequence[Conditions],
    decisions: Sequence[Sequence[Decisions]],
    share: Share,
    world: World,
) -> Drift | None:
    """Measure how captions change the density of the prompts' samples."""
    if conditions[0].columns[0].conditions[0] == (0,) and len(conditions[0].columns) == 1:
        return None
    tables = []
    for index in range(len(decisions[0][0])):
        rows = [
            # Views stand where the function has steps: they are not added up either.
            probability_drift(
                every_condition(
                    condition.columns, [drawn[index].log_prob for drawn in part]
                ).transpose(0, 1)
            )
            for condition, part in zip(conditions, decisions, strict=True)
        ]
        tables.append(share.gather(rows, world))
    return tuple(tables)
