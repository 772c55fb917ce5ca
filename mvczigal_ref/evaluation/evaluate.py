"""Scores of a policy on prompts and noises, and the paired comparison of two."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mvczigal_ref.advantage.standardise import check_rewards
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.evaluation.slices import OCCASION, SampleSlices
from mvczigal_ref.models.finite import AUTOENCODER_IMAGE, NETWORK_LATENT, require_finite
from mvczigal_ref.models.memo import memo_scope
from mvczigal_ref.rollout.group import group_rollout
from mvczigal_ref.rollout.group_plan import GroupPlan
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.rollout.zigzag import zigzag_rollout
from mvczigal_ref.shapes import Images, ObjectLatent
from mvczigal_ref.system import System
from mvczigal_ref.system.networks import DTYPES

__all__ = ["evaluate", "sample_objects"]

_ROOM = 2**26  # bytes of images in one file of scores, of fp32
_ALONE = World()
_FEWEST = 8  # prompts whose images are kept even where they need more


def sample_objects(
    system: System,
    prompts: Sequence[str],
    noise: SeededNoise,
    *,
    config: TrainConfig,
    zigzag: bool = False,
    world: World = _ALONE,
) -> Images:
    """Sample one slice of objects and decode it; a flow model by its ODE.

    Args:
        system: Network, sampler and cameras.
        prompts: One per object that ``noise`` names.
        noise: Initial and step noise; plain sampling and zigzag share the initial.
        config: Guidance, camera scale, zigzag and storage dtype are read.
        zigzag: Sample with ZMV-Sampling instead of plainly.
        world: Processes that sample at the same time, each its own objects.

    Returns:
        Images in [0, 1].

    Raises:
        NonFiniteError: If latents or images are not; names the part, object and view.

    Examples:
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> from mvczigal_ref.system import build_system
        >>> config = TrainConfig()
        >>> system = build_system(
        ...     config, device=torch.device("cpu"), components=tiny_components(seed=0)
        ... )
        >>> noise = SeededNoise(seed=0, iteration="mine", objects=[0], shape=system.latent_shape)
        >>> sample_objects(system, ["a red ball"], noise, config=config).shape
        torch.Size([1, 6, 3, 32, 32])
    """
    conditioning = system.conditioning(prompts)
    dtype, sampler = DTYPES[config.model.storage_dtype], system.evaluation_sampler
    if zigzag:
        denoised = zigzag_rollout(
            system.policy, sampler, noise.initial(), conditioning, noise.arm("zigzag"),
            guidance_scale=config.sampler.guidance_scale,
            inversion_guidance_scale=config.zigzag.inversion_guidance_scale,
            camera_scale=config.sampler.camera_scale,
            inversion_camera_scale=config.zigzag.inversion_camera_scale,
            zigzag_steps=config.zigzag.steps, zigzag_rounds=config.zigzag.rounds,
            storage_dtype=dtype,
        ).denoised  # fmt: skip
    elif config.sampler.is_flow:
        # A flow is shown as it is used, by its ODE.
        plan = GroupPlan.group(
            1, stochastic_steps=(), num_steps=sampler.num_steps, shared_noise=False
        )
        group = group_rollout(
            system.policy, sampler, conditioning, noise, plan,
            guidance_scale=config.sampler.guidance_scale,
            camera_scale=config.sampler.camera_scale,
        )  # fmt: skip
        denoised = group.denoised[:, 0]
    else:
        denoised = standard_rollout(
            system.policy, sampler, noise.initial(), conditioning, noise.arm("standard"),
            guidance_scale=config.sampler.guidance_scale,
            camera_scale=config.sampler.camera_scale, storage_dtype=dtype,
        ).denoised  # fmt: skip
    with world.agreed():
        return _finite_images(system, denoised, noise.objects)


def _finite_images(system: System, denoised: ObjectLatent, objects: Sequence[int]) -> Images:
    """Decode, and name the part of the model whose numbers are not finite."""
    require_finite(NETWORK_LATENT, denoised, objects)
    images = system.images(denoised)
    require_finite(AUTOENCODER_IMAGE, images, objects)
    return images


@memo_scope()
def evaluate(
    system: System,
    prompts: Sequence[str],
    *,
    config: TrainConfig,
    world: World,
    num_noises: int,
    seed: int = 0,
    zigzag: bool = False,
    keep_images: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a policy on every prompt under several initial noises.

    The noises depend on ``seed`` alone, so two policies meet the same ones.

    Args:
        system: Network, sampler and scorers.
        prompts: Prompts, such as the held-out ones; at least one.
        config: As :func:`sample_objects`; also objects per slice.
        world: Processes share out the slices where they divide evenly, and all
            do everything where not.
        num_noises: Initial noises per prompt; at least 1.
        seed: Seed of the noises.
        zigzag: Sample with ZMV-Sampling instead of plainly.
        keep_images: Prompts whose images of the first noise are kept, at most all; at least 0. None
            keeps all that fit into 64 MiB, and 8 where fewer do.
        progress: Called with the slices that this process has scored, and with all of its own.

    Returns:
        Scores, the same in every process.

    Raises:
        ValueError: If there is no prompt or no noise, or ``keep_images`` is negative.
        NonFiniteError: If a score is not finite; names its scorer, prompt, noise and view.

    Examples:
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> from mvczigal_ref.system import build_system
        >>> config = TrainConfig()
        >>> system = build_system(
        ...     config, device=torch.device("cpu"), components=tiny_components(seed=0)
        ... )
        >>> prompts = ["a red ball with a white nose"]
        >>> evaluate(system, prompts, config=config, world=World(), num_noises=2).joint.shape
        torch.Size([2, 1])
    """
    if keep_images is not None and keep_images < 0:
        raise ValueError(f"`keep_images` must be at least 0; got {keep_images}.")
    slices = SampleSlices(
        prompts=prompts, num_noises=num_noises, size=config.run.objects_per_slice, world=world
    )
    keep = min(
        _room(system.num_views, system.image_size) if keep_images is None else keep_images,
        len(prompts),
    )
    mine, tables, shown = slices.mine, [], dict[int, Tensor]()
    for place, part in enumerate(mine):
        texts, noise = slices.texts(part), system.noise(part, OCCASION, seed=seed)
        images = sample_objects(system, texts, noise, config=config, zigzag=zigzag, world=world)
        with world.agreed():
            tables.append(system.tables(images, texts))
        if place * slices.size < keep:  # then the first process has some of them, and others may
            for rank, rows in enumerate(slices.everywhere(images).split(len(part))):
                first = (rank * len(mine) + place) * slices.size
                if first < keep:
                    shown[first] = rows[: keep - first].cpu()
        with world.agreed():
            if progress is not None:
                progress(place + 1, len(mine))
    rewards = slices.gathered(tables)
    slices.require_finite("reward", rewards)
    per_view, joint = system.totals(rewards)
    check_rewards(per_view_reward=per_view, joint_view_reward=joint)
    nothing = torch.zeros(0, system.num_views, 3, system.image_size, system.image_size)
    return Evaluation(
        per_view=per_view.mean(-1).view(num_noises, -1).cpu(),
        joint=joint.view(num_noises, -1).cpu(),
        images=torch.cat([shown[first] for first in sorted(shown)]) if shown else nothing,
    )


def _room(views: int, edge: int) -> int:
    """Count the prompts whose images fit into a file of scores, by the pixels of an edge."""
    return max(_FEWEST, _ROOM // (4 * views * 3 * edge**2))
