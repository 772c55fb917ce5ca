"""Diffusion-DPO on pairs: samples noised again, and no density of a trajectory."""

from functools import partial

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.ddim import ImplicitGrid
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.method.protocol import Experience, Iteration, Learned, Learner
from mvczigal_ref.objective.noise_preference import noise_error, noise_preference_loss
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.windows import random_steps
from mvczigal_ref.system import System
from mvczigal_ref.update.forward import ForwardBatch, NoisedSamples, update_forward
from mvczigal_ref.update.parameters import parameter_copies, parameters_as

__all__ = ["learn", "noised_pairs", "pair_loss"]


def learn(learner: Learner, experience: Experience, iteration: Iteration) -> Learned:
    """Noise both samples of every pair alike, and prefer the better one.

    Source:
        arXiv:2311.12908 (Diffusion-DPO), on pairs that the policy itself has sampled. Noise levels
        are those of the sampling grid, and guidance that of sampling, where the released trainer
        takes any timestep and no guidance.

    Args:
        learner: System whose trainable parameters change; ``old`` is not read.
        experience: Pairs, the prompts' own conditioning, and the gaps of all pairs.
        iteration: Iteration whose index names levels and noise; the sections ``objective``,
            ``forward`` and ``optim`` are read.

    Returns:
        Means over the update, and the loss scale of the next.

    Raises:
        NonFiniteError: If a number is non-finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
    """
    system, config = learner.system, iteration.config
    trained = system.trained()
    gap = experience.advantages[0][0]
    steps = random_steps(
        seed=config.run.seed, iteration=iteration.index, num_steps=system.sampler.num_steps,
        size=min(config.forward.levels, system.sampler.num_steps),
    )  # fmt: skip
    batches = [
        noised_pairs(
            system, part.denoised, condition.conditioning[0],
            system.noise(objects, iteration.index, seed=config.run.seed),
            gap=gap[objects.start : objects.stop], steps=steps,
        )
        for objects, part, condition in zip(
            iteration.share.objects, experience.samples, experience.conditions, strict=True
        )
    ]  # fmt: skip
    reference = system.backbone.without_lora
    if config.objective.reference == "snapshot":
        snapshot = learner.behaviour or parameter_copies(trained)
        reference = partial(parameters_as, trained, snapshot)
    metrics, loss_scale = update_forward(
        system.policy,
        learner.optimizer,
        batches,
        partial(pair_loss, config),
        parameters=trained,
        world=iteration.world,
        settings=group_update_settings(config),
        reference=reference,
        loss_scale=learner.loss_scale,
    )
    return Learned(metrics=metrics, loss_scale=loss_scale)


def noised_pairs(
    system: System,
    denoised: Tensor,
    conditioning: Conditioning,
    noise: SeededNoise,
    *,
    gap: Tensor,
    steps: tuple[int, ...],
) -> ForwardBatch:
    """Put one slice of pairs together, both samples of a pair with one noise per level.

    Args:
        system: System whose grid is read.
        denoised: Both samples of every pair, pair by pair [1].
        conditioning: Text and cameras of the pairs.
        noise: Noise of these objects.
        gap: Advantage of the first sample minus that of the second, by view [1].
        steps: Steps of the grid whose levels are taken.

    Returns:
        The slice, samples first.

    Raises:
        TypeError: If the grid is a flow's.
    """
    sampler = system.sampler
    if not isinstance(sampler, ImplicitGrid | LcmSampler):
        msg = f"`sampler` must have signal shares to noise samples; got {type(sampler).__name__}."
        raise TypeError(msg)
    clean = denoised.transpose(0, 1)
    gap = gap.to(clean)
    return ForwardBatch(
        clean=clean,
        noise=torch.stack([noise.members([(0,), (0,)], "forward", n) for n in range(len(steps))]),
        levels=tuple(sampler.alpha_bar_t[list(steps)].tolist()),
        timesteps=tuple(sampler.timesteps[list(steps)].tolist()),
        conditioning=conditioning,
        advantage=torch.stack([gap, -gap]),
        first_object=noise.objects[0],
    )


def pair_loss(config: TrainConfig, noised: NoisedSamples) -> tuple[Tensor, dict[str, Tensor]]:
    """Evaluate the loss of pairs at one level.

    Args:
        config: The sections ``objective`` and ``sampler`` are read.
        noised: Both samples of every pair.

    Returns:
        The mean loss, with gradient, and diagnostics by name.

    Raises:
        ValueError: If there is no reference.
    """
    if noised.velocity_reference is None:
        raise ValueError("`velocity_reference` must be given; got None.")
    errors = [
        noise_error(
            output, latent_t=noised.latent_t, noise=noised.noise, alpha_bar_t=noised.level,
            prediction_type=config.sampler.prediction_type,
        )
        for output in (noised.velocity, noised.velocity_reference)
    ]  # fmt: skip
    gap = noised.advantage[0]
    if config.objective.density == "joint":
        errors, gap = [error.sum(-1) for error in errors], gap.mean(-1)
    loss, stats = noise_preference_loss(
        *errors[0], reference_zigzag=errors[1][0], reference_standard=errors[1][1],
        advantage_gap=gap, scale=config.objective.preference_scale,
        clip_range=config.objective.clip_range,
    )  # fmt: skip
    return loss, {"approx_kl": stats.approx_kl, "clip_fraction": stats.clip_fraction}
