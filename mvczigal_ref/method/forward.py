"""DiffusionNFT's update: samples noised again, and velocities fitted to them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.distributed import World
from mvczigal_ref.method.groups import Known, Tables, Update, group_update_settings
from mvczigal_ref.method.sample import GroupSamples
from mvczigal_ref.method.slices import Share
from mvczigal_ref.objective.diffusion_nft import diffusion_nft_loss
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.windows import random_steps
from mvczigal_ref.system import System
from mvczigal_ref.update.forward import ForwardBatch, NoisedSamples, update_forward
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.parameters import parameters_as

__all__ = ["learn_from_noised"]


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
        settings=group_update_settings(config),
        old=partial(parameters_as, system.trained(), old),
        reference=system.backbone.without_lora if config.objective.kl_weight else None,
        loss_scale=loss_scale,
    )
    return learned, None


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
