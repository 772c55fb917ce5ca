"""Advantages within groups: each sample against the others of its prompt.

A group is whatever was sampled to be compared: the samples of a prompt (Flow-GRPO), the same
samples under one condition (MV-GRPO), the branches of one trunk at one step (TempFlow-GRPO).
It is the last axis of a table; every axis before it counts groups.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.advantage.standardise import (
    equal_up_to_rounding,
    power_of_two,
    scaled_guard,
    standard_deviation,
)
from mvczigal_ref.diffusion.precision import (
    require_choice,
    require_full_precision,
    require_positive,
)
from mvczigal_ref.errors import NonFiniteError

__all__ = [
    "CombineRewards",
    "GroupSpread",
    "combined_group_advantages",
    "group_advantages",
    "ragged_group_advantages",
]

GroupSpread = Literal["group", "batch"]
"""Samples whose standard deviation divides: each group's own, or those of all groups."""

CombineRewards = Literal["advantages", "rewards"]
"""Standardise each reward and add the results, or add the rewards and standardise the sum."""


def group_advantages(
    reward: Float[Tensor, "*group sample"],
    *,
    spread: GroupSpread = "group",
    ddof: int = 0,
    delta: float = 1e-4,
    clip: float = math.inf,
) -> Float[Tensor, "*group sample"]:
    r"""Standardise rewards within each group.

    .. math:: A_{g i} = c\Big(\frac{r_{g i} - \bar r_g}{s + \delta}\Big), \qquad
        s^2 = \frac{1}{n - d} \sum (r - \bar r)^2

    where the sum runs over the group, or over the whole batch around the batch's mean, and
    :math:`c` clamps. The samples of a group that were all scored alike, but for rounding, get
    exactly 0: see :func:`~mvczigal_ref.advantage.standardise.equal_up_to_rounding`.

    Source:
        arXiv:2505.05470 (Flow-GRPO); its released code has ``spread="batch"``, ``ddof=0``,
        ``delta=1e-4``, ``clip=5.0``. arXiv:2505.07818 (DanceGRPO) has ``spread="group"``,
        ``ddof=1``. arXiv:2603.12648 (MV-GRPO) passes ``(condition, sample)``, arXiv:2508.04324
        (TempFlow-GRPO) ``(step, trunk, branch)``. With several processes, pass everybody's
        groups wherever ``spread="batch"``.

    Args:
        reward: Rewards, the group's samples last, fp32 or fp64 [reward units]. Gradient
            flows, though rewards seldom carry any.
        spread: Samples whose deviation divides.
        ddof: 0 to divide by n, 1 by n - 1.
        delta: Added to each deviation [reward units]; positive.
        clip: Largest magnitude kept [1]; positive, ``math.inf`` for no clip.

    Returns:
        Advantages [1], of the same shape.

    Raises:
        ValueError: If a setting is out of its range, or if ``reward`` is empty, of half
            precision, or of one sample where ``ddof`` is 1.
        NonFiniteError: If a reward is NaN or infinite; names its index.

    Examples:
        >>> group_advantages(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), delta=1e-8).tolist()
        [[-1.0, 1.0], [0.0, 0.0]]
    """
    _check_settings(spread=spread, ddof=ddof, delta=delta, clip=clip)
    _check_table("reward", reward)
    if reward.ndim == 0:
        msg = "`reward` must have the group's samples as its last axis; got a number; stack them."
        raise ValueError(msg)
    count = reward.shape[-1] if spread == "group" else reward.numel()
    _check_count(count, ddof, spread)
    competing = (-1,) if spread == "group" else tuple(range(reward.ndim))
    unit = power_of_two(reward, dim=competing)
    scaled = reward / unit
    squares = _centred(scaled, dim=competing).square().sum(dim=competing, keepdim=True)
    deviation = standard_deviation(squares / (count - ddof))
    centred = _centred(scaled, dim=(-1,))
    centred = centred.masked_fill(equal_up_to_rounding(scaled, dim=(-1,)), 0.0)
    return (centred / (deviation + scaled_guard(delta, unit))).clamp(-clip, clip)


def ragged_group_advantages(
    reward: Float[Tensor, " sample"],
    group: Int[Tensor, " sample"],
    *,
    spread: GroupSpread = "group",
    ddof: int = 0,
    delta: float = 1e-4,
    clip: float = math.inf,
) -> Float[Tensor, " sample"]:
    r"""Standardise rewards within groups of any sizes, one label per sample.

    The equation is that of :func:`group_advantages`; the order of samples does not matter.

    Source:
        Flow-GRPO's released per-prompt tracker, which has to be cleared every round: a second
        one raises. Here nothing is kept.

    Args:
        reward: Rewards, fp32 or fp64 [reward units]. Gradient flows.
        group: Group that each sample belongs to; any integers.
        spread: Samples whose deviation divides.
        ddof: 0 to divide by n, 1 by n - 1.
        delta: Added to each deviation [reward units]; positive.
        clip: Largest magnitude kept [1]; positive, ``math.inf`` for no clip.

    Returns:
        Advantages [1], in the order of ``reward``.

    Raises:
        ValueError: As :func:`group_advantages`, or if ``reward`` has not one axis or the lengths
            differ.
        NonFiniteError: If a reward is NaN or infinite; names its index.

    Examples:
        >>> reward, group = torch.tensor([1.0, 5.0, 3.0]), torch.tensor([7, 4, 7])
        >>> ragged_group_advantages(reward, group, delta=1e-8).tolist()
        [-1.0, 0.0, 1.0]
    """
    _check_settings(spread=spread, ddof=ddof, delta=delta, clip=clip)
    _check_table("reward", reward)
    if reward.ndim != 1:
        shape = tuple(reward.shape)
        msg = f"`reward` must have one axis, of samples; got shape {shape}; flatten it."
        raise ValueError(msg)
    if group.shape != reward.shape:
        msg = (
            f"`group` must label each of the {tuple(reward.shape)} rewards; got shape "
            f"{tuple(group.shape)}; give one integer per sample."
        )
        raise ValueError(msg)
    advantage = torch.zeros_like(reward)
    # A batch has few groups, and a group's own call keeps one definition of the equation.
    if spread == "batch":
        _check_count(reward.numel(), ddof, spread)
        unit = power_of_two(reward)
        scaled = reward / unit
        squares = _centred(scaled, dim=(0,)).square().sum()
        deviation = standard_deviation(squares / (reward.numel() - ddof)) + scaled_guard(
            delta, unit
        )
    for label in group.unique().tolist():
        members = group == label
        if spread == "group":
            advantage[members] = group_advantages(
                reward[members], ddof=ddof, delta=delta, clip=clip
            )
        else:
            alike = equal_up_to_rounding(scaled[members])
            centred = _centred(scaled[members], dim=(0,)).masked_fill(alike, 0.0)
            advantage[members] = (centred / deviation).clamp(-clip, clip)
    return advantage


def combined_group_advantages(
    rewards: Mapping[str, Float[Tensor, "*group sample"]],
    *,
    weights: Mapping[str, float],
    combine: CombineRewards = "advantages",
    spread: GroupSpread = "group",
    ddof: int = 0,
    delta: float = 1e-4,
    clip: float = math.inf,
) -> Float[Tensor, "*group sample"]:
    r"""Make one advantage of several rewards.

    .. math:: A = c\Big(\sum_k w_k\, A(R_k)\Big) \text{ (advantages)}, \qquad
        A = c\Big(A\Big(\sum_k w_k R_k\Big)\Big) \text{ (rewards)}

    By advantage every reward pulls with its weight whatever its unit; by reward the one of
    the largest spread leads.

    Source:
        arXiv:2507.21802 (MixGRPO) combines advantages, Flow-GRPO's released code rewards.

    Args:
        rewards: Tables by scorer, of one shape, the group's samples last [reward units].
        weights: One finite weight for every name in ``rewards`` [1, or 1 / reward units].
        combine: Numbers that are added: rewards or advantages.
        spread: Samples whose deviation divides.
        ddof: 0 to divide by n, 1 by n - 1.
        delta: Added to each deviation [reward units]; positive.
        clip: Largest magnitude of the result [1]; positive, ``math.inf`` for no clip.

    Returns:
        Advantages [1], of the shape of one table.

    Raises:
        ValueError: As :func:`group_advantages`, or if there is no table, if names or shapes
            differ, if a weight is non-finite, or if ``combine`` is unknown.
        NonFiniteError: If a reward is NaN or infinite; names its table and index.

    Examples:
        >>> rewards = {"sharp": torch.tensor([0.0, 1.0]), "warm": torch.tensor([90.0, 0.0])}
        >>> weights = {"sharp": 2.0, "warm": 1.0}
        >>> combined_group_advantages(rewards, weights=weights, delta=1e-8).tolist()
        [-1.0, 1.0]
        >>> combined_group_advantages(
        ...     rewards, weights=weights, combine="rewards", delta=1e-8
        ... ).tolist()
        [1.0, -1.0]
    """
    require_choice("combine", combine, ("advantages", "rewards"))
    _check_settings(spread=spread, ddof=ddof, delta=delta, clip=clip)
    _check_tables(rewards, weights)
    if combine == "rewards":
        terms = [weights[name] * table for name, table in rewards.items()]
    else:
        terms = [
            weights[name] * group_advantages(table, spread=spread, ddof=ddof, delta=delta)
            for name, table in rewards.items()
        ]
    total = sum(terms[1:], start=terms[0])
    if combine == "rewards":
        return group_advantages(total, spread=spread, ddof=ddof, delta=delta, clip=clip)
    return total.clamp(-clip, clip)


def _centred(reward: Tensor, *, dim: tuple[int, ...]) -> Tensor:
    """Take rewards relative to their mean; first to their minimum, so that equal ones give 0."""
    above_worst = reward - reward.amin(dim=dim, keepdim=True)
    return above_worst - above_worst.mean(dim=dim, keepdim=True)


def _check_settings(*, spread: str, ddof: int, delta: float, clip: float) -> None:
    """Refuse a setting out of its range; NaN compares false and is refused too."""
    require_choice("spread", spread, ("group", "batch"))
    if ddof not in (0, 1):
        msg = f"`ddof` must be 0 (divide by n) or 1 (by n - 1); got {ddof!r}."
        raise ValueError(msg)
    require_positive(delta=delta)
    if not clip > 0.0:
        msg = f"`clip` must be positive; got {clip!r}; `math.inf` keeps every advantage."
        raise ValueError(msg)


def _check_count(count: int, ddof: int, spread: str) -> None:
    """Refuse to divide by nothing."""
    if count <= ddof:
        msg = (
            f"`ddof` must be less than the samples of a {spread}, {count}; got {ddof}; use 0, "
            "or sample more."
        )
        raise ValueError(msg)


def _check_table(name: str, reward: Tensor) -> None:
    """Refuse rewards that are empty, narrow or non-finite, saying where."""
    require_full_precision(**{name: reward})
    if reward.numel() == 0:
        msg = f"`{name}` must not be empty; got shape {tuple(reward.shape)}; score a sample."
        raise ValueError(msg)
    bad = (~reward.isfinite()).nonzero().tolist()
    if bad:
        value = reward[tuple(bad[0])].item()
        raise NonFiniteError(f"{name}{bad[0]}", value=value)


def _check_tables(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    """Refuse tables that cannot be added, each with the name of its scorer."""
    if not rewards or rewards.keys() != weights.keys():
        msg = (
            f"`weights` must name the scorers of `rewards`, at least one, {sorted(rewards)}; got "
            f"{sorted(weights)}; give each scorer one weight."
        )
        raise ValueError(msg)
    shapes = {name: tuple(table.shape) for name, table in rewards.items()}
    if len(set(shapes.values())) > 1:
        msg = f"`rewards` must share one shape; got {shapes}; score the same samples."
        raise ValueError(msg)
    for name, weight in weights.items():
        if not math.isfinite(weight):
            msg = f"`weights` must be finite; got {weight!r} for {name!r}; use 0.0 to drop it."
            raise ValueError(msg)
        _check_table(f"rewards[{name!r}]", rewards[name])
