"""Grids of timesteps as diffusers' schedulers space them."""

import math
from typing import Final, Literal, get_args

import torch

from mvczigal_ref.diffusion.precision import require_choice
from mvczigal_ref.diffusion.schedule import ddim_timesteps
from mvczigal_ref.shapes import Timesteps

__all__ = ["SPACINGS", "TimestepSpacing", "spaced_timesteps"]

TimestepSpacing = Literal["leading", "trailing", "linspace"]
"""End that an evenly spaced grid begins at: the clean one, the noisy one, or both."""

SPACINGS: Final = get_args(TimestepSpacing)
"""The words of :data:`TimestepSpacing`, to check one by."""


def spaced_timesteps(
    num_steps: int,
    spacing: TimestepSpacing,
    *,
    num_train_timesteps: int = 1000,
    steps_offset: int = 1,
) -> Timesteps:
    r"""Return an evenly spaced grid, as diffusers' implicit-model scheduler spaces it.

    .. math::

        \text{trailing: } t_i = \mathrm{round}(N - iN/T) - 1,\qquad
        \text{linspace: } t_i = \mathrm{round}\big((T-1-i)\tfrac{N-1}{T-1}\big)

    Halves are rounded to the even neighbour; "leading" is
    :func:`~mvczigal_ref.diffusion.schedule.ddim_timesteps`.

    Source:
        Lin et al., arXiv:2305.08891, Table 2; in fp64 as NumPy computes it for diffusers, where
        the rounding of a step decides the ties.

    Args:
        num_steps: :math:`T` [steps]; in 1..``num_train_timesteps``.
        spacing: "leading", "trailing" or "linspace".
        num_train_timesteps: :math:`N` [timesteps].
        steps_offset: Added to a leading grid [timesteps]; the others do not read it.

    Returns:
        Timesteps in 0..N-1, strictly decreasing.

    Raises:
        ValueError: If ``spacing`` is unknown, a timestep would fall outside, or diffusers' own
            trailing grid has another length than ``num_steps``.

    Examples:
        >>> spaced_timesteps(4, "trailing"), spaced_timesteps(4, "linspace")
        (tensor([999, 749, 499, 249]), tensor([999, 666, 333,   0]))
    """
    require_choice("spacing", spacing, SPACINGS)
    total = num_train_timesteps
    if spacing == "leading":
        return ddim_timesteps(num_steps, num_train_timesteps=total, steps_offset=steps_offset)
    if not 1 <= num_steps <= total:
        msg = f"`num_steps` must be in 1..{total}, the grid it is taken from; got {num_steps}."
        raise ValueError(msg)
    if spacing == "linspace":
        stride = (total - 1) / max(num_steps - 1, 1)
        times = [round(i * stride) for i in reversed(range(num_steps))]
        times[0] = total - 1 if num_steps > 1 else 0
        return torch.tensor(times)
    stride = total / num_steps
    length = math.ceil(total / stride)
    if length != num_steps:
        msg = (
            f"`num_steps` must give a trailing grid of as many steps; {num_steps} of {total} "
            f"timesteps gives {length} in diffusers. Take another number."
        )
        raise ValueError(msg)
    step = (total - stride) - total
    return torch.tensor([round(total + i * step) - 1 for i in range(num_steps)])
