"""A ratio whose spread does not depend on the noise level, and the loss that clips it.

Off policy a log-ratio's mean is below 0, and its spread grows as a step's noise shrinks, so one
clip range holds back good samples at few steps and none at others.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.levels import require_levels
from mvczigal_ref.diffusion.precision import per_latent, require_full_precision, require_positive
from mvczigal_ref.objective.clipped import SurrogateStats, clipped_surrogate_loss, reference_kl
from mvczigal_ref.shapes import BatchLatent, BatchShape, Scalar

__all__ = ["guard_loss", "guarded_log_ratio"]


def guarded_log_ratio(
    log_ratio: Float[Tensor, "*batch"],
    *,
    mean: BatchLatent,
    mean_old: BatchLatent,
    std: float | BatchShape,
    reduction: Literal["mean", "sum"],
) -> Float[Tensor, "*batch"]:
    r"""Shift log-ratios to mean 0 under the sampling policy and scale their spread.

    .. math:: \tilde l = \Big(l + \frac{\lVert \mu_\theta - \mu_{\theta'} \rVert^2}
        {2 \sigma^2}\Big) \sigma = \xi \cdot (\mu_\theta - \mu_{\theta'}), \qquad
        a = \mu_{\theta'} + \sigma \xi

    The right side holds for the Gaussian transition that drew :math:`a`: what is left is how
    far the mean moved along the noise, whatever the noise level.

    Source:
        arXiv:2510.22319 (GRPO-Guard), its ratio normalisation; the released code reduces by
        the mean.

    Args:
        log_ratio: :math:`l` of each transition, reduced over c, h, w as ``reduction`` says.
            Gradient flows.
        mean: :math:`\mu_\theta`. Gradient flows.
        mean_old: :math:`\mu_{\theta'}`, stored when sampling. No gradient flows.
        std: :math:`\sigma` of the transition, its step length included; positive.
        reduction: Reduction of ``log_ratio``: "sum" or "mean".

    Returns:
        One number per latent [latent unit].

    Raises:
        ValueError: If ``std`` is a float that is not positive, ``reduction`` is unknown, shapes
            differ, or a tensor is half precision.

    Examples:
        >>> moved, old = torch.full((1, 1, 1), 0.1), torch.zeros(1, 1, 1)
        >>> guarded_log_ratio(
        ...     torch.tensor(-0.5), mean=moved, mean_old=old, std=0.1, reduction="sum"
        ... ).item()
        0.0
    """
    require_full_precision(log_ratio=log_ratio)
    if reduction not in ("mean", "sum"):
        msg = f"`reduction` must be 'mean' or 'sum', as that of `log_ratio`; got {reduction!r}."
        raise ValueError(msg)
    # A reference that does not move, as in the penalty: here it is the snapshot.
    bias = reference_kl(mean, mean_old, std=std, reduction=reduction)
    if bias.shape != log_ratio.shape:
        msg = (
            f"`log_ratio` must have one number per latent of `mean`, {tuple(bias.shape)}; got "
            f"shape {tuple(log_ratio.shape)}; expand one of them."
        )
        raise ValueError(msg)
    return (log_ratio + bias) * std


def guard_loss(
    log_ratio: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    *,
    mean: BatchLatent,
    mean_old: BatchLatent,
    std: float | BatchShape,
    step_length: float | BatchShape,
    reduction: Literal["mean", "sum"],
    clip_range: float = 2e-6,
    kl: Float[Tensor, "*batch"] | None = None,
    kl_weight: float = 0.0,
) -> tuple[Scalar, SurrogateStats]:
    r"""Clip the guarded ratios and divide each step's loss by the step's length.

    .. math:: L = \frac{1}{n} \sum_i \frac{1}{\Delta t_i}
        \max\big(-A_i e^{\tilde l_i},\; -A_i\, c(e^{\tilde l_i})\big)
        + \frac{\beta}{n} \sum_i D_i

    Source:
        arXiv:2510.22319 (GRPO-Guard); the divergence is Flow-GRPO's and not divided.

    Args:
        log_ratio: :math:`l` before guarding, one number per latent. Gradient flows.
        advantage: :math:`A`, expanded to that shape [1]. No gradient flows.
        mean: :math:`\mu_\theta`. Gradient flows.
        mean_old: :math:`\mu_{\theta'}`, stored when sampling. No gradient flows.
        std: :math:`\sigma` of the transition, its step length included; positive.
        step_length: :math:`\Delta t` [noise level], one number per latent or one for all;
            positive.
        reduction: Reduction of ``log_ratio``: "sum" or "mean".
        clip_range: Largest trusted change of a guarded ratio [1]; positive.
        kl: Divergence of each transition from the reference. Gradient flows.
        kl_weight: :math:`\beta`; finite, not negative.

    Returns:
        The loss, and its detached diagnostics: ``approx_kl`` is of the true log-ratios,
        ``clip_fraction`` of the guarded ones.

    Raises:
        ValueError: As :func:`guarded_log_ratio` and
            :func:`~mvczigal_ref.objective.clipped.clipped_surrogate_loss`.

    Examples:
        >>> mean = torch.zeros(1, 1, 1)
        >>> loss, _ = guard_loss(
        ...     torch.tensor(0.0), torch.tensor(1.0), mean=mean, mean_old=mean,
        ...     std=0.5, step_length=0.25, reduction="mean",
        ... )
        >>> loss.item()
        -4.0
    """
    if isinstance(step_length, Tensor):
        require_levels(mean, step_length=step_length)
        length = per_latent(step_length, log_ratio.dtype)[..., 0, 0, 0]
        weight = (1.0 / length).expand_as(log_ratio)
    else:
        require_positive(step_length=step_length)
        weight = torch.full_like(log_ratio, 1.0 / step_length)
    guarded = guarded_log_ratio(
        log_ratio, mean=mean, mean_old=mean_old, std=std, reduction=reduction
    )
    loss, stats = clipped_surrogate_loss(
        guarded, advantage, clip_range=clip_range, weight=weight, kl=kl, kl_weight=kl_weight
    )
    with torch.no_grad():
        return loss, replace(stats, approx_kl=log_ratio.square().mean() / 2)
