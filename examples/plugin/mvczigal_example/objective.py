"""Objectives: of pairs by Huber's loss, of groups by a square in place of the clip."""

from torch import Tensor
from torch.nn.functional import huber_loss

from mvczigal_ref.config import ObjectiveConfig

__all__ = ["huber", "square"]


def huber(zigzag: Tensor, standard: Tensor, gap: Tensor, settings: ObjectiveConfig) -> Tensor:
    """Compare the difference of the log-ratios with the advantage gap.

    Args:
        zigzag: Log-ratios of the first arm [nats/element].
        standard: Log-ratios of the second arm, of the same shape.
        gap: Advantage of the first arm minus that of the second [1].
        settings: Section ``objective``; ``temperature`` is read.

    Returns:
        Mean loss [1].
    """
    return huber_loss((zigzag - standard) / settings.temperature, gap)


def square(log_ratio: Tensor, advantage: Tensor, settings: ObjectiveConfig) -> Tensor:
    """Raise ratios by their advantage, and hold them near 1 by a square.

    Args:
        log_ratio: Log-ratio of each action [log-ratio unit].
        advantage: Advantage of each within its group, of the same shape [1].
        settings: Section ``objective``; ``clip_range`` is where the pull is as strong as the push.

    Returns:
        One term per action, lower is better [1].
    """
    change = log_ratio.expm1()
    return -advantage * change + advantage.abs() * change.square() / (2.0 * settings.clip_range)
