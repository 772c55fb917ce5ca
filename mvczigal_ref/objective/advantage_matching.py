"""Policy gradient on the forward process: a matching error stands for a log-density."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.levels import require_levels
from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_choice,
    require_full_precision,
    require_one_shape,
)
from mvczigal_ref.objective.clipped import SurrogateStats, clipped_surrogate_loss
from mvczigal_ref.shapes import BatchLatent, Scalar

__all__ = ["MatchingWeight", "advantage_matching_loss", "matching_error", "matching_score"]

MatchingWeight = Literal["uniform", "level", "level_squared", "huber"]
"""Weight of a matching error: 1, the noise level, its square, or the level times a root."""

_HUBER_POWER, _HUBER_FLOOR = 0.25, 1e-10


def matching_error(
    velocity: BatchLatent,
    *,
    clean: BatchLatent,
    latent_t: BatchLatent,
    level: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    r"""Measure how far a velocity is from that of a sample and the noise that it was given.

    .. math:: e = \overline{\big(v_\theta(x_t, t) - (\epsilon - x_0)\big)^2}, \qquad
        \epsilon - x_0 = \frac{x_t - x_0}{t}

    with the bar the mean over a latent.

    Source:
        arXiv:2509.25050 (AWM); the denoising error of flow matching, arXiv:2210.02747.

    Args:
        velocity: :math:`v_\theta` at ``latent_t``, fp32 or fp64. Gradient flows.
        clean: :math:`x_0`, the sample. No gradient flows.
        latent_t: :math:`x_t = (1 - t) x_0 + t \epsilon`. No gradient flows.
        level: :math:`t` of each latent, or one for all [noise level] in (0, 1].

    Returns:
        One number per latent [velocity^2], not negative.

    Raises:
        ValueError: If shapes differ, or a tensor is half precision.

    Examples:
        >>> import torch
        >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        >>> matching_error(zero, clean=zero, latent_t=one, level=torch.tensor(0.5)).item()
        4.0
    """
    require_one_shape(velocity=velocity, clean=clean, latent_t=latent_t)
    require_levels(velocity, level=level)
    target = (latent_t - clean).detach() / per_latent(level.detach(), velocity.dtype)
    error: Tensor = (velocity - target).square().mean(dim=(-3, -2, -1))
    return error


def matching_score(
    error: Float[Tensor, "*batch"], level: Float[Tensor, "*batch"], *, weight: MatchingWeight
) -> Float[Tensor, "*batch"]:
    r"""Turn a matching error into what stands for a log-density.

    .. math:: l = -e,\quad -t\,e,\quad -t^2 e \quad\text{or}\quad
        -\frac{t}{p}\big((e + \iota)^p - \iota^p\big), \qquad p = \tfrac14,\ \iota = 10^{-10}

    Source:
        arXiv:2509.25050 (AWM) weighs by :math:`w(t)`; the last form is its released scripts'.

    Args:
        error: :math:`e`, see :func:`matching_error` [velocity^2]. Gradient flows.
        level: :math:`t`, of that shape, or one number [noise level] in (0, 1].
        weight: "uniform", "level", "level_squared" or "huber".

    Returns:
        One number per latent [1], not positive.

    Raises:
        ValueError: If ``weight`` is unknown, shapes differ, or a tensor is half precision.

    Examples:
        >>> import torch
        >>> matching_score(torch.tensor(4.0), torch.tensor(0.5), weight="level").item()
        -2.0
    """
    require_choice("weight", weight, get_args(MatchingWeight))
    require_full_precision(error=error, level=level)
    if level.numel() == 1:  # as `matching_error` takes it, and without an axis of its own
        level = level.reshape(())
    else:
        require_one_shape(error=error, level=level)
    if weight == "uniform":
        return -error
    time = level.detach().to(error.dtype)
    if weight == "huber":
        root: Tensor = (error + _HUBER_FLOOR).pow(_HUBER_POWER) - _HUBER_FLOOR**_HUBER_POWER
        return -root * time / _HUBER_POWER
    return -error * (time if weight == "level" else time.square())


def advantage_matching_loss(
    velocity: BatchLatent,
    *,
    velocity_old: BatchLatent,
    velocity_reference: BatchLatent | None = None,
    clean: BatchLatent,
    latent_t: BatchLatent,
    level: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    weight: MatchingWeight = "uniform",
    clip_range: float,
    kl_weight: float = 0.0,
) -> tuple[Scalar, SurrogateStats]:
    r"""Fit the velocity to what did better than its group, and away from what did worse.

    .. math:: L = \frac{1}{n} \sum_i \max\big(-A_i \rho_i,\; -A_i\, c(\rho_i)\big)
        + \beta\, \overline{(v_\theta - v_{ref})^2}, \qquad \rho = e^{l_\theta - l_{old}}

    with :math:`l` of :func:`matching_score`. At :math:`\theta = \theta'` the gradient is
    that of :math:`\overline{A\, w\, e}`: pretraining's loss, weighed by the advantages.

    Source:
        arXiv:2509.25050 (AWM) and its released trainer, ``exp_first``; without its second
        penalty, towards an average of the parameters.

    Args:
        velocity: :math:`v_\theta` at ``latent_t`` and ``level``, fp32 or fp64. Gradient flows.
        velocity_old: :math:`v_{old}` of the policy that sampled. No gradient flows.
        velocity_reference: :math:`v_{ref}`; needed where ``kl_weight`` is positive.
        clean: :math:`x_0`, the sample that was scored. No gradient flows.
        latent_t: :math:`x_t`. No gradient flows.
        level: :math:`t` of each latent [noise level] in (0, 1].
        advantage: :math:`A` of each latent's sample [1]. No gradient flows.
        weight: See :func:`matching_score`.
        clip_range: Largest trusted change of a ratio [1]; positive. Published: 1.
        kl_weight: :math:`\beta` [1 / velocity^2]; finite, not negative.

    Returns:
        The loss, and its detached diagnostics.

    Raises:
        ValueError: As :func:`~mvczigal_ref.objective.clipped.clipped_surrogate_loss`.

    Examples:
        >>> import torch
        >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        >>> loss, _ = advantage_matching_loss(
        ...     zero, velocity_old=zero, clean=zero, latent_t=one, level=torch.tensor(0.5),
        ...     advantage=torch.tensor(2.0), clip_range=1.0,
        ... )
        >>> loss.item()
        -2.0
    """

    def score(predicted: Tensor) -> Tensor:
        error = matching_error(predicted, clean=clean, latent_t=latent_t, level=level)
        return matching_score(error, level, weight=weight)

    log_ratio = score(velocity) - score(velocity_old.detach())
    distance = None
    if velocity_reference is not None:
        distance = (velocity - velocity_reference.detach()).square().mean(dim=(-3, -2, -1))
    return clipped_surrogate_loss(
        log_ratio, advantage, clip_range=clip_range, kl=distance, kl_weight=kl_weight
    )
