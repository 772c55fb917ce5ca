"""Advantages of a pair of trajectories, zigzag and standard, from the same start noise."""

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.standardise import check_rewards, equal_up_to_rounding, standardise
from mvczigal_ref.diffusion.precision import require_one_shape
from mvczigal_ref.shapes import JointViewReward, PerViewReward

__all__ = [
    "AdvantageMode",
    "PairAdvantages",
    "advantage_gap",
    "joint_share",
    "pair_advantages",
    "standardise_arms",
]

AdvantageMode = Literal["constrained", "joint", "per_view", "weighted_sum"]
"""Rewards that drive the update: MVC-ZigAL, MV-ZigAL, single views, WS-ZigAL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairAdvantages:
    """Standardised rewards of both arms, before they are mixed.

    Holding raw rewards instead is allowed and gives the paper's unscaled gap.
    """

    per_view_zigzag: PerViewReward
    """Per-view advantage of the zigzag arm, one number per view [1]."""

    per_view_standard: PerViewReward
    """Per-view advantage of the standard arm, one number per view [1]."""

    joint_view_zigzag: JointViewReward
    """Joint advantage of the zigzag arm, one number per object [1]."""

    joint_view_standard: JointViewReward
    """Joint advantage of the standard arm, one number per object [1]."""


def pair_advantages(
    *,
    per_view_zigzag: PerViewReward,
    per_view_standard: PerViewReward,
    joint_view_zigzag: JointViewReward,
    joint_view_standard: JointViewReward,
    eps: float = 1e-8,
) -> PairAdvantages:
    r"""Standardise the rewards of both arms together, so that their difference keeps its sign.

    .. math:: (A^z, A^s) = \mathrm{standardise}(R^z \cup R^s)

    once over objects, views and arms for the per-view rewards and once over objects and
    arms for the joint ones; see :func:`standardise_arms`. With several processes, pass
    everybody's rewards and keep one's own objects of the result.

    Source:
        Released trainer of arXiv:2505.20107, with the joint values left one per object
        until :func:`advantage_gap` repeats them over views.

    Args:
        per_view_zigzag: Raw per-view rewards of the zigzag arm, fp32 or fp64
            [reward units].
        per_view_standard: Per-view rewards of the standard arm, object for object.
        joint_view_zigzag: Raw joint rewards of the zigzag arm [reward units].
        joint_view_standard: Joint rewards of the standard arm, object for object.
        eps: Added to each standard deviation [reward units]; positive.

    Returns:
        The standardised rewards of both arms [1].

    Raises:
        ValueError: If the tables disagree on objects or views, are empty or of half
            precision, or if ``eps`` is not positive and finite.
        NonFiniteError: If a reward is NaN or infinite; names its object and view.

    Examples:
        >>> advantages = pair_advantages(
        ...     per_view_zigzag=torch.tensor([[3.0, 3.0]]),
        ...     per_view_standard=torch.tensor([[1.0, 1.0]]),
        ...     joint_view_zigzag=torch.tensor([5.0]),
        ...     joint_view_standard=torch.tensor([5.0]),
        ... )
        >>> advantages.per_view_zigzag.tolist(), advantages.joint_view_zigzag.tolist()
        ([[1.0, 1.0]], [0.0])
    """
    check_rewards(
        per_view_zigzag=per_view_zigzag,
        per_view_standard=per_view_standard,
        joint_view_zigzag=joint_view_zigzag,
        joint_view_standard=joint_view_standard,
    )
    _check_tables(per_view_zigzag, per_view_standard, joint_view_zigzag, joint_view_standard)
    per_view = standardise_arms(per_view_zigzag, per_view_standard, eps=eps)
    joint_view = standardise_arms(joint_view_zigzag, joint_view_standard, eps=eps)
    return PairAdvantages(
        per_view_zigzag=per_view[0],
        per_view_standard=per_view[1],
        joint_view_zigzag=joint_view[0],
        joint_view_standard=joint_view[1],
    )


def standardise_arms(
    zigzag: Float[Tensor, "*axis"], standard: Float[Tensor, "*axis"], *, eps: float = 1e-8
) -> tuple[Float[Tensor, "*axis"], Float[Tensor, "*axis"]]:
    r"""Standardise one kind of reward over both arms, with equal partners exactly equal.

    .. math:: (A^z, A^s) = \mathrm{standardise}(R^z \cup R^s), \qquad
        A^s_i = A^z_i \text{ where } R^s_i = R^z_i \text{ but for rounding}

    so that an objective which reads the sign of a gap alone does not learn from rounding.

    Source:
        Ours on top of :func:`~mvczigal_ref.advantage.standardise.standardise`; see
        :func:`~mvczigal_ref.advantage.standardise.equal_up_to_rounding`.

    Args:
        zigzag: Raw rewards of the zigzag arm, fp32 or fp64 [reward units]. Gradient flows.
        standard: Rewards of the standard arm, object for object. Gradient flows.
        eps: Added to the standard deviation [reward units]; positive.

    Returns:
        Standardised rewards of both arms [1].

    Raises:
        ValueError: If shapes differ, or as
            :func:`~mvczigal_ref.advantage.standardise.standardise`.
        NonFiniteError: If a reward is NaN or infinite.

    Examples:
        >>> one, two = standardise_arms(torch.tensor([20.000002, 22.0]), torch.full((2,), 20.0))
        >>> (one - two)[0].item()
        0.0
    """
    require_one_shape(zigzag=zigzag, standard=standard)
    both = torch.stack([zigzag, standard])
    first, second = standardise(both, eps=eps)
    return first, first.where(equal_up_to_rounding(both, dim=(0,))[0], second)


def joint_share(
    mode: AdvantageMode, *, multiplier: float = 0.0, joint_weight: float = 0.0
) -> float:
    r"""Turn a mode into the share of the joint reward in the mixture.

    .. math:: m = \frac{\lambda}{1 + \lambda}
        \text{ (constrained)}, \quad 1 \text{ (joint)}, \quad 0 \text{ (per view)}, \quad
        w \text{ (weighted sum)}

    Source:
        arXiv:2505.20107, constrained reward :math:`(R + \lambda R_{mv}) / (1 + \lambda)`
        and weighted sum :math:`(1 - w) R + w R_{mv}`. The paper does not say whether the
        sum mixes raw or standardised rewards; its joint score falls at w = 0.1, which raw
        scores, twenty to fifty times apart in size, could hardly give, so here both are
        standardised.

    Args:
        mode: Rewards that drive the update.
        multiplier: :math:`\lambda` [1]; finite, not negative; read in mode
            ``"constrained"``.
        joint_weight: :math:`w` [1] in [0, 1]; read in mode ``"weighted_sum"``.

    Returns:
        The share :math:`m` [1] in [0, 1].

    Raises:
        ValueError: If ``mode`` is unknown, or a number is out of its range.

    Examples:
        >>> joint_share("constrained", multiplier=1.0)
        0.5
    """
    if not 0.0 <= multiplier < math.inf:
        msg = f"`multiplier` must be finite and not negative; got {multiplier!r}; start at 0.0."
        raise ValueError(msg)
    if not 0.0 <= joint_weight <= 1.0:
        msg = f"`joint_weight` must be in [0, 1]; got {joint_weight!r}; 0.5 weighs both alike."
        raise ValueError(msg)
    shares: dict[str, float] = {
        "constrained": multiplier / (1.0 + multiplier),
        "joint": 1.0,
        "per_view": 0.0,
        "weighted_sum": joint_weight,
    }
    if mode not in shares:
        msg = f"`mode` must be one of {sorted(shares)}; got {mode!r}."
        raise ValueError(msg)
    return shares[mode]


def advantage_gap(advantages: PairAdvantages, *, share: float) -> PerViewReward:
    r"""Mix both kinds of advantage and subtract the standard arm's from the zigzag arm's.

    .. math:: A_{b v} = (1 - m) (A^z_{b v} - A^s_{b v}) + m (M^z_b - M^s_b)

    Source:
        arXiv:2505.20107, the advantage of MVC-ZigAL; every objective it compares on pairs
        is one ``share``, see :func:`joint_share`.

    Args:
        advantages: Both arms' advantages [1]. No gradient flows through them.
        share: :math:`m`, the joint reward's part of the mixture [1] in [0, 1].

    Returns:
        Zigzag minus standard [1], one per view; positive where zigzag did better.

    Raises:
        ValueError: If ``share`` is not in [0, 1], or the tables disagree on objects or views.

    Examples:
        >>> advantages = PairAdvantages(
        ...     per_view_zigzag=torch.tensor([[1.0, -1.0]]),
        ...     per_view_standard=torch.tensor([[0.0, 0.0]]),
        ...     joint_view_zigzag=torch.tensor([1.0]),
        ...     joint_view_standard=torch.tensor([-1.0]),
        ... )
        >>> advantage_gap(advantages, share=joint_share("constrained", multiplier=1.0)).tolist()
        [[1.5, 0.5]]
    """
    if not 0.0 <= share <= 1.0:
        msg = f"`share` must be in [0, 1]; got {share!r}; compute it with `joint_share`."
        raise ValueError(msg)
    _check_tables(*(getattr(advantages, field.name) for field in fields(advantages)))
    per_view = advantages.per_view_zigzag - advantages.per_view_standard
    joint_view = advantages.joint_view_zigzag - advantages.joint_view_standard
    return ((1.0 - share) * per_view + share * joint_view[:, None]).detach()


def _check_tables(
    per_view_zigzag: Tensor,
    per_view_standard: Tensor,
    joint_view_zigzag: Tensor,
    joint_view_standard: Tensor,
) -> None:
    """Refuse tables that would broadcast; annotations are checked in tests alone."""
    if per_view_zigzag.ndim != 2:
        msg = (
            "`per_view_zigzag` must have axes of objects and views; got shape "
            f"{tuple(per_view_zigzag.shape)}; a view alone is `[:, None]`."
        )
        raise ValueError(msg)
    _check_paired("per_view_standard", per_view_standard, per_view_zigzag.shape)
    _check_paired("joint_view_zigzag", joint_view_zigzag, per_view_zigzag.shape[:1])
    _check_paired("joint_view_standard", joint_view_standard, per_view_zigzag.shape[:1])


def _check_paired(name: str, table: Tensor, shape: torch.Size) -> None:
    """Refuse a table that would broadcast against its partner."""
    if table.shape != shape:
        msg = (
            f"`{name}` must have shape {tuple(shape)} to pair with `per_view_zigzag`; got "
            f"{tuple(table.shape)}; score both arms over the same objects and views."
        )
        raise ValueError(msg)
