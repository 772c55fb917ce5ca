"""Intervals by resampling seeds and prompts, and the probability of improvement.

Source:
    The form is that of Agarwal et al. 2021, arXiv:2108.13264 (rliable). Theirs draws the runs of
    each task; here every run meets the same prompts, so prompts are drawn once for all seeds of a
    draw (Owen 2007, "The pigeonhole bootstrap"): drawn within each seed, the luck of a prompt would
    count once per seed and the intervals would be too short.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["DRAWS", "Interval", "improvement", "interval", "resampled_means", "student_quantile"]

DRAWS = 4000
"""Resamples of an interval [draws]."""

_TAIL = 0.025  # on either side of 95 %


@dataclass(frozen=True, slots=True)
class Interval:
    """Estimate with its 95 % interval."""

    estimate: float
    """Value of the whole sample."""

    low: float
    """Lower end."""

    high: float
    """Upper end."""


def resampled_means(
    tables: Float[Tensor, "table seed prompt"], *, draws: int = DRAWS, generator: torch.Generator
) -> Float[Tensor, "draw table"]:
    """Average every table over seeds and prompts drawn with replacement, the same for all tables.

    Args:
        tables: Tables whose rows and columns belong together.
        draws: Resamples.
        generator: CPU generator of the draws.

    Returns:
        Means, fp64, in the tables' unit.

    Examples:
        >>> resampled_means(torch.ones(1, 2, 3), draws=2, generator=torch.Generator())
        tensor([[1.],
                [1.]], dtype=torch.float64)
    """
    _, seeds, prompts = tables.shape
    of_seeds, of_prompts = (_weights(n, draws, generator) for n in (seeds, prompts))
    return torch.einsum("ds,tsp,dp->dt", of_seeds, tables.double(), of_prompts)


def interval(draws: Float[Tensor, " draw"], *, estimate: float, seeds: int) -> Interval:
    r"""Take the percentiles of resamples, widened for the small number of seeds.

    .. math:: \hat g + \left(q - \hat g\right) \frac{t_{S-1}}{z} \sqrt{\frac{S}{S - 1}}

    Source:
        Hesterberg 2015, "What Teachers Should Know About the Bootstrap", the expanded percentile
        interval, which moves the percentiles' levels by the same factors. Levels of five values
        end at their range, so here the distances are widened.

    Args:
        draws: Estimates of resamples.
        estimate: Estimate of the whole sample.
        seeds: Number S of seeds; one leaves the percentiles as they are.

    Returns:
        The estimate with both ends.

    Examples:
        >>> interval(torch.arange(41.0), estimate=20.0, seeds=1)
        Interval(estimate=20.0, low=1.0, high=39.0)
    """
    wider = 1.0
    if seeds > 1:
        normal = NormalDist().inv_cdf(1 - _TAIL)
        wider = student_quantile(seeds - 1) / normal * math.sqrt(seeds / (seeds - 1))
    ends = torch.quantile(draws.double(), torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64))
    low, high = (estimate + wider * (end - estimate) for end in ends.tolist())
    return Interval(estimate, low, high)


def improvement(
    first: Float[Tensor, "seed prompt"],
    second: Float[Tensor, "other_seed prompt"],
    *,
    draws: int = DRAWS,
    generator: torch.Generator,
) -> Interval:
    r"""Estimate the probability that a run of one arm gains more on a prompt than one of another.

    .. math:: P(X > Y) = \mathrm{mean}_{p, i, j}
        \left([x_{ip} > y_{jp}] + \tfrac{1}{2} [x_{ip} = y_{jp}]\right)

    Source:
        arXiv:2108.13264; prompts stand for its tasks.

    Args:
        first: Gains :math:`x` [reward units].
        second: Gains :math:`y` on the same prompts [reward units].
        draws: Resamples; runs of both arms are drawn apart, prompts for both.
        generator: CPU generator of the draws.

    Returns:
        Probability and its plain percentile interval [1], which a widening would carry out of
        [0, 1].

    Examples:
        >>> one, other = torch.ones(2, 3), torch.zeros(2, 3)
        >>> improvement(one, other, generator=torch.Generator()).estimate
        1.0
    """
    gap = first[:, None].double() - second[None].double()
    better = 0.5 * (1.0 + gap.sign())
    runs, others, prompts = better.shape
    x, y, p = (_weights(n, draws, generator) for n in (runs, others, prompts))
    means = torch.einsum("di,ijp,dj,dp->d", x, better, y, p).clamp(0.0, 1.0)
    ends = torch.quantile(means, torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)).tolist()
    low, high = (round(end, 9) for end in ends)
    return Interval(float(better.mean()), low, high)


def student_quantile(degrees: int) -> float:
    r"""Give the t that bounds 95 % of Student's distribution, on both sides.

    Source:
        The finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4, inverted by halving.

    Args:
        degrees: Degrees of freedom; at least 1.

    Returns:
        The quantile [1].

    Examples:
        >>> round(student_quantile(4), 3)
        2.776
    """
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 1 - 2 * _TAIL else (low, middle)
    return high


def _within(bound: float, degrees: int) -> float:
    """Give the probability that Student's t lies within a bound on both sides."""
    angle = math.atan(bound / math.sqrt(degrees))
    odd, term, total = degrees % 2, 1.0, 0.0
    cosine = math.cos(angle)
    for power in range(odd, degrees - 1, 2):
        term = cosine if power == 1 else term
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inner = math.sin(angle) * total
    return 2 / math.pi * (angle + inner) if odd else inner


def _weights(
    count: int, draws: int, generator: torch.Generator
) -> Float[Tensor, "draw member"]:  # fmt: skip
    """Draw members with replacement, as often as there are, and give each one's share."""
    chosen = torch.randint(count, (draws, count), generator=generator)
    ones = torch.ones(draws, count, dtype=torch.float64)
    return torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, chosen, ones) / count
