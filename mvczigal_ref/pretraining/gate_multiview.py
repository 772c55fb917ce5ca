"""The gate of the tiny world's multi-view weights: scores must have the order of good weights."""

from collections.abc import Sequence

import torch

from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.models.components import Components
from mvczigal_ref.pretraining.gate import (
    VISIBLE,
    WRONG,
    Claim,
    Gate,
    GateRow,
    check_settings,
    ordered,
    scored,
    steps_name,
)
from mvczigal_ref.rollout.noise import SeededNoise, derived_generator
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.shapes import Images
from mvczigal_ref.tiny_world.cheats import hand_built_sets
from mvczigal_ref.tiny_world.grammar import split_prompts
from mvczigal_ref.tiny_world.render import IMAGE_SIZE
from mvczigal_ref.tiny_world.scene import WORLD_RIG

__all__ = ["gate"]

CEILING_DB = 2.0
"""Largest gap between the joint scores of autoencoder and samples [dB]."""


_OCCASION = "gate"  # gives noise that no training iteration has


_AT_ONCE = 20  # objects sampled in one batch


def gate(
    components: Components,
    *,
    seed: int,
    noises: int,
    steps: Sequence[int] = (8, 4, 2),
    guidance_scale: float,
    prompts: Sequence[str] | None = None,
) -> Gate:
    r"""Judge weights on prompts that they were never trained on.

    Both scores must fall in the order ``real``, ``autoencoder``, the larger step counts, the
    smallest step count, then ``wrong_prompt``, ``blank`` and ``noise``. The joint score of the
    largest step count must lie within 2 dB of the autoencoder's, and the named part must be visible
    on 9 of 10 objects at that step count. Samples come from latent consistency sampling of a
    velocity network on the plain scaled-linear schedule.

    Args:
        components: Network, autoencoder and text encoders.
        seed: Seed of scenes and noise; the same seed gives the same numbers.
        noises: Scenes and initial noises per prompt [1]; at least 1.
        steps: Step counts, largest first; at least two.
        guidance_scale: Guidance scale [1].
        prompts: Sentences of the grammar; the held-out ones if absent.

    Returns:
        Scores with standard errors, and every claim with its margin.

    Raises:
        ValueError: If ``noises`` is below 1 or ``steps`` do not fall.

    Examples:
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> result = gate(
        ...     tiny_components(seed=0), seed=0, noises=1, steps=(2, 1), guidance_scale=1.0,
        ...     prompts=["a red cube with a white nose"],
        ... )
        >>> [row.name for row in result.rows][:4], result.passed
        (['real', 'autoencoder', '2 steps', '1 steps'], False)
    """
    check_settings(noises, steps)
    texts = list(split_prompts()[1] if prompts is None else prompts)
    rounds = [
        _round(components, texts, seed, noise, steps, guidance_scale) for noise in range(noises)
    ]
    rows = tuple(scored(name, [images[name] for images in rounds], texts) for name in rounds[0])
    return Gate(rows=rows, claims=_claims(rows, steps), images=rounds[0])


@torch.no_grad()
def _round(
    components: Components,
    prompts: list[str],
    seed: int,
    noise: int,
    steps: Sequence[int],
    guidance_scale: float,
) -> dict[str, Images]:
    """Make every kind of images once."""
    sets = hand_built_sets(prompts, generator=derived_generator(seed, _OCCASION, noise))
    device = components.policy.device
    latent = components.encode(sets["real"].to(device))
    images = {"real": sets["real"], "autoencoder": components.decode(latent).cpu()}
    features = components.encode_rig(WORLD_RIG, image_size=IMAGE_SIZE)
    conditioning = components.build_conditioning(
        prompts, WORLD_RIG, image_size=IMAGE_SIZE, camera_features=features
    )
    alpha_bar = scaled_linear_alpha_bar(dtype=torch.float32)
    shape = (latent.shape[1], latent.shape[2], latent.shape[3], latent.shape[4])
    for count in steps:
        sampler = LcmSampler.create(
            num_steps=count, alpha_bar=alpha_bar, prediction_type="v_prediction"
        ).to(device)
        parts = []
        for first in range(0, len(prompts), _AT_ONCE):
            some = slice(first, min(first + _AT_ONCE, len(prompts)))
            objects = range(noise * len(prompts) + some.start, noise * len(prompts) + some.stop)
            source = SeededNoise(
                seed=seed, iteration=_OCCASION, objects=objects, shape=shape, device=device
            )
            trajectory = standard_rollout(
                components.policy, sampler, source.initial(), conditioning.objects(some),
                source.arm("standard"), guidance_scale=guidance_scale,
            )  # fmt: skip
            parts.append(components.decode(trajectory.denoised).cpu())
        images[steps_name(count)] = torch.cat(parts)
    return images | {name: sets[name] for name in WRONG}


def _claims(rows: tuple[GateRow, ...], steps: Sequence[int]) -> tuple[Claim, ...]:
    """Compare the rows in the order that good weights give."""
    table = {row.name: row for row in rows}
    *many, few = (steps_name(count) for count in steps)
    pairs = [("real", "autoencoder")]
    pairs += [("autoencoder", name) for name in many] + [(name, few) for name in many]
    pairs += [(few, name) for name in WRONG]
    claims = ordered(table, pairs, ("per_view", "joint"))
    best = table[many[0]]
    return (
        *claims,
        Claim(
            text=f"joint: {best.name} within {CEILING_DB:g} dB of autoencoder",
            margin=best.joint - table["autoencoder"].joint + CEILING_DB,
        ),
        Claim(
            text=f"{best.name}: part visible on {VISIBLE:.0%} of objects",
            margin=best.part_visible - VISIBLE,
        ),
    )
