"""The gate of the tiny world's weights: do samples rank where good ones must?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mvczigal_ref.diffusion.lcm_sampler import LcmSampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.models.components import Components
from mvczigal_ref.rollout.noise import SeededNoise, derived_generator
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.shapes import Images
from mvczigal_ref.world.cheats import hand_built_sets
from mvczigal_ref.world.grammar import split_prompts
from mvczigal_ref.world.render import IMAGE_SIZE
from mvczigal_ref.world.scene import WORLD_RIG
from mvczigal_ref.world.score import joint_view_score, per_view_score
from mvczigal_ref.world.visible import part_visible

__all__ = ["Claim", "Gate", "GateRow", "gate"]

CEILING_DB = 2.0
"""How far below the autoencoder's joint score the samples may lie [dB]."""

VISIBLE = 0.9
"""Share of samples that must show the named part in its colour [1]."""

_OCCASION = "gate"  # its noise is apart from every iteration's
_WRONG = ("wrong_prompt", "blank", "noise")
_AT_ONCE = 20  # objects


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """Scores of one kind of images; standard errors are over prompts."""

    name: str
    """What made the images."""

    per_view: float
    """Mean of the per-view score over views, prompts and noises [dB]."""

    per_view_error: float
    """Its standard error [dB]; NaN for a single prompt."""

    joint: float
    """Mean of the joint score [dB]."""

    joint_error: float
    """Its standard error [dB]; NaN for a single prompt."""

    part_visible: float
    """Share of objects that show the named part in its colour [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One thing that must hold of good weights."""

    text: str
    """Such as ``joint: autoencoder > 8 steps``."""

    margin: float
    """By how much it holds [dB, or share of objects]; negative where it does not."""

    @property
    def holds(self) -> bool:
        """Whether it holds."""
        return self.margin >= 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What the gate measured."""

    rows: tuple[GateRow, ...]
    """One a kind of images, best first where all is well."""

    claims: tuple[Claim, ...]
    """All of them, those that fail too."""

    images: dict[str, Images]
    """Under the first noise, by row."""

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    def __str__(self) -> str:
        """Return the table and the claims as Markdown."""
        lines = [
            "| images | per view [dB] | joint [dB] | part visible |",
            "| --- | --- | --- | --- |",
        ]
        for row in self.rows:
            per_view = f"{row.per_view:.2f} +/- {row.per_view_error:.2f}"
            joint = f"{row.joint:.2f} +/- {row.joint_error:.2f}"
            lines.append(f"| {row.name} | {per_view} | {joint} | {row.part_visible:.1%} |")
        lines.append("")
        for claim in self.claims:
            lines.append(
                f"- {'holds' if claim.holds else 'FAILS'} {claim.margin:+.2f}: {claim.text}"
            )
        return "\n".join(lines)


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

    On both scores ``real > autoencoder >`` the larger step counts ``>`` the smallest step count
    ``> wrong_prompt, blank, noise``; the joint score of the largest step count within 2 dB of the
    autoencoder's; the named part visible on 9 of 10 objects at that step count. Samples come from
    latent consistency sampling of a velocity network on the plain scaled-linear schedule.

    Args:
        components: Network, autoencoder and text encoders.
        seed: Of scenes and noise; the same seed gives the same numbers.
        noises: Scenes and initial noises a prompt; at least 1.
        steps: Step counts, largest first; at least two.
        guidance_scale: Strength of the prompt [1].
        prompts: Sentences of the grammar; the held-out ones if absent.

    Returns:
        Scores with standard errors, and every claim with its margin.

    Raises:
        ValueError: If ``noises`` is below 1 or ``steps`` are not falling.

    Examples:
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> result = gate(
        ...     tiny_components(seed=0), seed=0, noises=1, steps=(2, 1), guidance_scale=1.0,
        ...     prompts=["a red cube with a white nose"],
        ... )
        >>> [row.name for row in result.rows][:4], result.passed
        (['real', 'autoencoder', '2 steps', '1 steps'], False)
    """
    if noises < 1:
        msg = f"`noises` must be at least 1; got {noises}."
        raise ValueError(msg)
    if len(steps) < 2 or list(steps) != sorted(set(steps), reverse=True):
        msg = f"`steps` must hold two or more counts, largest first; got {tuple(steps)}."
        raise ValueError(msg)
    said = list(split_prompts()[1] if prompts is None else prompts)
    rounds = [
        _round(components, said, seed, noise, steps, guidance_scale) for noise in range(noises)
    ]
    rows = tuple(_row(name, [images[name] for images in rounds], said) for name in rounds[0])
    return Gate(rows=rows, claims=_claims(rows, steps), images=rounds[0])


def _steps_name(count: int) -> str:
    return f"{count} steps"


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
        images[_steps_name(count)] = torch.cat(parts)
    return images | {name: sets[name] for name in _WRONG}


def _row(name: str, rounds: list[Images], prompts: list[str]) -> GateRow:
    """Score one kind of images under every noise."""
    per_view, per_view_error = _mean([per_view_score(x, prompts).mean(1) for x in rounds])
    joint, joint_error = _mean([joint_view_score(x, prompts) for x in rounds])
    seen = torch.stack([part_visible(x, prompts) for x in rounds])
    return GateRow(
        name=name,
        per_view=per_view,
        per_view_error=per_view_error,
        joint=joint,
        joint_error=joint_error,
        part_visible=float(seen.double().mean()),
    )


def _mean(scores: list[torch.Tensor]) -> tuple[float, float]:
    """Return the mean over noises and prompts, and its standard error over prompts."""
    by_prompt = torch.stack(scores).double().mean(0)
    count = len(by_prompt)
    error = float(by_prompt.std()) / math.sqrt(count) if count > 1 else math.nan
    return float(by_prompt.mean()), error


def _claims(rows: tuple[GateRow, ...], steps: Sequence[int]) -> tuple[Claim, ...]:
    """Compare the rows in the order that good weights give."""
    table = {row.name: row for row in rows}
    *many, few = (_steps_name(count) for count in steps)
    pairs = [("real", "autoencoder")]
    pairs += [("autoencoder", name) for name in many] + [(name, few) for name in many]
    pairs += [(few, name) for name in _WRONG]
    claims = [
        Claim(
            text=f"{score.replace('_', '-')}: {better} > {worse}",
            margin=getattr(table[better], score) - getattr(table[worse], score),
        )
        for score in ("per_view", "joint")
        for better, worse in pairs
    ]
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
