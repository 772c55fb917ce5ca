"""Standardise rewards over everything that was sampled together."""

import math
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_full_precision
from mvczigal_ref.errors import NonFiniteError

__all__ = [
    "ROUNDING_UNITS",
    "check_rewards",
    "equal_up_to_rounding",
    "power_of_two",
    "scaled_guard",
    "standard_deviation",
    "standardise",
]

ROUNDING_UNITS: Final = 16
"""Machine epsilons of the largest reward that rewards may differ by and still count as equal [1].

A weighted sum over scorers and views rounds by a few of them, and more would hide a real gain.
"""

_EXPONENTS: Final = {
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}


def check_rewards(**tables: Float[Tensor, "..."]) -> None:
    """Refuse reward tables that are empty, narrow or non-finite, saying where.

    Reads each table back from its device once; keep it out of sampling steps.

    Args:
        **tables: Rewards of shape ``(object,)`` or ``(object, view)``, under the name that
            the caller knows them by; in any other shape the message gives no index.

    Raises:
        ValueError: If a table is empty or of half precision.
        NonFiniteError: If a reward is NaN or infinite.

    Examples:
        >>> check_rewards(joint_view_reward=torch.tensor([0.0, torch.inf]))
        Traceback (most recent call last):
        mvczigal_ref.errors.NonFiniteError: `joint_view_reward` must be finite; got inf at object 1.
    """
    require_full_precision(**tables)
    for name, table in tables.items():
        if table.numel() == 0:
            msg = f"`{name}` must not be empty; got shape {tuple(table.shape)}; score an object."
            raise ValueError(msg)
        bad = (~table.isfinite()).nonzero().tolist()
        if bad:
            value = table[tuple(bad[0])].item()
            place = zip(("object", "view"), bad[0], strict=False) if table.ndim <= 2 else ()
            raise NonFiniteError(name, **dict(place), value=value)


def equal_up_to_rounding(
    reward: Float[Tensor, "*axis"], *, dim: tuple[int, ...] | None = None
) -> Bool[Tensor, "..."]:
    r"""Tell rewards that differ by no more than their own rounding.

    .. math:: \max r - \min r \le 16\,\epsilon\,\max |r|

    with :math:`\epsilon` the machine epsilon of the rewards' dtype.

    Source:
        Ours. Division by a standard deviation would make a difference of one unit in the last
        place as large as any other.

    Args:
        reward: Rewards of any shape, fp32 or fp64 [reward units].
        dim: Axes along which rewards compete, kept with length 1; None is all, to one answer.

    Returns:
        Whether the rewards count as equal; read on their device alone.

    Examples:
        >>> near = torch.tensor([20.0, 20.000002])
        >>> bool(equal_up_to_rounding(near)), bool(equal_up_to_rounding(near - 20.0))
        (True, False)
    """
    axes, keep = (tuple(range(reward.ndim)), False) if dim is None else (dim, True)
    highest, lowest = reward.amax(axes, keepdim=keep), reward.amin(axes, keepdim=keep)
    unit = torch.finfo(reward.dtype).eps * torch.maximum(highest.abs(), lowest.abs())
    return highest - lowest <= ROUNDING_UNITS * unit


def power_of_two(
    reward: Float[Tensor, "*axis"], *, dim: tuple[int, ...] | None = None
) -> Float[Tensor, "..."]:
    r"""Find a number that brings rewards to size 2 at most without rounding them.

    .. math:: 2^{\max(\lfloor \log_2 \max |r| \rfloor,\, 0)}

    Source:
        Ours. Squares of fp32 rewards from 2e19 on overflow, and so may distances from 2e38 on.

    Args:
        reward: Finite rewards of any shape, fp32 or fp64 [reward units]. No gradient flows.
        dim: Axes that have one number together, kept with length 1; None is all, to one number.

    Returns:
        Powers of two [reward units], at least 1.

    Examples:
        >>> power_of_two(torch.tensor([-20.0, 3.0])).item(), power_of_two(torch.zeros(2)).item()
        (16.0, 1.0)
    """
    axes, keep = (tuple(range(reward.ndim)), False) if dim is None else (dim, True)
    largest = reward.detach().abs().amax(axes, keepdim=keep)
    # A float whose bits are those of the exponent alone; not every device has `frexp`.
    whole, exponent = _EXPONENTS[largest.dtype]
    return (largest.view(whole) & exponent).view(largest.dtype).where(largest >= 1.0, 1.0)


def scaled_guard(guard: float, unit: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Bring what is added to a deviation to the size of scaled rewards; never to 0.

    Args:
        guard: Number that is added to a deviation [reward units].
        unit: From :func:`power_of_two`.

    Returns:
        The number over the unit [1], positive.

    Examples:
        >>> scaled_guard(0.5, torch.tensor(2.0)).item()
        0.25
    """
    return (guard / unit).clamp_min(torch.finfo(unit.dtype).tiny)


def standard_deviation(variance: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Take the root of a variance, with a derivative of 0 where there is none.

    Args:
        variance: Variances, not negative [(reward units)^2]. Gradient flows.

    Returns:
        Deviations [reward units].

    Examples:
        >>> variance = torch.tensor([4.0, 0.0], requires_grad=True)
        >>> deviation = standard_deviation(variance)
        >>> deviation.tolist(), torch.autograd.grad(deviation.sum(), variance)[0].tolist()
        ([2.0, 0.0], [0.25, 0.0])
    """
    none = variance == 0.0
    return variance.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0)


def standardise(reward: Float[Tensor, "*axis"], *, eps: float = 1e-8) -> Float[Tensor, "*axis"]:
    r"""Shift and scale rewards to mean 0 and standard deviation 1 over all elements.

    .. math:: A_i = \frac{r_i - \bar r}{s + \epsilon}, \qquad
        s^2 = \frac{1}{n} \sum_i (r_i - \bar r)^2

    The deviation is the population's (divide by n). Rewards are first taken relative to
    their minimum, which changes nothing in exact arithmetic. Rewards that are equal, or
    differ by their own rounding alone, see :func:`equal_up_to_rounding`, give exactly 0.

    Source:
        Released trainer of arXiv:2505.20107, which magnifies differences by rounding to size 1;
        the paper leaves the scaling open.

    Args:
        reward: Rewards of any shape, fp32 or fp64, all samples that compete
            [reward units]. Gradient flows, though rewards seldom carry any.
        eps: Added to the deviation [reward units]; positive.

    Returns:
        Standardised rewards [1], of the same shape.

    Raises:
        ValueError: If ``eps`` is not positive and finite, or if ``reward`` is empty or of
            half precision.
        NonFiniteError: If a reward is NaN or infinite.

    Examples:
        >>> standardise(torch.tensor([1.0, 3.0])).tolist()
        [-1.0, 1.0]
        >>> standardise(torch.tensor([0.1, 0.1, 0.1])).tolist()
        [0.0, 0.0, 0.0]
    """
    if not (eps > 0.0 and math.isfinite(eps)):
        msg = f"`eps` must be positive and finite; got {eps!r}; the default is 1e-8."
        raise ValueError(msg)
    check_rewards(reward=reward)
    unit = power_of_two(reward)
    scaled = reward / unit
    above_worst = scaled - scaled.min()
    centred = above_worst - above_worst.mean()
    advantage = centred / (standard_deviation(centred.square().mean()) + scaled_guard(eps, unit))
    return advantage.masked_fill(equal_up_to_rounding(scaled), 0.0)
