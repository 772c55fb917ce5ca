"""Losses that another package registers, of pairs or of groups."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.config import ObjectiveConfig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.objective.clipped import SurrogateStats
from mvczigal_ref.objective.reward_difference import (
    ObjectiveStats,
    RewardDifferenceGradients,
    pair_gradients,
)
from mvczigal_ref.shapes import Scalar

__all__ = ["plugin_gradients", "plugin_surrogate_loss"]


def plugin_gradients(
    loss: Callable[..., Any],
    settings: ObjectiveConfig,
    log_ratio_zigzag: Float[Tensor, "*sample"],
    log_ratio_standard: Float[Tensor, "*sample"],
    advantage_gap: Float[Tensor, "*sample"],
) -> RewardDifferenceGradients:
    """Differentiate a plug-in's loss by each arm's log-probability.

    Args:
        loss: Function of both log-ratios, the advantage gap and the settings, that gives one
            number; it differentiates by the log-ratios.
        settings: Section ``objective``.
        log_ratio_zigzag: Log-ratio of the first arm [log-ratio unit]; only its value is read.
        log_ratio_standard: Log-ratio of the second arm [log-ratio unit].
        advantage_gap: First arm minus second [1].

    Returns:
        Loss, diagnostics and both derivatives, detached.

    Raises:
        ConfigError: If the loss is no tensor of one number with a gradient.
    """

    def measured(zigzag: Tensor, standard: Tensor, gap: Tensor) -> tuple[Tensor, ObjectiveStats]:
        value = loss(zigzag, standard, gap, settings)
        if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
            msg = (
                f"the plug-in objective {settings.kind!r} must give a tensor of one number that "
                "depends on both log-ratios."
            )
            raise ConfigError(msg)
        both = torch.stack([zigzag, standard]).detach()
        stats = ObjectiveStats(
            approx_kl=both.square().mean() / 2,
            clip_fraction=(both.abs() > settings.clip_range).to(both.dtype).mean(),
        )
        return value, stats

    return pair_gradients(measured, log_ratio_zigzag, log_ratio_standard, advantage_gap)


def plugin_surrogate_loss(
    terms: Callable[..., Any],
    settings: ObjectiveConfig,
    log_ratio: Float[Tensor, "*sample"],
    advantage: Float[Tensor, "*sample"],
    *,
    weight: Float[Tensor, "*sample"],
    kl: Float[Tensor, "*sample"] | None = None,
) -> tuple[Scalar, SurrogateStats]:
    r"""Average a plug-in's terms, and add the divergence from the reference.

    .. math:: L = \frac{1}{n} \sum_i w_i f(l_i, A_i) + \frac{\beta}{n} \sum_i D_i

    Args:
        terms: :math:`f`, a function of log-ratios, advantages and the settings, that gives one term
            per log-ratio, lower is better; it differentiates by the log-ratios.
        settings: Section ``objective``; its ``kl_weight`` is :math:`\beta`.
        log_ratio: :math:`l` [log-ratio unit]. Gradient flows.
        advantage: :math:`A` [1]. No gradient flows.
        weight: :math:`w` [1]. No gradient flows.
        kl: :math:`D` [unit of the divergence]. Gradient flows; None is without.

    Returns:
        The loss, and its detached diagnostics.

    Raises:
        ConfigError: If the terms are no tensor of the log-ratios' shape, or have no gradient.

    Examples:
        >>> one = torch.ones(2)
        >>> loss, stats = plugin_surrogate_loss(
        ...     lambda log_ratio, advantage, settings: -advantage * log_ratio.exp(),
        ...     ObjectiveConfig(), torch.zeros(2, requires_grad=True), one, weight=one,
        ... )
        >>> loss.item(), stats.clip_fraction.item()
        (-1.0, 0.0)
    """
    each = terms(log_ratio, advantage.detach(), settings)
    shape = tuple(log_ratio.shape)
    if (
        not isinstance(each, Tensor)
        or each.shape != log_ratio.shape
        or each.requires_grad != log_ratio.requires_grad
    ):
        got = f"shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
        msg = (
            f"the plug-in objective {settings.kind!r} must give one term per log-ratio, a tensor "
            f"of shape {shape} that depends on them; got {got}."
        )
        raise ConfigError(msg)
    surrogate = (weight.detach() * each).mean()
    loss = surrogate
    if kl is not None and settings.kl_weight > 0.0:
        loss = surrogate + settings.kl_weight * kl.mean()
    with torch.no_grad():
        beyond = log_ratio.expm1().abs() > settings.clip_range
        stats = SurrogateStats(
            approx_kl=log_ratio.square().mean() / 2,
            clip_fraction=beyond.to(log_ratio.dtype).mean(),
            surrogate=surrogate.detach(),
            reference_kl=torch.zeros_like(surrogate) if kl is None else kl.mean(),
        )
    return loss, stats
