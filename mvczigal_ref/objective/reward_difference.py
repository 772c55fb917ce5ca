"""Regress the difference of a pair's log-ratios onto the difference of its rewards.

With two standard trajectories this is reward difference learning (RDL); with a zigzag
and a standard one it is zigzag advantage learning (ZigAL). Nothing here knows which.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_one_shape
from mvczigal_ref.shapes import Scalar

__all__ = [
    "ObjectiveStats",
    "RewardDifferenceGradients",
    "check_paired",
    "pair_gradients",
    "reward_difference_gradients",
    "reward_difference_loss",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveStats:
    """Distance of the policy from its sampling snapshot; carries no gradient."""

    approx_kl: Scalar
    """Half the mean square of the log-ratios of both arms, which estimates the KL
    divergence to second order [(log_ratio unit)^2]."""

    clip_fraction: Scalar
    """Fraction of log-ratios of both arms beyond the clip range [1], in [0, 1]."""


class RewardDifferenceGradients(NamedTuple):
    """The loss and its derivatives by each log-probability, all detached."""

    loss: Scalar
    """The loss to minimise [1]."""

    stats: ObjectiveStats
    """Diagnostics of the same evaluation."""

    zigzag: Float[Tensor, "*sample"]
    """Derivative by the zigzag arm's new log-probability [1 / log_prob unit]."""

    standard: Float[Tensor, "*sample"]
    """Derivative by the standard arm's new log-probability [1 / log_prob unit]."""


def reward_difference_loss(
    log_ratio_zigzag: Float[Tensor, "*sample"],
    log_ratio_standard: Float[Tensor, "*sample"],
    advantage_gap: Float[Tensor, "*sample"],
    *,
    clip_range: float,
    temperature: float = 1.0,
) -> tuple[Scalar, ObjectiveStats]:
    r"""Fit the log-ratio gap of each pair to its advantage gap, taking the worse of two errors.

    .. math::

        L = \frac{1}{n} \sum_i \max\Big(
            \big(\tfrac{l^z_i - l^s_i}{\eta} - A_i\big)^2,
            \big(\tfrac{c(l^z_i) - c(l^s_i)}{\eta} - A_i\big)^2 \Big),
        \qquad l = \log p_\theta - \log p_{\theta'}

    The policy that gains most for its distance from the old one, the maximum of
    :math:`\mathbb{E}_\pi[a] - \tfrac{1}{\eta} \mathrm{KL}(\pi \,\|\, \pi_{\theta'})`, has
    :math:`l = \eta a - \log Z`. Nobody knows :math:`Z`, a mean over everything that the prompt
    can give, but both samples of a pair have the same: in their difference it is gone, and what
    remains, :math:`l^z - l^s = \eta (a^z - a^s) = \eta A`, is what the loss asks for.

    Here :math:`c` clamps to :math:`\pm` ``clip_range``. Once clipping makes an error the
    larger one, its derivative by the clamped log-ratio is 0: the pair stops pulling the
    policy further. At :math:`\theta = \theta'` the gradient is
    :math:`-\tfrac{2}{\eta} \mathbb{E}[A (\nabla l^z - \nabla l^s)]`, a policy gradient.

    Source:
        arXiv:2505.20107, the ZigAL loss; ``clip_range=math.inf`` is that form. The clip is
        in the released trainer alone, which has :math:`\eta = 1`.

    Args:
        log_ratio_zigzag: :math:`l^z`, fp32 or fp64, any shape [nats, or nats/element where
            log-densities are means]. Gradient flows.
        log_ratio_standard: :math:`l^s` of the partner at the same index [same unit].
            Gradient flows.
        advantage_gap: :math:`A`, zigzag minus standard [1]. No gradient flows.
        clip_range: Largest trusted log-ratio, either sign [log-ratio unit]; positive,
            ``math.inf`` for no clip.
        temperature: :math:`\eta` [log-ratio unit per advantage]; positive and finite.
            Not the sampler's ``eta``.

    Returns:
        The mean over all elements, and its detached diagnostics.

    Raises:
        ValueError: If a setting is out of its range, if shapes differ, or if an input is empty
            or of half precision, in which rounding alone exceeds the clip range.

    Examples:
        >>> zigzag, standard = torch.tensor([0.3]), torch.tensor([-0.2])
        >>> loss, stats = reward_difference_loss(
        ...     zigzag, standard, torch.tensor([1.0]), clip_range=0.25
        ... )
        >>> round(loss.item(), 4), stats.clip_fraction.item()
        (0.3025, 0.5)
    """
    _check_setting("clip_range", clip_range, math.inf)
    _check_setting("temperature", temperature, math.nextafter(math.inf, 0.0))
    check_paired(
        log_ratio_zigzag=log_ratio_zigzag,
        log_ratio_standard=log_ratio_standard,
        advantage_gap=advantage_gap,
    )
    target = advantage_gap.detach()
    both = torch.stack([log_ratio_zigzag, log_ratio_standard])
    near = both.clamp(-clip_range, clip_range)
    error = (both[0] - both[1]) / temperature - target
    near_error = (near[0] - near[1]) / temperature - target
    loss = torch.maximum(error.square(), near_error.square()).mean()
    with torch.no_grad():
        stats = ObjectiveStats(
            approx_kl=both.square().mean() / 2,
            clip_fraction=(both.abs() > clip_range).to(both.dtype).mean(),
        )
    return loss, stats


def reward_difference_gradients(
    log_ratio_zigzag: Float[Tensor, "*sample"],
    log_ratio_standard: Float[Tensor, "*sample"],
    advantage_gap: Float[Tensor, "*sample"],
    *,
    clip_range: float,
    temperature: float = 1.0,
) -> RewardDifferenceGradients:
    r"""Differentiate the loss by each arm's log-probability, from the values alone.

    .. math:: \frac{dL}{d\theta} = \sum_i
        \frac{\partial L}{\partial l^z_i} \frac{d \log p_\theta(z_i)}{d\theta}
        + \frac{\partial L}{\partial l^s_i} \frac{d \log p_\theta(s_i)}{d\theta}

    so one arm can be replayed, multiplied by its factor and sent backward
    (``log_prob.backward(gradients.zigzag)``) before the other arm's graph exists: peak
    memory is one arm's. A sampling snapshot's log-probability is a constant, so the
    derivative by the log-ratio is that by the log-probability.

    Source:
        The chain rule on :func:`reward_difference_loss`, of which this is a call.

    Args:
        log_ratio_zigzag: :math:`l^z`; see :func:`reward_difference_loss`. Only its value
            is read.
        log_ratio_standard: :math:`l^s`; only its value is read.
        advantage_gap: :math:`A`, zigzag minus standard [1].
        clip_range: Largest trusted log-ratio [log-ratio unit]; positive.
        temperature: :math:`\eta` [log-ratio unit per advantage]; positive and finite.

    Returns:
        Loss, diagnostics and both derivatives, detached.

    Raises:
        ValueError: As :func:`reward_difference_loss`.

    Examples:
        >>> zero = torch.zeros(2)
        >>> gradients = reward_difference_gradients(
        ...     zero, zero, torch.tensor([1.0, -1.0]), clip_range=0.1
        ... )
        >>> gradients.zigzag.tolist(), gradients.standard.tolist()
        ([-1.0, 1.0], [1.0, -1.0])
    """
    loss = partial(reward_difference_loss, clip_range=clip_range, temperature=temperature)
    return pair_gradients(loss, log_ratio_zigzag, log_ratio_standard, advantage_gap)


def pair_gradients(
    pair_loss: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ObjectiveStats]],
    log_ratio_zigzag: Float[Tensor, "*sample"],
    log_ratio_standard: Float[Tensor, "*sample"],
    advantage_gap: Float[Tensor, "*sample"],
) -> RewardDifferenceGradients:
    """Differentiate any pair loss by each arm's log-probability, from the values alone.

    Source:
        The chain rule, see :func:`reward_difference_gradients`.

    Args:
        pair_loss: From both log-ratios and the advantage gap to loss and diagnostics.
        log_ratio_zigzag: Log-ratio of the first arm; only its value is read.
        log_ratio_standard: Log-ratio of the second arm; only its value is read.
        advantage_gap: First arm minus second [1].

    Returns:
        Loss, diagnostics and both derivatives, detached.
    """
    # Switches gradients on too; values of an inference mode are copied, as autograd refuses them.
    with torch.inference_mode(False):
        zigzag = log_ratio_zigzag.detach().clone().requires_grad_()
        standard = log_ratio_standard.detach().clone().requires_grad_()
        loss, stats = pair_loss(zigzag, standard, advantage_gap.detach().clone())
        by_zigzag, by_standard = torch.autograd.grad(loss, (zigzag, standard))
    return RewardDifferenceGradients(loss.detach(), stats, by_zigzag, by_standard)


def _check_setting(name: str, value: float, largest: float) -> None:
    """Refuse a setting that is not positive; NaN compares false and is refused too."""
    if not 0.0 < value <= largest:
        finite = "" if largest == math.inf else " and finite"
        msg = f"`{name}` must be positive{finite}; got {value!r}."
        raise ValueError(msg)


def check_paired(**tensors: Tensor) -> None:
    """Refuse tensors that are empty, would broadcast or round; annotations are for tests alone.

    Args:
        **tensors: Tensors of one shape, by the name of their argument.

    Raises:
        ValueError: If a tensor is half precision or has not the shape of the first, or the first
            is empty.
    """
    require_one_shape(**tensors)
    first, expected = next((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    if 0 in expected:
        msg = f"`{first}` must not be empty; got shape {expected}; a mean of nothing is no number."
        raise ValueError(msg)
