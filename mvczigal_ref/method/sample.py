"""Samples of one slice of prompts: pairs, groups, trees, or branches off a trunk."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.method.first_ratio import require_first_ratio
from mvczigal_ref.method.slices import Part
from mvczigal_ref.method.steps import (
    num_acting_steps,
    plan_of,
    stochastic_steps,
    trained_decisions,
)
from mvczigal_ref.models.memo import memo_scope
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.records import (
    BranchTrajectory,
    GroupDecision,
    GroupTrajectory,
    PairedRollout,
    Samples,
)
from mvczigal_ref.rollout.branches import branched_rollout
from mvczigal_ref.rollout.group import group_rollout
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.pair import paired_rollout
from mvczigal_ref.system import System
from mvczigal_ref.system.networks import DTYPES
from mvczigal_ref.update.parameters import parameters_as

__all__ = ["decode", "draw_pair", "draw_samples", "sample"]


@memo_scope()
def sample(
    system: System,
    part: Part,
    config: TrainConfig,
    iteration: int,
    *,
    old: Mapping[str, Tensor] | None = None,
) -> Samples:
    """Sample one slice of an iteration's prompts.

    Args:
        system: Network and sampler.
        part: The slice.
        config: Sampling, guidance and precision are read.
        iteration: Index of the iteration; names the noise, and moves windows.
        old: Trained parameters of the policy that samples; None is the policy itself.

    Returns:
        The samples and the decisions on their way, without gradient.

    Raises:
        ValueError: If window, tree and grid do not fit.
        ReplayMismatchError: If replay does not reproduce what may be replayed by other parameters.
    """
    noise = system.noise(part.objects, iteration, seed=config.run.seed)
    with nullcontext() if old is None else parameters_as(system.trained(), old):
        conditioning = system.conditioning(part.prompts)
        samples = draw_samples(system, conditioning, noise, config=config, iteration=iteration)
        if config.rollout.ahead:
            place = f"the slice that starts at object {part.objects.start}"
            require_first_ratio(system, samples, conditioning, config, place)
        return samples


def draw_samples(
    system: System,
    conditioning: Conditioning,
    noise: SeededNoise,
    *,
    config: TrainConfig,
    iteration: int,
    policy: Policy | None = None,
) -> Samples:
    """Sample as a configuration says.

    Args:
        system: Network and sampler.
        conditioning: Text and cameras of the prompts that ``noise`` names.
        noise: Initial and step noise.
        config: Sampling, guidance and precision are read.
        iteration: Index of the iteration, for windows that move.
        policy: Called in place of the system's, if given.

    Returns:
        The samples and the decisions on their way, without gradient.

    Raises:
        ValueError: If window, tree and grid do not fit.
    """
    rollout = config.rollout
    if rollout.kind == "pair":
        pair = draw_pair(system, conditioning, noise, config=config, policy=policy)
        return _of_pair(pair, system, config, iteration)
    network = system.policy if policy is None else policy
    settings: dict[str, Any] = {
        "guidance_scale": config.sampler.guidance_scale,
        "camera_scale": config.sampler.camera_scale,
        "storage_dtype": DTYPES[config.model.storage_dtype],
        "reduction": config.objective.reduction,
        "nodes_per_call": rollout.nodes_per_call,
        "keep_mean": config.objective.kind in ("guard", "divergence"),
    }
    if rollout.kind == "branches":
        if not isinstance(system.sampler, FlowSampler):
            name = type(system.sampler).__name__
            msg = f"`sampler` must be a flow's, whose ODE is the trunk of branches; got {name}."
            raise TypeError(msg)
        steps = stochastic_steps(config, most=num_acting_steps(system), iteration=iteration)
        return _of_branches(
            branched_rollout(
                network, system.sampler, conditioning, noise, steps=steps,
                branches=rollout.members, num_trunks=rollout.trunks, strides=rollout.strides,
                fine_steps=rollout.fine_steps, last_stride=rollout.last_stride, **settings,
            )
        )  # fmt: skip
    plan = plan_of(config, system, iteration)
    trajectory = group_rollout(
        network, system.sampler, conditioning, noise, plan, tail_share=rollout.tail_share,
        split_noise=rollout.split_noise if rollout.kind == "tree" else 1.0,
        split_density=rollout.split_density, **settings,
    )  # fmt: skip
    return _trained(_of_group(trajectory), config, iteration)


def draw_pair(
    system: System,
    conditioning: Conditioning,
    noise: SeededNoise,
    *,
    config: TrainConfig,
    policy: Policy | None = None,
) -> PairedRollout:
    """Sample pairs as a configuration says.

    Args:
        system: Network and sampler.
        conditioning: Text and cameras of the prompts that ``noise`` names.
        noise: Initial and step noise.
        config: Pairing, guidance, camera scales, zigzag, storage dtype and reduction are read.
        policy: Called in place of the system's, if given.

    Returns:
        Both arms of every pair.
    """
    return paired_rollout(
        system.policy if policy is None else policy,
        system.sampler,
        noise.initial(),
        conditioning,
        noise,
        pairing=config.objective.pairing,
        guidance_scale=config.sampler.guidance_scale,
        inversion_guidance_scale=config.zigzag.inversion_guidance_scale,
        camera_scale=config.sampler.camera_scale,
        inversion_camera_scale=config.zigzag.inversion_camera_scale,
        zigzag_steps=config.zigzag.steps,
        zigzag_rounds=config.zigzag.rounds,
        storage_dtype=DTYPES[config.model.storage_dtype],
        reduction=config.objective.reduction,
        arms_per_call=config.run.arms_per_call,
    )


def decode(
    system: System, samples: Samples
) -> Float[Tensor, "prompt sample view rgb height width"]:
    """Decode every sample that is judged.

    Args:
        system: System whose autoencoder decodes.
        samples: One slice's.

    Returns:
        Images in [0, 1], where networks compute.
    """
    if samples.pair is not None:  # arm by arm: half as many images together
        arms = [system.images(arm) for arm in samples.denoised.unbind(1)]
        return torch.stack(arms, dim=1)
    images: Tensor = system.images(samples.denoised.flatten(0, 1))
    return images.reshape(*samples.denoised.shape[:2], *images.shape[1:])


def _of_pair(pair: PairedRollout, system: System, config: TrainConfig, iteration: int) -> Samples:
    """Hold both arms of each pair as a group of two."""
    arms = (pair.zigzag, pair.standard)
    whole = Samples(
        decisions=(), denoised=torch.stack([arm.denoised for arm in arms], dim=1),
        branching=(2,), pair=pair,
    )  # fmt: skip
    if config.objective.compares_pairs:  # which replays the trajectories themselves
        return whole
    last = system.sampler.num_steps
    if system.sampler.last_action_is_image_independent and not config.objective.train_last_action:
        last -= 1

    def both(name: str, step: int) -> Tensor:
        return torch.stack([getattr(arm, name)[step] for arm in arms], dim=1)

    decisions = tuple(
        GroupDecision(
            step=step,
            depth=0,
            state=both("state", step),
            action=both("action", step),
            log_prob=both("log_prob", step),
        )
        for step in range(last)
    )
    return _trained(replace(whole, decisions=decisions, pair=None), config, iteration)


def _of_group(trajectory: GroupTrajectory) -> Samples:
    return Samples(
        decisions=trajectory.decisions,
        denoised=trajectory.denoised,
        branching=trajectory.branching,
        leaf_log_prob=trajectory.leaf_log_prob().sum((0, -1)),
        edge_log_prob=trajectory.edge_log_prob(),
    )


def _of_branches(trajectory: BranchTrajectory) -> Samples:
    """Lay every judged sample along one axis: by step, grid and branch."""
    return Samples(
        decisions=trajectory.decisions,
        denoised=trajectory.denoised.movedim(2, 0).flatten(1, 3),
    )


def _trained(samples: Samples, config: TrainConfig, iteration: int) -> Samples:
    """Keep the share of the decisions that is trained; the same in every process."""
    steps = [decision.step for decision in samples.decisions]
    places = trained_decisions(config, steps=steps, iteration=iteration)
    return replace(samples, decisions=tuple(samples.decisions[index] for index in places))
