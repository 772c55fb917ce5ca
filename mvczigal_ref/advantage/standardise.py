"""Standardise rewards over everything that was sampled together."""

import math

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_full_precision
from mvczigal_ref.errors import NonFiniteError

__all__ = ["check_rewards", "standardise"]


def check_rewards(**tables: Float[Tensor, "..."]) -> None:
    """Refuse reward tables that are empty, narrow or not finite, saying where.

    Reads each table back from its device once; keep it out of sampling steps.

    Args:
        **tables: Rewards of shape ``(object,)`` or ``(object, view)``, under the name that
            the caller knows them by; in any other shape the message gives no index.

    Raises:
        ValueError: If a table is empty or of half precision.
        NonFiniteError: If a reward is NaN or infinite.

    Examples:
        >>> import torch
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


def standardise(reward: Float[Tensor, "*axis"], *, eps: float = 1e-8) -> Float[Tensor, "*axis"]:
    r"""Shift and scale rewards to mean 0 and standard deviation 1 over all elements.

    .. math:: A_i = \frac{r_i - \bar r}{s + \epsilon}, \qquad
        s^2 = \frac{1}{n} \sum_i (r_i - \bar r)^2

    The deviation is the population's (divide by n). Rewards are first taken relative to
    their minimum, which changes nothing in exact arithmetic and makes constant rewards
    give exactly 0 in floating point.

    Source:
        Released trainer of arXiv:2505.20107; the paper leaves the scaling open.

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
        >>> import torch
        >>> standardise(torch.tensor([1.0, 3.0])).tolist()
        [-1.0, 1.0]
        >>> standardise(torch.tensor([0.1, 0.1, 0.1])).tolist()
        [0.0, 0.0, 0.0]
    """
    if not (eps > 0.0 and math.isfinite(eps)):
        msg = f"`eps` must be positive and finite; got {eps!r}; the default is 1e-8."
        raise ValueError(msg)
    check_rewards(reward=reward)
    above_worst = reward - reward.min()
    centred = above_worst - above_worst.mean()
    return centred / (centred.square().mean().sqrt() + eps)
