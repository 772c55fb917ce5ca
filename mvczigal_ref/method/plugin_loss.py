"""Loss of pairs that another package registers."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.config import ObjectiveConfig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.objective.reward_difference import (
    ObjectiveStats,
    RewardDifferenceGradients,
    pair_gradients,
)

__all__ = ["plugin_gradients"]


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
