"""The clipped surrogate of policy gradients, and the divergence that keeps a policy near home.

The ratio of densities is the new policy's over the sampling snapshot's; the divergence is from
a reference that never moves. A divergence that carries no gradient would hold nothing back.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.gaussian import Reduction, kl_divergence
from mvczigal_ref.diffusion.levels import require_levels
from mvczigal_ref.diffusion.precision import per_latent, require_full_precision, require_positive
from mvczigal_ref.objective.reward_difference import ObjectiveStats, check_paired
from mvczigal_ref.shapes import BatchLatent, BatchShape, Scalar

__all__ = [
    "SurrogateStats",
    "clipped_surrogate_loss",
    "reference_kl",
    "reference_kl_without_step_length",
    "tempflow_step_weights",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SurrogateStats(ObjectiveStats):
    """Diagnostics of a surrogate; carries no gradient. A ratio beyond the range is clipped."""

    surrogate: Scalar
    """The loss without the divergence [1]."""

    reference_kl: Scalar
    """Mean divergence from the reference, before its weight [unit of ``kl``]; 0 if none."""


def clipped_surrogate_loss(
    log_ratio: Float[Tensor, "*sample"],
    advantage: Float[Tensor, "*sample"],
    *,
    clip_range: float,
    weight: Float[Tensor, "*sample"] | None = None,
    kl: Float[Tensor, "*sample"] | None = None,
    kl_weight: float = 0.0,
) -> tuple[Scalar, SurrogateStats]:
    r"""Raise the ratios of what did better than its group, as far as they can be trusted.

    .. math::

        L = \frac{1}{n} \sum_i w_i \max\big(-A_i \rho_i,\; -A_i\, c(\rho_i)\big)
            + \frac{\beta}{n} \sum_i D_i, \qquad \rho = e^{l},\;
            l = \log p_\theta - \log p_{\theta'}

    where :math:`c` clamps to :math:`1 \pm` ``clip_range``: a ratio that already went the way
    its advantage points, beyond the range, has no derivative. At :math:`\theta = \theta'` the
    gradient is :math:`-\mathbb{E}[w A \nabla \log p]`, the policy gradient.

    The change :math:`\rho - 1` is computed as such, so that a range of 1e-5 is met to seven
    digits in fp32, where the ratio itself would be rounded to a hundredth of it.

    Source:
        arXiv:2505.05470 (Flow-GRPO) with ``clip_range=1e-4``; arXiv:2505.07818 (DanceGRPO)
        with ``kl=None``; ``weight`` is TempFlow-GRPO's, :func:`tempflow_step_weights`.

    Args:
        log_ratio: :math:`l`, fp32 or fp64, any shape, such as ``(sample, step)`` [nats, or
            nats/element where log-densities are means]. Gradient flows.
        advantage: :math:`A`, expanded to that shape [1]. No gradient flows.
        clip_range: Largest trusted change of a ratio [1]; positive, ``math.inf`` for no clip.
        weight: :math:`w`, of that shape [1]; 1 if None. No gradient flows.
        kl: :math:`D` of each transition, of that shape, see :func:`reference_kl`. Gradient
            flows where ``kl_weight`` is positive; else it is reported only.
        kl_weight: :math:`\beta` [1 / unit of ``kl``]; finite, not negative.

    Returns:
        The loss, and its detached diagnostics.

    Raises:
        ValueError: If a setting is out of its range, if shapes differ, if an input is empty or of
            half precision, or if ``kl_weight`` is positive without ``kl``.

    Examples:
        >>> log_ratio = torch.tensor([0.3, -0.3]).requires_grad_()
        >>> loss, stats = clipped_surrogate_loss(log_ratio, torch.ones(2), clip_range=0.2)
        >>> loss.backward()
        >>> [round(x, 4) for x in log_ratio.grad.tolist()], stats.clip_fraction.item()
        ([0.0, -0.3704], 1.0)
    """
    _check_settings(clip_range=clip_range, kl=kl, kl_weight=kl_weight)
    tensors = {"log_ratio": log_ratio, "advantage": advantage, "weight": weight, "kl": kl}
    check_paired(**{name: tensor for name, tensor in tensors.items() if tensor is not None})
    scale = advantage.detach()
    # Far beyond the range a clipped ratio must not overflow: 0 times infinity is no gradient.
    enough = torch.where(scale < 0.0, math.inf, math.log1p(clip_range) + 1.0)
    if clip_range == math.inf:  # no range, but no advantage is 0 times the ratio all the same
        enough = enough.masked_fill(scale == 0.0, 1.0)
    change = log_ratio.minimum(enough.to(log_ratio.dtype)).expm1()
    near = change.clamp(-clip_range, clip_range)
    term = torch.maximum(-scale * change, -scale * near) - scale
    if weight is not None:
        term = weight.detach() * term
    surrogate = term.mean()
    loss = surrogate
    if kl is not None and kl_weight > 0.0:
        loss = surrogate + kl_weight * kl.mean()
    with torch.no_grad():
        stats = SurrogateStats(
            approx_kl=log_ratio.square().mean() / 2,
            clip_fraction=(change.abs() > clip_range).to(change.dtype).mean(),
            surrogate=surrogate.detach(),
            reference_kl=torch.zeros_like(surrogate) if kl is None else kl.mean(),
        )
    return loss, stats


def reference_kl(
    mean: BatchLatent,
    mean_reference: BatchLatent,
    *,
    std: float | BatchShape,
    reduction: Reduction,
) -> Float[Tensor, "..."]:
    r"""Return how far each transition is from the reference policy's.

    .. math:: D = \frac{\lVert \mu_\theta - \mu_{ref} \rVert^2}{2 \sigma^2}

    the divergence of two Gaussians of one spread; for a flow kernel
    :math:`\sigma^2 = \sigma_t^2 \Delta t`.

    Source:
        arXiv:2505.05470 (Flow-GRPO), its KL term. The reference is the network without its
        low-rank update.

    Args:
        mean: :math:`\mu_\theta`. Gradient flows.
        mean_reference: :math:`\mu_{ref}` from the same state. No gradient flows.
        std: :math:`\sigma` of the transition, one number per latent or one for all; positive.
        reduction: "sum" [nats], "mean" [nats/element] or "none" [nats], over c, h, w.

    Returns:
        One number per latent, not negative; with "none" one per element.

    Raises:
        ValueError: If ``std`` is a float that is not positive, ``reduction`` is unknown, or a
            tensor is half precision.

    Examples:
        >>> mean = torch.ones(1, 1, 1).requires_grad_()
        >>> divergence = reference_kl(mean, torch.zeros(1, 1, 1), std=0.5, reduction="sum")
        >>> divergence.item(), torch.autograd.grad(divergence, mean)[0].item()
        (2.0, 4.0)
    """
    if not isinstance(std, Tensor):
        require_positive(std=std)
    return kl_divergence(
        mean_p=mean, std_p=std, mean_q=mean_reference.detach(), std_q=std, reduction=reduction
    )


def reference_kl_without_step_length(
    mean: BatchLatent,
    mean_reference: BatchLatent,
    *,
    std: float | BatchShape,
    step_length: float | BatchShape,
    reduction: Reduction,
) -> Float[Tensor, "..."]:
    r"""Return the released stand-in for the divergence from the reference.

    .. math:: D' = \frac{\lVert \mu_\theta - \mu_{ref} \rVert^2}{2 \sigma_t^2}
        = D\, \Delta t, \qquad \sigma = \sigma_t \sqrt{\Delta t}

    It weighs long steps more than the divergence does, and is smaller by the step's length. Of
    a CPS step, whose :math:`\sigma` holds no step length, the released form is the divergence.

    Source:
        Flow-GRPO's released trainer, whose published weights 0.04 and 0.01 are for this and
        the mean over elements.

    Args:
        mean: :math:`\mu_\theta`. Gradient flows.
        mean_reference: :math:`\mu_{ref}` from the same state. No gradient flows.
        std: :math:`\sigma` of the transition, with its step length; positive.
        step_length: :math:`\Delta t` [noise level], one number per latent or one for all;
            positive.
        reduction: As in :func:`reference_kl`.

    Returns:
        One number per latent, not negative; with "none" one per element.

    Raises:
        ValueError: As :func:`reference_kl`, or if ``step_length`` is a float that is not
            positive.

    Examples:
        >>> one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
        >>> reference_kl_without_step_length(
        ...     one, zero, std=0.5, step_length=0.25, reduction="sum"
        ... ).item()
        0.5
    """
    divergence = reference_kl(mean, mean_reference, std=std, reduction=reduction)
    if isinstance(step_length, Tensor):
        require_levels(mean, step_length=step_length)
        length = per_latent(step_length, divergence.dtype)
        return divergence * (length if reduction == "none" else length[..., 0, 0, 0])
    require_positive(step_length=step_length)
    return divergence * step_length


def tempflow_step_weights(std: Float[Tensor, " step"]) -> Float[Tensor, " step"]:
    r"""Weigh each step by the noise it adds, 1 on average.

    .. math:: w_t = \frac{\sigma_t \sqrt{\Delta t}}
        {\frac{1}{T} \sum_s \sigma_s \sqrt{\Delta s}}

    The gradient of a log-density grows as the noise shrinks; this undoes it, so that late
    steps, which change little, do not drown early ones.

    Source:
        arXiv:2508.04324 (TempFlow-GRPO), its noise-aware weighting.

    Args:
        std: Spread of every trained transition, its step length included; positive.

    Returns:
        One weight per step [1], positive, of mean 1.

    Raises:
        ValueError: If ``std`` is empty, of half precision, or not positive and finite.

    Examples:
        >>> tempflow_step_weights(torch.tensor([0.3, 0.1])).tolist()
        [1.5, 0.5]
    """
    require_full_precision(std=std)
    if std.numel() == 0 or not bool(((std > 0.0) & std.isfinite()).all()):
        msg = (
            f"`std` must hold positive finite numbers, at least one; got {std.tolist()}; leave "
            "out steps that draw nothing."
        )
        raise ValueError(msg)
    return (std / std.mean()).detach()


def _check_settings(*, clip_range: float, kl: Tensor | None, kl_weight: float) -> None:
    """Refuse a setting out of its range; NaN compares false and is refused too."""
    if not clip_range > 0.0:
        msg = f"`clip_range` must be positive; got {clip_range!r}; `math.inf` clips nothing."
        raise ValueError(msg)
    if not 0.0 <= kl_weight < math.inf:
        msg = f"`kl_weight` must be finite and not negative; got {kl_weight!r}; 0.0 is without."
        raise ValueError(msg)
    if kl is None and kl_weight > 0.0:
        msg = f"`kl` must be given where `kl_weight` is positive; got {kl_weight!r}; pass it, or 0."
        raise ValueError(msg)
