"""Grids that finish a rollout by the ODE, with fewer steps than the whole grid has left."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal, get_args

import torch

from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.precision import require_choice
from mvczigal_ref.rollout.group_plan import require_at_least, require_steps

__all__ = ["LastStride", "compressed_tail", "finishing_sampler", "require_strides"]

LastStride = Literal["short", "long"]
"""End of a grid where a stride does not fit: a shorter step of its own, or a longer one before."""


def finishing_sampler(
    sampler: FlowSampler,
    *,
    start: int,
    stride: int,
    fine_steps: int = 0,
    last_stride: LastStride = "short",
) -> FlowSampler:
    r"""Return the ODE from one level of a grid to its end, visiting every g-th level.

    .. math:: s_k,\ \dots,\ s_{k+f},\ s_{k+f+g},\ s_{k+f+2g},\ \dots,\ s_T

    Where the stride does not fit, the last step is as short as it has to be to end where the
    grid ends, or the one before goes there at once.

    Source:
        arXiv:2510.01982 (Granular-GRPO, G2RPO), which finishes with strides 1 and 2. Its released
        code takes one fine step before, and decodes the clean prediction of the last whole
        stride: ``fine_steps=1, last_stride="long"``.

    Args:
        sampler: The whole grid; its noise is not used.
        start: First level :math:`k`, as a step of the grid.
        stride: :math:`g` [steps]; at least 1.
        fine_steps: :math:`f`, steps of the grid itself before the first stride; not negative.
        last_stride: "short" or "long".

    Returns:
        A sampler of f + ceil((T - k - f) / g) steps, or of T - k if that is no more than f; with
        "long" of one less where g does not divide T - k - f, but at least 1.

    Raises:
        ValueError: If ``start`` is outside the grid, ``stride`` is below 1, ``fine_steps``
            below 0, or ``last_stride`` unknown.

    Examples:
        >>> whole = FlowSampler.create(
        ...     sigmas=torch.tensor([1.0, 0.8, 0.6, 0.4, 0.0]), kernel="cps", noise_scale=0.8
        ... )
        >>> finishing_sampler(whole, start=1, stride=2).sigma_prev
        tensor([0.4000, 0.0000])
        >>> finishing_sampler(whole, start=1, stride=2, last_stride="long").sigma_prev
        tensor([0.])
    """
    require_steps("start", (start,), num_steps=sampler.num_steps)
    require_strides((stride,), fine_steps)
    require_choice("last_stride", last_stride, get_args(LastStride))
    turn = min(start + fine_steps, sampler.num_steps)
    steps = [*range(start, turn), *range(turn, sampler.num_steps, stride)]
    if last_stride == "long" and (sampler.num_steps - turn) % stride and len(steps) > 1:
        steps.pop()
    return _ode_at(sampler, steps)


def compressed_tail(sampler: FlowSampler, *, start: int, share: float) -> FlowSampler:
    r"""Return the ODE from one level of a grid to its end, with a share of the steps.

    .. math:: n = \max(1, \lfloor c\,(T - k) \rfloor),\qquad
        s_{k + \lfloor i (T - k) / n \rfloor}, \quad i = 0 \dots n

    Source:
        arXiv:2507.21802 (MixGRPO-Flash), which follows the compressed tail by DPM-Solver++. Its
        released code spaces n - 1 steps evenly in unshifted time; here the levels are the grid's
        own, as evenly as whole steps allow.

    Args:
        sampler: The whole grid; its noise is not used.
        start: First level :math:`k`, as a step of the grid.
        share: :math:`c` [1], in (0, 1]; 1 is the rest of the grid. Published: 0.4.

    Returns:
        A sampler of n steps.

    Raises:
        ValueError: If ``start`` is outside the grid or ``share`` outside (0, 1].

    Examples:
        >>> whole = FlowSampler.create(
        ...     sigmas=torch.tensor([1.0, 0.8, 0.6, 0.4, 0.0]), kernel="cps", noise_scale=0.8
        ... )
        >>> compressed_tail(whole, start=1, share=0.7).sigma_t
        tensor([0.8000, 0.6000])
    """
    require_steps("start", (start,), num_steps=sampler.num_steps)
    if not 0.0 < share <= 1.0:
        msg = f"`share` must be in (0, 1]; got {share!r}; 1.0 takes every step that is left."
        raise ValueError(msg)
    left = sampler.num_steps - start
    count = max(1, math.floor(Fraction(str(share)) * left))  # 29 of 50 for 0.58; floats say 28
    return _ode_at(sampler, [start + i * left // count for i in range(count)])


def require_strides(strides: Sequence[int], fine_steps: int) -> None:
    """Refuse no stride, one that stands still, or fewer fine steps than none.

    Args:
        strides: Finishing strides [steps].
        fine_steps: Steps of the grid itself before them [steps].

    Raises:
        ValueError: If one is out of its range.

    Examples:
        >>> require_strides((1, 2), 0)
    """
    require_at_least(0, fine_steps=fine_steps)
    if not strides or min(strides) < 1:
        msg = f"`strides` must be at least 1, and one or more; got {list(strides)}."
        raise ValueError(msg)


def _ode_at(sampler: FlowSampler, steps: Sequence[int]) -> FlowSampler:
    """Take the ODE from each of some steps' levels to the next, and from the last to the end."""
    first = torch.tensor(steps, device=sampler.sigma_t.device)
    last = torch.tensor([*steps[1:], sampler.num_steps], device=first.device) - 1
    return replace(
        sampler.deterministic(),
        timesteps=sampler.timesteps[first],
        sigma_t=sampler.sigma_t[first],
        sigma_prev=sampler.sigma_prev[last],
    )
