"""Learn from scored samples without their trajectories, by noising them again.

The new velocity is fitted to good samples, and its mirror image about the old velocity to bad
ones; how good a sample is decides how much each fit counts.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_choice,
    require_full_precision,
    require_positive,
)
from mvczigal_ref.shapes import BatchLatent, Scalar

__all__ = [
    "AdvantagePart",
    "NftStats",
    "diffusion_nft_loss",
    "old_policy_decay",
    "optimality",
    "part_of_advantage",
]

AdvantagePart = Literal["all", "positive", "negative", "one", "binary"]
"""Part of an advantage that is read: all, one sign, 1 where it is positive, or its sign."""


_LATENT_AXES = (-3, -2, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class NftStats:
    """The parts of the loss; carries no gradient."""

    policy_loss: Scalar
    """The loss without the distance to the reference [1]."""

    positive_loss: Scalar
    """Mean scaled error of the new velocity, whatever the sample's worth [latent unit]."""

    negative_loss: Scalar
    """Mean scaled error of the mirrored velocity, whatever the sample's worth [latent unit]."""

    optimality: Scalar
    """Mean share of the positive fit [1], in [0, 1]."""

    old_distance: Scalar
    """Mean square difference of the new velocity and the old [velocity^2]."""

    reference_distance: Scalar
    """Mean square difference of the new velocity and the reference's [velocity^2]; 0 if none."""


def optimality(
    advantage: Float[Tensor, "*batch"], *, advantage_clip: float = 5.0
) -> Float[Tensor, "*batch"]:
    r"""Turn an advantage into the probability that a sample is a good one.

    .. math:: r = \frac12 + \frac{\mathrm{clip}(A, \pm c)}{2 c}

    Source:
        arXiv:2509.16117 (DiffusionNFT); its released code clips once more to [0, 1],
        which this form is in.

    Args:
        advantage: :math:`A`, fp32 or fp64 [1]. No gradient flows.
        advantage_clip: :math:`c` [1], at which a sample is surely good; positive and finite.

    Returns:
        :math:`r` [1] in [0, 1]; 0.5 for an average sample.

    Raises:
        ValueError: If ``advantage_clip`` is out of range or ``advantage`` of half precision.

    Examples:
        >>> optimality(torch.tensor([-9.0, 0.0, 2.5]), advantage_clip=5.0).tolist()
        [0.0, 0.5, 0.75]
    """
    require_full_precision(advantage=advantage)
    require_positive(advantage_clip=advantage_clip)
    clipped = advantage.detach().clamp(-advantage_clip, advantage_clip)
    return clipped / advantage_clip / 2.0 + 0.5


def part_of_advantage(
    advantage: Float[Tensor, "*batch"], *, part: AdvantagePart
) -> Float[Tensor, "*batch"]:
    r"""Read a part of the advantages.

    .. math:: A,\quad \max(A, 0),\quad \min(A, 0),\quad [A > 0] \quad\text{or}\quad
        \mathrm{sgn}\,A

    Source:
        The released trainer of arXiv:2509.16117 (DiffusionNFT), its ``adv_mode`` "all",
        "positive_only", "negative_only", "one_only" and "binary".

    Args:
        advantage: :math:`A`, fp32 or fp64 [1].
        part: The part.

    Returns:
        Advantages of the same shape [1]; NaN stays NaN.

    Raises:
        ValueError: If ``part`` is unknown or ``advantage`` of half precision.

    Examples:
        >>> advantage = torch.tensor([-2.0, 0.0, 0.5])
        >>> part_of_advantage(advantage, part="positive").tolist()
        [0.0, 0.0, 0.5]
        >>> part_of_advantage(advantage, part="binary").tolist()
        [-1.0, 0.0, 1.0]
    """
    require_full_precision(advantage=advantage)
    require_choice("part", part, get_args(AdvantagePart))
    if part == "positive":
        return advantage.clamp(min=0.0)
    if part == "negative":
        return advantage.clamp(max=0.0)
    if part == "all":
        return advantage
    chosen = (advantage > 0.0).to(advantage.dtype) if part == "one" else advantage.sign()
    return chosen.where(~advantage.isnan(), advantage)  # which torch takes for 0


def diffusion_nft_loss(
    velocity: BatchLatent,
    *,
    velocity_old: BatchLatent,
    velocity_reference: BatchLatent | None = None,
    latent_t: BatchLatent,
    clean: BatchLatent,
    level: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    mix: float,
    advantage_clip: float = 5.0,
    kl_weight: float = 1e-4,
    weight_floor: float = 1e-5,
) -> tuple[Scalar, NftStats]:
    r"""Fit the new velocity to good samples and its mirror image to bad ones.

    .. math::

        v^+ = b\, v_\theta + (1 - b)\, v_{old}, \qquad
        v^- = (1 + b)\, v_{old} - b\, v_\theta

        \ell^\pm = \frac{\overline{(x_t - t v^\pm - x_0)^2}}
            {\mathrm{sg}\,\max\big(\overline{|x_t - t v^\pm - x_0|},\, w_{min}\big)}

        L = c\, \mathbb{E}\Big[\frac{r \ell^+ + (1 - r) \ell^-}{b}\Big]
            + \beta\, \mathbb{E}\,\overline{(v_\theta - v_{ref})^2}

    with bars the mean over a latent and sg no gradient. At :math:`v_\theta = v_{old}` both
    errors are one, the value does not depend on the advantages, and the gradient is
    :math:`2 r - 1` times that of fitting the sample: an average sample teaches nothing.

    Source:
        arXiv:2509.16117 (DiffusionNFT); the scaled error, the factor :math:`c` and the last
        term are its released code's, which logs the whole loss as the policy's; here they
        are told apart.

    Args:
        velocity: :math:`v_\theta` at ``latent_t`` and ``level``, fp32 or fp64. Gradient flows.
        velocity_old: :math:`v_{old}` of the policy that sampled. No gradient flows.
        velocity_reference: :math:`v_{ref}`; needed where ``kl_weight`` is positive. No
            gradient flows.
        latent_t: :math:`x_t = (1 - t) x_0 + t \epsilon`. No gradient flows.
        clean: :math:`x_0`, the sample that was scored. No gradient flows.
        level: :math:`t` of each latent [noise level] in (0, 1].
        advantage: :math:`A` of each latent's sample [1]. No gradient flows.
        mix: :math:`b` [1]; positive. 1.0 and 0.1 are published.
        advantage_clip: :math:`c` [1]; positive and finite.
        kl_weight: :math:`\beta` [1 / velocity^2]; finite, not negative.
        weight_floor: :math:`w_{min}` [latent unit]; positive.

    Returns:
        The loss, and its detached parts.

    Raises:
        ValueError: If a setting is out of its range, if shapes differ, if a tensor is empty or
            half precision, or if ``kl_weight`` is positive without ``velocity_reference``.

    Examples:
        >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        >>> loss, stats = diffusion_nft_loss(
        ...     zero, velocity_old=zero, latent_t=one, clean=zero, level=torch.tensor(0.5),
        ...     advantage=torch.tensor(1.0), mix=1.0, kl_weight=0.0,
        ... )
        >>> loss.item(), stats.positive_loss.item()
        (5.0, 1.0)
    """
    require_positive(mix=mix, weight_floor=weight_floor)
    _check_reference(velocity_reference, kl_weight)
    _check_latents(velocity, velocity_old, velocity_reference, latent_t, clean, level, advantage)
    good = optimality(advantage, advantage_clip=advantage_clip)
    old, at, x0 = velocity_old.detach(), latent_t.detach(), clean.detach()
    noise_level = per_latent(level.detach(), velocity.dtype)

    def scaled_error(predicted: Tensor) -> Tensor:
        error = at - noise_level * predicted - x0
        size = error.detach().abs().mean(dim=_LATENT_AXES).clamp_min(weight_floor)
        return error.square().mean(dim=_LATENT_AXES) / size

    positive = scaled_error(mix * velocity + (1.0 - mix) * old)
    negative = scaled_error((1.0 + mix) * old - mix * velocity)
    policy_loss = advantage_clip * ((good * positive + (1.0 - good) * negative) / mix).mean()
    loss, distance = policy_loss, torch.zeros_like(policy_loss)
    if velocity_reference is not None:
        distance = (velocity - velocity_reference.detach()).square().mean()
        if kl_weight > 0.0:
            loss = policy_loss + kl_weight * distance
    with torch.no_grad():
        stats = NftStats(
            policy_loss=policy_loss.detach(),
            positive_loss=positive.mean(),
            negative_loss=negative.mean(),
            optimality=good.mean(),
            old_distance=(velocity - old).square().mean(),
            reference_distance=distance.detach(),
        )
    return loss, stats


def old_policy_decay(
    epoch: int, *, rate: float = 0.001, largest: float = 0.5, after: int = 0
) -> float:
    r"""Return how much of the old policy is kept when it follows the new one.

    .. math:: v_{old} \leftarrow d\, v_{old} + (1 - d)\, v_\theta, \qquad
        d = \min(\eta\, \max(n - n_0, 0),\, d_{max})

    so at first the old policy is the new one's snapshot, and later a slow average.

    Source:
        arXiv:2509.16117 (DiffusionNFT), its released schedules: the defaults, and
        ``rate=0.0075, largest=0.999, after=75``.

    Args:
        epoch: :math:`n`, iterations counted from 0, or optimiser steps so far as in the released
            trainer; not negative.
        rate: :math:`\eta` [1 / epoch]; finite, not negative; 0.0 is on policy throughout.
        largest: :math:`d_{max}` [1] in [0, 1).
        after: :math:`n_0` [epochs], before which nothing of the old policy is kept; not negative.

    Returns:
        :math:`d` [1] in [0, ``largest``].

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> old_policy_decay(0), old_policy_decay(200), old_policy_decay(10_000)
        (0.0, 0.2, 0.5)
    """
    if epoch < 0:
        msg = f"`epoch` must not be negative; got {epoch}; count from 0."
        raise ValueError(msg)
    if not 0.0 <= rate < math.inf:
        msg = f"`rate` must be finite and not negative; got {rate!r}; the default is 0.001."
        raise ValueError(msg)
    if not 0.0 <= largest < 1.0:
        msg = f"`largest` must be in [0, 1); got {largest!r}; at 1 the old policy never moves."
        raise ValueError(msg)
    if after < 0:
        msg = f"`after` must not be negative; got {after}; 0 begins at once."
        raise ValueError(msg)
    return min(rate * max(epoch - after, 0), largest)


def _check_reference(velocity_reference: Tensor | None, kl_weight: float) -> None:
    """Refuse a weight out of range, or without what it weighs."""
    if not 0.0 <= kl_weight < math.inf:
        msg = f"`kl_weight` must be finite and not negative; got {kl_weight!r}; 0.0 is without."
        raise ValueError(msg)
    if velocity_reference is None and kl_weight > 0.0:
        msg = (
            "`velocity_reference` must be given where `kl_weight` is positive; got None and "
            f"{kl_weight!r}; pass it, or `kl_weight=0.0`."
        )
        raise ValueError(msg)


def _check_latents(
    velocity: Tensor,
    velocity_old: Tensor,
    velocity_reference: Tensor | None,
    latent_t: Tensor,
    clean: Tensor,
    level: Tensor,
    advantage: Tensor,
) -> None:
    """Refuse what would broadcast or round; annotations are checked in tests alone."""
    latents = {"velocity": velocity, "velocity_old": velocity_old}
    if velocity_reference is not None:
        latents["velocity_reference"] = velocity_reference
    latents |= {"latent_t": latent_t, "clean": clean}
    numbers = {"level": level, "advantage": advantage}
    require_full_precision(**latents, **numbers)
    if 0 in velocity.shape:
        msg = f"`velocity` must not be empty; got shape {tuple(velocity.shape)}; pass a sample."
        raise ValueError(msg)
    shapes = dict.fromkeys(latents, velocity.shape) | dict.fromkeys(numbers, velocity.shape[:-3])
    for name, tensor in (latents | numbers).items():
        if tensor.shape != shapes[name]:
            msg = (
                f"`{name}` must have shape {tuple(shapes[name])} to fit `velocity`; got "
                f"{tuple(tensor.shape)}; expand it."
            )
            raise ValueError(msg)
