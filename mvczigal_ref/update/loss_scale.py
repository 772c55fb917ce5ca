"""Loss scale: a power of two that lifts gradients over the smallest number of half precision.

One frozen state and one pure transition, as of the constraint.
"""

import math
from dataclasses import dataclass

from mvczigal_ref.errors import NonFiniteError

__all__ = ["LossScale", "loss_scale_step"]

_LARGEST = 2.0**32


@dataclass(frozen=True, kw_only=True, slots=True)
class LossScale:
    """Factor on the loss between two optimiser steps.

    Raises:
        ValueError: If ``scale`` is no power of two in [1, 2^32], or ``good_steps`` is negative.
    """

    scale: float = 2.0**16
    """Factor [1]; a power of two, so that fp32 numbers are multiplied by it without rounding."""

    good_steps: int = 0
    """Finite gradients since the factor last changed [optimiser steps]."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.scale <= _LARGEST or math.frexp(self.scale)[0] != 0.5:
            msg = (
                f"`scale` must be a power of two in [1, 2^32]; got {self.scale!r}; 65536.0 is "
                "usual for fp16."
            )
            raise ValueError(msg)
        if self.good_steps < 0:
            msg = f"`good_steps` must not be negative; got {self.good_steps}; start at 0."
            raise ValueError(msg)


def loss_scale_step(state: LossScale, *, finite: bool, growth_interval: int = 2000) -> LossScale:
    r"""Halve the factor after an overflow, and double it after many steps without one.

    .. math:: s' = s / 2 \text{ if } \lVert s\, g \rVert \text{ is not finite, else }
        s' = 2 s \text{ after } n \text{ finite steps}

    Source:
        Micikevicius et al., arXiv:1710.03740, section 3.2. The factor stays within [1, 2^32].

    Args:
        state: The state that the gradient was made with.
        finite: Whether the gradient is finite, the same in every process.
        growth_interval: :math:`n` [optimiser steps]; at least 1.

    Returns:
        The state for the next optimiser step.

    Raises:
        NonFiniteError: If the factor is 1 already: the gradient itself is non-finite.
        ValueError: If ``growth_interval`` is less than 1.

    Examples:
        >>> loss_scale_step(LossScale(scale=4.0, good_steps=7), finite=False)
        LossScale(scale=2.0, good_steps=0)
        >>> loss_scale_step(LossScale(scale=4.0, good_steps=7), finite=True, growth_interval=8)
        LossScale(scale=8.0, good_steps=0)
    """
    if growth_interval < 1:
        msg = f"`growth_interval` must be at least 1; got {growth_interval}; 2000 is usual."
        raise ValueError(msg)
    if not finite:
        if state.scale == 1.0:
            raise NonFiniteError("gradient_norm")
        return LossScale(scale=state.scale / 2)
    good_steps = state.good_steps + 1
    if good_steps < growth_interval:
        return LossScale(scale=state.scale, good_steps=good_steps)
    return LossScale(scale=min(2 * state.scale, _LARGEST))
