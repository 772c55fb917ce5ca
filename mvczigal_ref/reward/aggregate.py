"""Pure arithmetic on reward tables: no scorer, no device choice, no state.

Every function treats each object on its own: permuting or slicing the objects of the input
permutes or slices those of the output.
"""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.shapes import JointViewReward, PerViewReward

__all__ = ["joint_to_views", "mean_over_views", "weighted_sum"]


def weighted_sum(
    tables: Mapping[str, Float[Tensor, "*entry"]], *, weights: Mapping[str, float]
) -> Float[Tensor, "*entry"]:
    r"""Add the tables of several scorers, each times its weight.

    .. math:: R = \sum_k w_k R_k

    Args:
        tables: Raw rewards by scorer name, all of one shape, per view or joint
            [reward units]. Gradient flows.
        weights: One finite weight for every name in ``tables``, and no other
            [1 / reward units]; negative ones turn a reward into a penalty.

    Returns:
        The combined table, of the same shape.

    Raises:
        ValueError: If there is no table, if the names of ``weights`` and ``tables``
            differ, if a weight is not finite, or if shapes differ.

    Examples:
        >>> import torch
        >>> tables = {"sharp": torch.tensor([[1.0, 2.0]]), "plain": torch.tensor([[10.0, 0.0]])}
        >>> weighted_sum(tables, weights={"sharp": 1.0, "plain": 0.5}).tolist()
        [[6.0, 2.0]]
    """
    if not tables:
        msg = "`tables` must hold at least one reward table; got none; name a scorer."
        raise ValueError(msg)
    if tables.keys() != weights.keys():
        msg = (
            f"`weights` must name the scorers of `tables` {sorted(tables)}; got "
            f"{sorted(weights)}; give each scorer one weight."
        )
        raise ValueError(msg)
    shapes = {name: tuple(table.shape) for name, table in tables.items()}
    # A joint table would silently broadcast over views; `joint_to_views` is explicit.
    if len(set(shapes.values())) > 1:
        msg = f"`tables` must share one shape; got {shapes}; expand with `joint_to_views`."
        raise ValueError(msg)
    for name, weight in weights.items():
        if not math.isfinite(weight):
            msg = f"`weights` must be finite; got {weight!r} for {name!r}; use 0.0 to drop it."
            raise ValueError(msg)
    first, *rest = (weights[name] * table for name, table in tables.items())
    return sum(rest, start=first)


def mean_over_views(per_view_reward: PerViewReward) -> JointViewReward:
    r"""Average each object's rewards over its views.

    .. math:: \bar R_b = \frac{1}{V} \sum_v R_{b v}

    Args:
        per_view_reward: One reward per view [reward units]; at least one view. Gradient
            flows.

    Returns:
        One reward per object [reward units].

    Raises:
        ValueError: If there is no view to average over.

    Examples:
        >>> import torch
        >>> mean_over_views(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist()
        [2.0, 0.0]
    """
    if per_view_reward.shape[-1] == 0:
        msg = (
            f"`per_view_reward` must have at least one view; got shape "
            f"{tuple(per_view_reward.shape)}; score the views first."
        )
        raise ValueError(msg)
    return per_view_reward.mean(dim=-1)


def joint_to_views(joint_view_reward: JointViewReward, *, num_views: int) -> PerViewReward:
    r"""Give every view of an object the object's joint reward.

    .. math:: R_{b v} = R_b

    Args:
        joint_view_reward: One reward per object [reward units]. Gradient flows.
        num_views: Views per object [1]; positive.

    Returns:
        A read-only expansion with one reward per view [reward units]; no memory is copied.

    Raises:
        ValueError: If ``num_views`` is not positive.

    Examples:
        >>> import torch
        >>> joint_to_views(torch.tensor([1.0, 2.0]), num_views=3).tolist()
        [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    if num_views < 1:
        msg = f"`num_views` must be positive; got {num_views!r}; pass the rig's `num_views`."
        raise ValueError(msg)
    return joint_view_reward[:, None].expand(-1, num_views)
