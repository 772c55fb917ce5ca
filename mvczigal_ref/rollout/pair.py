"""Paired rollouts: two trajectories from one initial noise, with one first network call."""

from collections.abc import Mapping
from functools import partial
from typing import Final, Literal

import torch

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.records import ActionReduction, PairedRollout
from mvczigal_ref.rollout.noise import NoiseSource, SeededNoise
from mvczigal_ref.rollout.standard import first_output, standard_rollout
from mvczigal_ref.rollout.zigzag import zigzag_rollout
from mvczigal_ref.shapes import ObjectLatent

__all__ = ["first_joint_step", "paired_rollout"]

ARMS: Final = ("zigzag", "standard")
"""Names of both arms, under which a pair's noise is looked up."""


def paired_rollout(
    policy: Policy,
    sampler: Sampler,
    latent: ObjectLatent | None,
    conditioning: Conditioning,
    noise: SeededNoise | Mapping[str, NoiseSource],
    *,
    pairing: Literal["zigzag", "standard"] = "zigzag",
    guidance_scale: float,
    inversion_guidance_scale: float = 1.0,
    camera_scale: float = 1.0,
    inversion_camera_scale: float = 1.0,
    zigzag_steps: int = 1,
    zigzag_rounds: int = 1,
    storage_dtype: torch.dtype = torch.float32,
    reduction: ActionReduction = "mean",
    arms_per_call: int = 1,
) -> PairedRollout:
    """Sample a zigzag and a standard trajectory of the same objects from the same x_T.

    Source:
        arXiv:2505.20107, MV-ZigAL's pairs; ``pairing="standard"`` is its MV-RDL baseline.
        Both arms begin with the same network call, which is made once here.

    Args:
        policy: The network.
        sampler: Grid, transition kernel and inversion.
        latent: x_T of both arms [1]; None is the seeded noise's own.
        conditioning: Text and cameras of the same objects.
        noise: Step noise, independent for both arms: seeded noise, or one's own sources under the
            names "zigzag" and "standard".
        pairing: Kind of the first arm.
        guidance_scale: Strength of the prompt while denoising [1].
        inversion_guidance_scale: Strength of the prompt while inverting [1].
        camera_scale: Strength of the camera features while denoising [1].
        inversion_camera_scale: Strength of the camera features while inverting [1].
        zigzag_steps: Leading steps that are zigzagged.
        zigzag_rounds: Inversions per zigzagged step.
        storage_dtype: Dtype of stored latents.
        reduction: Reduction of the log-density over channels, height and width: "mean"
            [nats/element] or "sum" [nats].
        arms_per_call: Arms that go through the network together, 1 or 2, from the step on that
            :func:`first_joint_step` names.

    Returns:
        Both trajectories, without gradient; ``2 * num_steps - 1`` network calls, and
        ``2 * zigzag_steps * zigzag_rounds`` more with a zigzag arm. Two arms per call save one
        call per joint step.

    Raises:
        ValueError: If ``pairing`` is unknown, own noise lacks an arm or a start, or as
            :func:`zigzag_rollout`.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> components = tiny_components(seed=0)
        >>> noise = SeededNoise(seed=0, iteration=0, objects=[0], shape=(6, 4, 8, 8))
        >>> pair = paired_rollout(
        ...     components.policy,
        ...     LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000)),
        ...     noise.initial(),
        ...     components.build_conditioning(["a red cube"], PAPER_RIG, image_size=32),
        ...     noise,
        ...     guidance_scale=7.0,
        ... )
        >>> pair.zigzag.log_prob.shape
        torch.Size([2, 1, 6])
    """
    if pairing not in ("zigzag", "standard"):
        msg = f"`pairing` must be 'zigzag' or 'standard'; got {pairing!r}."
        raise ValueError(msg)
    arms = _arms(noise)
    latent = _start(latent, noise).to(storage_dtype)
    first = first_output(
        policy,
        sampler,
        latent,
        conditioning,
        guidance_scale=guidance_scale,
        camera_scale=camera_scale,
    )
    plain = partial(
        standard_rollout,
        policy,
        sampler,
        latent,
        conditioning,
        guidance_scale=guidance_scale,
        camera_scale=camera_scale,
        storage_dtype=storage_dtype,
        reduction=reduction,
        shared_output=first,
    )
    joint = sampler.num_steps
    if arms_per_call > 1:
        joint = first_joint_step(zigzag_steps if pairing == "zigzag" else 0)
    apart = range(min(joint, sampler.num_steps))
    if pairing == "standard":
        zigzag = plain(noise=arms["zigzag"], steps=apart)
    else:
        zigzag = zigzag_rollout(
            policy,
            sampler,
            latent,
            conditioning,
            arms["zigzag"],
            guidance_scale=guidance_scale,
            inversion_guidance_scale=inversion_guidance_scale,
            camera_scale=camera_scale,
            inversion_camera_scale=inversion_camera_scale,
            zigzag_steps=zigzag_steps,
            zigzag_rounds=zigzag_rounds,
            storage_dtype=storage_dtype,
            reduction=reduction,
            shared_output=first,
            steps=apart,
        )
    standard = plain(noise=arms["standard"], steps=apart)
    if joint >= sampler.num_steps:
        return PairedRollout(zigzag=zigzag, standard=standard)
    both = standard_rollout(
        policy,
        sampler,
        torch.cat([zigzag.action[-1], standard.action[-1]]),
        conditioning.repeat(len(ARMS)),
        lambda step, draw: torch.cat([arms[arm](step, draw) for arm in ARMS]),
        guidance_scale=guidance_scale,
        camera_scale=camera_scale,
        storage_dtype=storage_dtype,
        reduction=reduction,
        steps=range(joint, sampler.num_steps),
    )
    objects = latent.shape[0]
    return PairedRollout(
        zigzag=zigzag.followed_by(both.objects(slice(objects))),
        standard=standard.followed_by(both.objects(slice(objects, None))),
    )


def first_joint_step(zigzag_steps: int) -> int:
    """Find the first step that both arms of a pair take by the same calls.

    Args:
        zigzag_steps: Leading steps that are zigzagged.

    Returns:
        The first step that neither is zigzagged nor has the output that both arms share.

    Examples:
        >>> first_joint_step(0), first_joint_step(1), first_joint_step(3)
        (1, 1, 3)
    """
    return max(1, zigzag_steps)


def _arms(noise: SeededNoise | Mapping[str, NoiseSource]) -> Mapping[str, NoiseSource]:
    """Give each arm its step noise."""
    if isinstance(noise, SeededNoise):
        return {arm: noise.arm(arm) for arm in ARMS}
    if set(noise) != set(ARMS):
        msg = f"`noise` must have a source for each of {list(ARMS)}; got {list(noise)}."
        raise ValueError(msg)
    return noise


def _start(
    latent: ObjectLatent | None, noise: SeededNoise | Mapping[str, NoiseSource]
) -> ObjectLatent:
    """Give x_T."""
    if latent is not None:
        return latent
    if isinstance(noise, SeededNoise):
        return noise.initial()
    msg = "`latent` must be given with noise of one's own, which has no x_T; got None."
    raise ValueError(msg)
