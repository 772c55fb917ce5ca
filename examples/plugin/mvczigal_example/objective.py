"""Objective: the reward difference by Huber's loss, which large errors move less."""

from torch import Tensor
from torch.nn.functional import huber_loss

from mvczigal_ref.config import ObjectiveConfig

__all__ = ["huber"]


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
