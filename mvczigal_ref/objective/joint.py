"""Log-ratios of whole objects: all views of one are one action."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.gaussian import joint_log_prob
from mvczigal_ref.objective.reward_difference import RewardDifferenceGradients

__all__ = ["joint_gradients", "joint_log_ratio"]


def joint_log_ratio(log_ratio: Float[Tensor, "*object view"]) -> Float[Tensor, "*object"]:
    r"""Add up the views of an object.

    .. math:: l = \sum_v \big(\log p_\theta(x^v) - \log p_{\theta'}(x^v)\big)
        = \log \frac{\pi_\theta(a | s)}{\pi_{\theta'}(a | s)}

    Given the state, the views of an action are independent Gaussians.

    Source:
        arXiv:2505.20107, its unified Markov decision process; the released trainer keeps views
        apart.

    Args:
        log_ratio: Log-ratio of every view, views last [nats, or nats/element]. Gradient flows.

    Returns:
        One number per object [unit of ``log_ratio``].

    Examples:
        >>> import torch
        >>> joint_log_ratio(torch.tensor([[0.5, 0.25], [0.0, -1.0]])).tolist()
        [0.75, -1.0]
    """
    return joint_log_prob(log_ratio, reduction="sum")


def joint_gradients(
    objective: Callable[[Tensor, Tensor, Tensor], RewardDifferenceGradients],
    log_ratio_zigzag: Float[Tensor, "*object view"],
    log_ratio_standard: Float[Tensor, "*object view"],
    advantage_gap: Float[Tensor, "*object view"],
) -> RewardDifferenceGradients:
    r"""Differentiate a pair loss of joint log-ratios by every view's log-probability.

    .. math:: L = L\Big(\sum_v l^z_v,\ \sum_v l^s_v,\ \frac{1}{V} \sum_v A_v\Big), \qquad
        \frac{\partial L}{\partial l_v} = \frac{\partial L}{\partial l}

    A clip range and a temperature are in the unit of the sum, which is V times that of a view
    where all views move alike.

    Source:
        The chain rule on :func:`joint_log_ratio`.

    Args:
        objective: Pair loss and its derivatives, one number per object.
        log_ratio_zigzag: Log-ratio of the first arm's views; only its value is read.
        log_ratio_standard: Log-ratio of the second arm's views.
        advantage_gap: First arm minus second, of every view [1]; their mean is the object's.

    Returns:
        Loss and diagnostics of objects, derivatives of every view, detached.

    Examples:
        >>> import torch
        >>> from functools import partial
        >>> from mvczigal_ref.objective.preference import preference_gradients
        >>> loss = partial(preference_gradients, scale=2.0, clip_range=1.0)
        >>> zero = torch.zeros(1, 2)
        >>> joint_gradients(loss, zero, zero, torch.tensor([[3.0, -1.0]])).zigzag.tolist()
        [[-1.0, -1.0]]
    """
    gradients = objective(
        joint_log_ratio(log_ratio_zigzag),
        joint_log_ratio(log_ratio_standard),
        advantage_gap.mean(dim=-1),
    )
    return gradients._replace(
        zigzag=gradients.zigzag[..., None].expand_as(log_ratio_zigzag),
        standard=gradients.standard[..., None].expand_as(log_ratio_standard),
    )
