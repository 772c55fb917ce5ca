"""Prefer the better trajectory of a pair, as far as a logistic model of preferences asks for."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from mvczigal_ref.diffusion.precision import require_positive
from mvczigal_ref.objective.reward_difference import (
    ObjectiveStats,
    RewardDifferenceGradients,
    check_paired,
    pair_gradients,
)
from mvczigal_ref.shapes import Scalar

__all__ = ["preference_gradients", "preference_loss"]


def preference_loss(
    log_ratio_zigzag: Float[Tensor, "*sample"],
    log_ratio_standard: Float[Tensor, "*sample"],
    advantage_gap: Float[Tensor, "*sample"],
    *,
    scale: float,
    clip_range: float,
) -> tuple[Scalar, ObjectiveStats]:
    r"""Raise the log-ratio of the better arm above that of the other.

    .. math:: L = -\frac{1}{n} \sum_i \mathrm{sgn}(A_i)^2
        \log \mathrm{sigmoid}\big(\beta\, \mathrm{sgn}(A_i) (l^z_i - l^s_i)\big)

    Only the sign of the gap counts: the better arm is the winner by however little, and a tie
    teaches nothing. At the sampling snapshot each decided pair's loss is log 2.

    Source:
        The MV-DPO baseline of arXiv:2505.20107 (two standard trajectories, winner by the joint
        reward), in the family of arXiv:2305.18290 and 2311.13231 (D3PO). With log-ratios over
        the snapshot that sampled, that is the reference; over a frozen network it is D3PO's.
        Ours: decided at every step, and at every view unless densities are joint.

    Args:
        log_ratio_zigzag: :math:`l^z`, log-probability of the first arm minus that under the
            snapshot or a frozen reference, fp32 or fp64 [nats/element or nats]. Gradient flows.
        log_ratio_standard: :math:`l^s`, of the second arm. Gradient flows.
        advantage_gap: :math:`A`, first arm minus second [1]. Only its sign is read.
        scale: :math:`\beta` [1 / unit of the log-ratios]; positive.
        clip_range: Beyond it a log-ratio counts as clipped in the diagnostics; nothing is
            clipped [log-ratio unit]; positive.

    Returns:
        The loss, and its detached diagnostics.

    Raises:
        ValueError: If ``scale`` or ``clip_range`` is not positive, shapes differ, or a tensor is
            empty or half precision.

    Examples:
        >>> ratio = torch.zeros(2).requires_grad_()
        >>> loss, _ = preference_loss(
        ...     ratio, torch.zeros(2), torch.tensor([0.1, -9.0]), scale=2.0, clip_range=1.0
        ... )
        >>> torch.autograd.grad(loss, ratio)[0].tolist()
        [-0.5, 0.5]
    """
    require_positive(scale=scale)
    if not clip_range > 0.0:
        msg = f"`clip_range` must be positive; got {clip_range!r}; `math.inf` counts nothing."
        raise ValueError(msg)
    check_paired(
        log_ratio_zigzag=log_ratio_zigzag,
        log_ratio_standard=log_ratio_standard,
        advantage_gap=advantage_gap,
    )
    gap = advantage_gap.detach()
    # torch takes a gap that is not a number for a tie.
    sign = gap.sign().where(~gap.isnan(), gap)
    margin = scale * sign * (log_ratio_zigzag - log_ratio_standard)
    loss = -(sign.square() * logsigmoid(margin)).mean()
    with torch.no_grad():
        both = torch.stack([log_ratio_zigzag, log_ratio_standard])
        stats = ObjectiveStats(
            approx_kl=both.square().mean() / 2,
            clip_fraction=(both.abs() > clip_range).to(both.dtype).mean(),
        )
    return loss, stats


def preference_gradients(
    log_ratio_zigzag: Float[Tensor, "*sample"],
    log_ratio_standard: Float[Tensor, "*sample"],
    advantage_gap: Float[Tensor, "*sample"],
    *,
    scale: float,
    clip_range: float,
) -> RewardDifferenceGradients:
    """Differentiate the loss by each arm's log-probability, from the values alone.

    Source:
        The chain rule on :func:`preference_loss`, as
        :func:`~mvczigal_ref.objective.reward_difference.reward_difference_gradients`.

    Args:
        log_ratio_zigzag: Log-ratio of the first arm; only its value is read.
        log_ratio_standard: Log-ratio of the second arm; only its value is read.
        advantage_gap: First arm minus second [1].
        scale: Slope of the logistic [1 / unit of the log-ratios]; positive.
        clip_range: As in :func:`preference_loss`.

    Returns:
        Loss, diagnostics and both derivatives, detached.

    Raises:
        ValueError: As :func:`preference_loss`.

    Examples:
        >>> zero = torch.zeros(1)
        >>> preference_gradients(zero, zero, torch.ones(1), scale=2.0, clip_range=1.0).zigzag
        tensor([-1.])
    """
    loss = partial(preference_loss, scale=scale, clip_range=clip_range)
    return pair_gradients(loss, log_ratio_zigzag, log_ratio_standard, advantage_gap)
