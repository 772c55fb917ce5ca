"""A trust region by the true divergence of two Gaussians, in the place of a ratio's clip."""

import math
from dataclasses import replace
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_positive
from mvczigal_ref.objective.clipped import SurrogateStats, clipped_surrogate_loss, reference_kl
from mvczigal_ref.objective.reward_difference import check_paired
from mvczigal_ref.shapes import BatchLatent, BatchShape, Scalar

__all__ = ["divergence_loss", "outside_region"]


def outside_region(
    log_ratio: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    divergence: Float[Tensor, "*batch"],
    *,
    divergence_range: float,
) -> Bool[Tensor, "*batch"]:
    r"""Find the actions that are far from the sampling policy and would go on away from it.

    .. math:: D_i \ge \delta \;\wedge\; \big[(l_i > 0 \wedge A_i > 0) \vee
        (l_i < 0 \wedge A_i < 0)\big]

    Far ones that the advantage pulls back stay, and so do all that are near.

    Source:
        arXiv:2606.11025 (Flow-DPPO), its asymmetric divergence mask.

    Args:
        log_ratio: :math:`l`; only its sign is read.
        advantage: :math:`A`; only its sign is read.
        divergence: :math:`D` of each action's Gaussian from the one that it was drawn from, not
            negative.
        divergence_range: :math:`\delta` [unit of ``divergence``]; positive, ``math.inf`` for none.

    Returns:
        Whether an action's gradient is to be held back.

    Raises:
        ValueError: If ``divergence_range`` is not positive, shapes differ, or a tensor is empty or
            half precision.

    Examples:
        >>> import torch
        >>> outside_region(
        ...     torch.tensor([0.1, -0.1, 0.1]), torch.ones(3), torch.tensor([2.0, 2.0, 0.5]),
        ...     divergence_range=1.0,
        ... ).tolist()
        [True, False, False]
    """
    if not divergence_range > 0.0:
        msg = f"`divergence_range` must be positive; got {divergence_range!r}."
        raise ValueError(msg)
    check_paired(log_ratio=log_ratio, advantage=advantage, divergence=divergence)
    away = log_ratio.detach() * advantage.detach().sign() > 0.0
    return away & (divergence.detach() >= divergence_range)


def divergence_loss(
    log_ratio: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    *,
    mean: BatchLatent,
    mean_old: BatchLatent,
    std: float | BatchShape,
    reduction: Literal["mean", "sum"],
    divergence_range: float = 1e-5,
    weight: Float[Tensor, "*batch"] | None = None,
    repeats: Float[Tensor, "*batch"] | float = 1.0,
    kl: Float[Tensor, "*batch"] | None = None,
    kl_weight: float = 0.0,
) -> tuple[Scalar, SurrogateStats]:
    r"""Raise the ratios of what did better than its group, within a divergence of the old policy.

    .. math:: L = \frac{1}{n} \sum_i m_i\, w_i (-A_i \rho_i), \qquad
        D_i = \frac{\lVert \mu_\theta - \mu_{\theta'} \rVert^2}{2 \sigma^2}

    with :math:`m` 0 where :func:`outside_region` holds, and 1 elsewhere. The ratio is a single
    noisy sample of how far the policy went; the divergence is exact.

    Source:
        arXiv:2606.11025 (Flow-DPPO). Its released code reduces the divergence by the mean, to
        which its range of 1e-5 belongs, and lets masked actions out of the loss's value too.

    Args:
        log_ratio: :math:`l`, one number per latent [nats, or nats/element]. Gradient flows.
        advantage: :math:`A`, expanded to that shape [1]. No gradient flows.
        mean: :math:`\mu_\theta`. No gradient flows: the divergence only chooses.
        mean_old: :math:`\mu_{\theta'}`, stored when sampling.
        std: :math:`\sigma` of the transition; positive.
        reduction: Reduction of the divergence, that of ``log_ratio``: "sum" or "mean".
        divergence_range: :math:`\delta` [nats/element, or nats]; positive.
        weight: :math:`w`, of that shape [1]; 1 if None.
        repeats: Number of times that each latent counts in ``clip_fraction`` [1].
        kl: Divergence of each transition from the reference. Gradient flows.
        kl_weight: :math:`\beta`; finite, not negative.

    Returns:
        The loss, NaN where a divergence is, and its detached diagnostics; ``clip_fraction`` is
        the masked share.

    Raises:
        ValueError: As :func:`outside_region`, :func:`~mvczigal_ref.objective.clipped.reference_kl`
            and :func:`~mvczigal_ref.objective.clipped.clipped_surrogate_loss`.

    Examples:
        >>> import torch
        >>> mean, old = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
        >>> log_ratio = torch.tensor([0.1, -0.1]).requires_grad_()
        >>> loss, stats = divergence_loss(
        ...     log_ratio, torch.ones(2), mean=mean, mean_old=old, std=0.5, reduction="mean"
        ... )
        >>> loss.backward()
        >>> [round(x, 4) + 0.0 for x in log_ratio.grad.tolist()], stats.clip_fraction.item()
        ([0.0, -0.4524], 0.5)
    """
    if not isinstance(std, Tensor):
        require_positive(std=std)
    if isinstance(repeats, Tensor) and repeats.ndim:
        check_paired(log_ratio=log_ratio, repeats=repeats)
    divergence = reference_kl(mean.detach(), mean_old, std=std, reduction=reduction)
    held = outside_region(log_ratio, advantage, divergence, divergence_range=divergence_range)
    trusted = advantage.masked_fill(held, 0.0).masked_fill(divergence.isnan(), math.nan)
    loss, stats = clipped_surrogate_loss(
        log_ratio, trusted, clip_range=math.inf, weight=weight, kl=kl, kl_weight=kl_weight
    )
    return loss, replace(stats, clip_fraction=(held.to(log_ratio.dtype) * repeats).mean())
