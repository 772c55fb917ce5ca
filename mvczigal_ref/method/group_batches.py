"""Batches of one slice: decisions, advantages and weights under every condition."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.pruning import spread_weights
from mvczigal_ref.condition.distinct import TextColumn
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method.caption import Conditions
from mvczigal_ref.method.group_loss import step_weights
from mvczigal_ref.method.protocol import Advantages
from mvczigal_ref.records import GroupDecision, Samples
from mvczigal_ref.system import System
from mvczigal_ref.update.group_batch import GroupBatch
from mvczigal_ref.update.replay import GroupUpdateSettings, decision_under

__all__ = [
    "Decisions",
    "decisions_under",
    "group_update_settings",
    "prompt_shares",
    "slice_batches",
]

Decisions = tuple[GroupDecision, ...]
"""Decisions of some prompts of a slice."""


def decisions_under(
    system: System, samples: Samples, condition: Conditions, settings: GroupUpdateSettings
) -> list[Decisions]:
    """Score one slice's decisions under every condition, as the network that drew them does there.

    Args:
        system: Network, with the parameters that sampled, and sampler.
        samples: The slice's samples.
        condition: Columns of distinct texts, the prompts' own first.
        settings: Guidance, reduction and cuts, as in the rollout.

    Returns:
        Per column the decisions of its prompts, with their log-densities under its texts.
    """
    return [
        _under_column(system, samples, condition, place, settings)
        for place in range(len(condition.columns))
    ]


def _under_column(
    system: System,
    samples: Samples,
    condition: Conditions,
    place: int,
    settings: GroupUpdateSettings,
) -> Decisions:
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


def slice_batches(
    system: System,
    objects: range,
    decisions: Sequence[Decisions],
    condition: Conditions,
    advantages: Advantages,
    config: TrainConfig,
) -> list[GroupBatch]:
    """Put one slice together, one batch per column of distinct texts; weights are 1 on average.

    Args:
        system: System whose device and sampler are read.
        objects: Objects of the slice.
        decisions: Decisions under every column, from :func:`decisions_under`.
        condition: Columns of distinct texts, the prompts' own first.
        advantages: Advantages of all prompts.
        config: The sections ``condition`` and ``objective`` are read.

    Returns:
        Batches in the columns' order.
    """
    weights = [1.0, *[config.condition.weight] * (len(advantages) - 1)]
    relative = [weight * len(weights) / sum(weights) for weight in weights]
    steps = step_weights(config, system.sampler, decisions[0])
    shares = prompt_shares(advantages) if config.advantage.drop_alike else None
    return [
        GroupBatch(
            decisions=drawn,
            conditioning=conditioning,
            advantage=_advantages_of(column, objects, advantages, device=system.device),
            step_weight=steps,
            condition_weight=column.weights(relative),
            repeats=tuple(map(len, column.conditions)),
            shares=None
            if shares is None
            else tuple(
                float(shares[places[0], objects.start + prompt])
                for prompt, places in zip(column.prompts, column.conditions, strict=True)
            ),
            objects=tuple(objects.start + prompt for prompt in column.prompts),
        )
        for drawn, column, conditioning in zip(
            decisions, condition.columns, condition.conditioning, strict=True
        )
    ]


def prompt_shares(advantages: Advantages) -> Float[Tensor, "condition prompt"]:
    """Weigh every condition's groups so that those without spread are left out of the mean.

    Args:
        advantages: Advantages of all prompts.

    Returns:
        See :func:`~mvczigal_ref.advantage.pruning.spread_weights`; a prompt's group has spread
        where any of its decisions has.
    """
    flat = [torch.cat([table.flatten(1) for table in tables], 1) for tables in advantages]
    return spread_weights(torch.stack(flat))


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
        by_sequence=config.objective.kind == "sequence",
        epochs=config.optim.epochs_per_iteration,
        optimizer_steps=config.optim.optimizer_steps_per_epoch,
        max_grad_norm=config.optim.max_grad_norm,
        scale_growth_interval=config.optim.loss_scale_growth_interval,
        clip_range=config.objective.clip_range,
        guidance_scale=config.sampler.guidance_scale,
        camera_scale=config.sampler.camera_scale,
        reduction=config.objective.reduction,
    )
