"""What an iteration over groups learns from: decisions under conditions, or noised samples."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvczigal_ref.condition.distinct import TextColumn, every_condition
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.distributed import World
from mvczigal_ref.group_objective import group_objective, step_weights
from mvczigal_ref.group_records import GroupDecision
from mvczigal_ref.group_samples import GroupSamples
from mvczigal_ref.objective.augmented_conditions import probability_drift
from mvczigal_ref.objective.diffusion_nft import diffusion_nft_loss
from mvczigal_ref.records import Conditioning
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.windows import random_steps
from mvczigal_ref.slices import Share
from mvczigal_ref.system import System
from mvczigal_ref.update import (
    ForwardBatch,
    GroupBatch,
    GroupUpdateSettings,
    LossScale,
    NoisedSamples,
    decision_under,
    update_forward,
    update_groups,
)

__all__ = ["learn_from_decisions", "learn_from_noised", "parameters_as"]

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
    settings = _update_settings(config)
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


def learn_from_noised(
    system: System,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[GroupSamples],
    conditions: Sequence[Sequence[Known]],
    advantages: Tables,
    *,
    share: Share,
    config: TrainConfig,
    world: World,
    iteration: int,
    old: Mapping[str, Tensor],
    loss_scale: LossScale | None = None,
) -> tuple[Update, None]:
    """Noise what was sampled, fit velocities to it, and change the parameters.

    Args:
        system: What acts; its trained parameters change.
        optimizer: Over them.
        samples: One record a slice of this process.
        conditions: Of each slice, the prompts' own first; others are not read.
        advantages: Of all prompts of the iteration.
        share: Which prompts each slice holds.
        config: The sections ``objective``, ``forward`` and ``optim`` are read.
        world: This process among all.
        iteration: Its index; names levels and noise.
        old: Trained parameters of the policy that sampled.
        loss_scale: From the last iteration; None where gradients do not need it.

    Returns:
        Metrics of the update and the next loss scale; and None: there are no log-densities.

    Raises:
        NonFiniteError: If a number is not finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
    """
    levels = _levels(system, config, iteration)
    batches = [
        _noised(system, part, samples[n], conditions[n][0][1], advantages[0][0], levels, config,
                iteration)
        for n, part in enumerate(share.objects)
    ]  # fmt: skip
    learned = update_forward(
        system.policy,
        optimizer,
        batches,
        partial(_forward_loss, config),
        parameters=list(system.trained().values()),
        world=world,
        settings=_update_settings(config),
        old=partial(parameters_as, system.trained(), old),
        reference=system.backbone.without_lora if config.objective.kl_weight else None,
        loss_scale=loss_scale,
    )
    return learned, None


@contextmanager
def parameters_as(
    trained: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> Iterator[None]:
    """Give trained parameters other values for a while.

    Args:
        trained: Parameters by name, changed in place.
        values: What they are meanwhile.

    Yields:
        Nothing.

    Examples:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> with parameters_as({"w": weight}, {"w": torch.zeros(1)}):
        ...     weight.item()
        0.0
        >>> weight.item()
        1.0
    """
    kept = {name: parameter.detach().clone() for name, parameter in trained.items()}
    _overwrite(trained, values)
    try:
        yield
    finally:
        _overwrite(trained, kept)


@torch.no_grad()
def _overwrite(trained: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in trained.items():
        parameter.copy_(values[name])


def _update_settings(config: TrainConfig) -> GroupUpdateSettings:
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


def _levels(system: System, config: TrainConfig, iteration: int) -> tuple[float, ...]:
    """Draw noise levels among those that sampling visits; all processes draw the same."""
    sampler = system.sampler
    if not isinstance(sampler, FlowSampler):
        msg = f"`sampler` must be a flow's to noise samples again; got {type(sampler).__name__}."
        raise TypeError(msg)
    chosen = random_steps(
        seed=config.run.seed,
        iteration=iteration,
        size=min(config.forward.levels, sampler.num_steps),
        num_steps=sampler.num_steps,
    )
    return tuple(sampler.sigma_t[list(chosen)].tolist())


def _noised(
    system: System,
    part: range,
    samples: GroupSamples,
    conditioning: Conditioning,
    advantage: Tensor,
    levels: tuple[float, ...],
    config: TrainConfig,
    iteration: int,
) -> ForwardBatch:
    """Put one slice together, with noise of its own for every level and sample."""
    noise = SeededNoise(
        seed=config.run.seed,
        iteration=iteration,
        objects=part,
        shape=system.latent_shape,
        device=system.device,
    )
    members = samples.denoised.shape[1]
    paths = [(member,) for member in range(members)]
    return ForwardBatch(
        clean=samples.denoised.transpose(0, 1),
        noise=torch.stack([noise.members(paths, "forward", n) for n in range(len(levels))]),
        levels=levels,
        conditioning=conditioning,
        advantage=advantage[part.start : part.stop].to(samples.denoised).transpose(0, 1),
        first_object=part.start,
    )


def _forward_loss(config: TrainConfig, noised: NoisedSamples) -> tuple[Tensor, dict[str, Tensor]]:
    loss, stats = diffusion_nft_loss(
        noised.velocity,
        velocity_old=noised.velocity_old,
        velocity_reference=noised.velocity_reference,
        latent_t=noised.latent_t,
        clean=noised.clean,
        level=noised.level,
        advantage=noised.advantage,
        mix=config.forward.mix,
        advantage_clip=config.advantage.clip,
        kl_weight=config.objective.kl_weight,
    )
    return loss, {f"forward/{name}": value for name, value in asdict(stats).items()}
