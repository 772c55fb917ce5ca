"""What an iteration over groups learns from: decisions under conditions, or noised samples."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.pair import joint_share
from mvczigal_ref.condition.distinct import TextColumn, every_condition
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.method.group_loss import group_objective, step_weights
from mvczigal_ref.method.sample import GroupSamples
from mvczigal_ref.method.slices import Share
from mvczigal_ref.objective.augmented_conditions import probability_drift
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.records import GroupDecision
from mvczigal_ref.reward.table import GroupRewards
from mvczigal_ref.rollout.noise import derived_generator
from mvczigal_ref.system import System
from mvczigal_ref.update.group_batch import GroupBatch
from mvczigal_ref.update.groups import update_groups
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.replay import GroupUpdateSettings, decision_under

__all__ = ["group_advantage_tables", "learn_from_decisions"]

Tables = Sequence[tuple[Tensor, ...]]
"""Per condition a table a decision, of all prompts."""


Decisions = tuple[GroupDecision, ...]
"""What some prompts of a slice drew."""


Known = tuple[TextColumn, Conditioning]
"""Distinct texts of some prompts of a slice, and what the policy knows of them."""


Update = tuple[dict[str, float], LossScale | None]
"""Metrics of an update, and the loss scale of the next."""


Drift = tuple[Float[Tensor, "prompt caption _ view"], ...]
"""A table a decision, over its members [unit of the log-density]."""


def learn_from_decisions(
    system: System,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[GroupSamples],
    conditions: Sequence[Sequence[Known]],
    advantages: Tables,
    *,
    share: Share,
    config: TrainConfig,
    world: World,
    loss_scale: LossScale | None = None,
) -> tuple[Update, Drift | None]:
    """Replay what was drawn, under every condition, and change the parameters.

    Args:
        system: What acts; its trained parameters change.
        optimizer: Over them.
        samples: One record a slice of this process.
        conditions: Of each slice, its columns of distinct texts, the prompts' own first.
        advantages: Of all prompts of the iteration.
        share: Which prompts each slice holds.
        config: The sections ``objective`` and ``optim`` are read.
        world: This process among all.
        loss_scale: From the last iteration; None where gradients do not need it.

    Returns:
        Metrics of the update and the next loss scale; and by how much each caption changes each
        sample's density, of all processes, None without captions.

    Raises:
        NonFiniteError: If a number is not finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If replay does not reproduce the rollout.
    """
    settings = group_update_settings(config)
    decisions = [
        [_decisions_under(system, part, column, place, settings)
         for place, column in enumerate(known)]
        for part, known in zip(samples, conditions, strict=True)
    ]  # fmt: skip
    batches = [
        _batches(system, part, decisions[n], conditions[n], advantages, config)
        for n, part in enumerate(share.objects)
    ]
    learned = update_groups(
        system.policy,
        system.sampler,
        optimizer,
        batches,
        group_objective(config, system.sampler),
        parameters=list(system.trained().values()),
        world=world,
        settings=settings,
        reference=system.backbone.without_lora if config.objective.kl_weight else None,
        loss_scale=loss_scale,
    )
    return learned, _drift(conditions, decisions, share, world)


def group_update_settings(config: TrainConfig) -> GroupUpdateSettings:
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


def _decisions_under(
    system: System, samples: GroupSamples, known: Known, place: int, settings: GroupUpdateSettings
) -> Decisions:
    """Give what the prompts of a column drew, as the network that drew it sees it there."""
    column, conditioning = known
    drawn = samples.decisions
    if len(column.prompts) < samples.denoised.shape[0]:
        drawn = tuple(decision.prompts(column.prompts) for decision in drawn)
    if place == 0:  # the prompts' own, under which it was drawn
        return drawn
    return tuple(
        decision_under(
            system.policy, system.sampler, decision, conditioning,
            settings=settings, nodes_per_call=settings.nodes_per_call,
        )
        for decision in drawn
    )  # fmt: skip


def _batches(
    system: System,
    part: range,
    decisions: Sequence[Decisions],
    conditions: Sequence[Known],
    advantages: Tables,
    config: TrainConfig,
) -> list[GroupBatch]:
    """Put one slice together, a batch a column of distinct texts; weights are 1 on average."""
    weights = [1.0, *[config.condition.weight] * (len(advantages) - 1)]
    relative = [weight * len(weights) / sum(weights) for weight in weights]
    steps = step_weights(config, system.sampler, decisions[0])
    return [
        GroupBatch(
            decisions=drawn,
            conditioning=known,
            advantage=_advantages_of(column, part, advantages, device=system.device),
            step_weight=steps,
            condition_weight=column.weights(relative),
            repeats=tuple(map(len, column.conditions)),
            objects=tuple(part.start + prompt for prompt in column.prompts),
        )
        for drawn, (column, known) in zip(decisions, conditions, strict=True)
    ]


def _advantages_of(
    column: TextColumn,
    part: range,
    advantages: Sequence[tuple[Tensor, ...]],
    *,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """Look up each prompt's advantages under its text; equal texts have equal ones."""
    return tuple(
        torch.stack(
            [
                advantages[places[0]][decision][part.start + prompt]
                for prompt, places in zip(column.prompts, column.conditions, strict=True)
            ]
        ).to(device)
        for decision in range(len(advantages[0]))
    )


def _drift(
    conditions: Sequence[Sequence[Known]],
    decisions: Sequence[Sequence[Decisions]],
    share: Share,
    world: World,
) -> Drift | None:
    """Measure how captions change the density of what the prompts drew."""
    columns = [[column for column, _ in part] for part in conditions]
    if len(columns[0]) == 1 and columns[0][0].conditions[0] == (0,):
        return None
    found = []
    for index in range(len(decisions[0][0])):
        rows = [
            # Views stand where the function has steps: they are not added up either.
            probability_drift(
                every_condition(mine, [drawn[index].log_prob for drawn in part]).transpose(0, 1)
            )
            for mine, part in zip(columns, decisions, strict=True)
        ]
        found.append(share.gather(rows, world))
    return tuple(found)


def group_advantage_tables(
    rewards: GroupRewards,
    samples: GroupSamples,
    *,
    multiplier: float,
    leaf_log_prob: Float[Tensor, "prompt sample"] | None = None,
    config: TrainConfig,
    iteration: int,
) -> list[tuple[Float[Tensor, "prompt member view"], ...]]:
    """Compare all samples of an iteration, each under each condition.

    Args:
        rewards: Of all prompts of the iteration.
        samples: Any slice: its shape says how rewards belong to decisions.
        multiplier: Of the constraint [1].
        leaf_log_prob: Of all samples' paths, where likelier ones count more [nats].
        config: The section ``advantage`` is read.
        iteration: Its index, for the control that shuffles.

    Returns:
        Per condition a table a decision, of all prompts [1].

    Raises:
        NonFiniteError: If a reward is not finite.
    """
    share = joint_share(
        config.advantage.mode, multiplier=multiplier, joint_weight=config.advantage.joint_weight
    )
    compare = partial(samples.advantages, leaf_log_prob=leaf_log_prob)
    apart = config.reward.combine == "advantages"
    per_view = rewards.per_view if apart else {"": rewards.per_view_total()}
    joint = rewards.joint if apart and rewards.joint else {"": rewards.joint_total()}
    weights = {**rewards.weights, "": 1.0}
    found = []
    for condition in range(next(iter(rewards.per_view.values())).shape[0]):
        by_view, by_object = (
            compare(tables, weights={name: weights[name] for name in tables})
            for tables in (
                {name: table[condition].movedim(-1, 0) for name, table in per_view.items()},
                {name: table[condition] for name, table in joint.items()},
            )
        )
        found.append(
            tuple(
                (1.0 - share) * views.movedim(0, -1) + share * whole[..., None]
                for views, whole in zip(by_view, by_object, strict=True)
            )
        )
    if config.advantage.shuffle:
        prompts = found[0][0].shape[0]
        generator = derived_generator(config.run.seed, iteration, "shuffle")
        order = torch.randperm(prompts, generator=generator)
        found = [tuple(table[order] for table in tables) for tables in found]
    return found
