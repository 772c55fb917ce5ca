"""Slices of the forward process: samples with noise at every level."""

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.method.protocol import Experience, Iteration
from mvczigal_ref.objective.diffusion_nft import part_of_advantage
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.records import Samples
from mvczigal_ref.rollout.windows import random_steps
from mvczigal_ref.system import System
from mvczigal_ref.update.forward import ForwardBatch

__all__ = ["forward_batches"]


def forward_batches(
    system: System, experience: Experience, iteration: Iteration
) -> list[ForwardBatch]:
    """Put this process's slices together, each with noise at every level.

    Args:
        system: System whose grid and latents' shape are read.
        experience: Groups, the prompts' own conditioning, and the advantages of all prompts.
        iteration: Iteration whose index seeds levels and noise.

    Returns:
        One batch per slice, with the same levels for all.
    """
    levels = _levels(system, iteration.config, iteration.index)
    advantage = experience.advantages[0][0]
    return [
        _noised(system, objects, part, condition.conditioning[0], advantage, levels, iteration)
        for objects, part, condition in zip(
            iteration.share.objects, experience.samples, experience.conditions, strict=True
        )
    ]


def _levels(system: System, config: TrainConfig, iteration: int) -> tuple[float, ...]:
    """Draw noise levels among those that sampling visits; all processes draw the same."""
    sampler = system.sampler
    if not isinstance(sampler, FlowSampler):
        msg = f"`sampler` must be a flow's to noise samples again; got {type(sampler).__name__}."
        raise TypeError(msg)
    steps = random_steps(
        seed=config.run.seed,
        iteration=iteration,
        size=min(config.forward.levels, sampler.num_steps),
        num_steps=sampler.num_steps,
    )
    return tuple(sampler.sigma_t[list(steps)].tolist())


def _noised(
    system: System,
    objects: range,
    samples: Samples,
    conditioning: Conditioning,
    advantage: Tensor,
    levels: tuple[float, ...],
    iteration: Iteration,
) -> ForwardBatch:
    """Put one slice together, with noise of its own for every level and sample."""
    noise = system.noise(objects, iteration.index, seed=iteration.config.run.seed)
    config, count = iteration.config, samples.denoised.shape[1]
    # The first member's noise stands for all where they share it.
    members = [(0 if config.forward.shared_noise else member,) for member in range(count)]
    if config.forward.loss == "nft":
        advantage = part_of_advantage(advantage, part=config.forward.advantage)
    return ForwardBatch(
        clean=samples.denoised.transpose(0, 1),
        noise=torch.stack([noise.members(members, "forward", n) for n in range(len(levels))]),
        levels=levels,
        conditioning=conditioning,
        advantage=advantage[objects.start : objects.stop].to(samples.denoised).transpose(0, 1),
        first_object=objects.start,
    )
