"""One ratio for a whole trajectory, and its clip, where others clip every step by itself."""

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_full_precision
from mvczigal_ref.objective.clipped import SurrogateStats, clipped_surrogate_loss
from mvczigal_ref.objective.reward_difference import check_paired
from mvczigal_ref.shapes import Scalar

__all__ = ["sequence_log_ratio", "sequence_loss", "through_sequence"]


def sequence_log_ratio(log_ratio: Float[Tensor, "*sample step"]) -> Float[Tensor, "*sample"]:
    r"""Average a trajectory's log-ratios: the logarithm of the geometric mean of its ratios.

    .. math:: \log s_i = \frac{1}{T} \sum_t \big(\log p_\theta(x^i_{t-1} | x^i_t)
        - \log p_{\theta'}(x^i_{t-1} | x^i_t)\big)

    Source:
        arXiv:2507.18071 (GSPO), its sequence-level ratio; a token there is a trained step here.

    Args:
        log_ratio: Log-ratio of every trained step, steps last, fp32 or fp64 [nats, or
            nats/element]. Gradient flows.

    Returns:
        One number per trajectory [unit of ``log_ratio``].

    Raises:
        ValueError: If ``log_ratio`` has no step or is of half precision.

    Examples:
        >>> import torch
        >>> sequence_log_ratio(torch.tensor([[0.5, -0.25, 0.5]])).tolist()
        [0.25]
    """
    require_full_precision(log_ratio=log_ratio)
    if log_ratio.ndim == 0 or log_ratio.shape[-1] == 0:
        msg = (
            f"`log_ratio` must have steps as its last axis; got shape {tuple(log_ratio.shape)}; "
            "train a step."
        )
        raise ValueError(msg)
    return log_ratio.mean(dim=-1)


def sequence_loss(
    log_ratio: Float[Tensor, "*sample step"],
    advantage: Float[Tensor, "*sample"],
    *,
    clip_range: float,
) -> tuple[Scalar, SurrogateStats]:
    r"""Raise the sequence-level ratios of what did better than its group, as far as trusted.

    .. math:: L = \frac{1}{n} \sum_i \max\big(-A_i s_i,\; -A_i\, c(s_i)\big)

    with :math:`s` of :func:`sequence_log_ratio` and :math:`c` the clamp to :math:`1 \pm`
    ``clip_range``: a trajectory is trusted or clipped as a whole.

    Source:
        arXiv:2507.18071 (GSPO). Published clips, 3e-4 and 4e-4, are of a language model's tokens.

    Args:
        log_ratio: Log-ratio of every trained step, steps last [nats, or nats/element]. Gradient
            flows.
        advantage: :math:`A` of each trajectory [1]. No gradient flows.
        clip_range: Largest trusted change of a sequence's ratio [1]; positive.

    Returns:
        The loss, and its detached diagnostics of the sequences' ratios.

    Raises:
        ValueError: As :func:`sequence_log_ratio` and
            :func:`~mvczigal_ref.objective.clipped.clipped_surrogate_loss`.

    Examples:
        >>> import torch
        >>> log_ratio = torch.tensor([[0.2, -0.2], [0.4, 0.4]]).requires_grad_()
        >>> loss, stats = sequence_loss(log_ratio, torch.ones(2), clip_range=0.1)
        >>> loss.backward()
        >>> log_ratio.grad.tolist(), stats.clip_fraction.item()
        ([[-0.25, -0.25], [0.0, 0.0]], 0.5)
    """
    return clipped_surrogate_loss(sequence_log_ratio(log_ratio), advantage, clip_range=clip_range)


def through_sequence(
    log_ratio: Float[Tensor, "*sample"], *, sequence: Float[Tensor, "*sample"]
) -> Float[Tensor, "*sample"]:
    r"""Give one step the value of its sequence's log-ratio, and its own gradient.

    .. math:: \mathrm{sg}(\log s_i) + l_{i t} - \mathrm{sg}(l_{i t})

    Losses of these, averaged over the steps, have the value and the gradient of
    :func:`sequence_loss`, so that steps can be sent backward one after the other.

    Source:
        arXiv:2507.18071, the form of its GSPO-token with one advantage for all tokens.

    Args:
        log_ratio: :math:`l` of one step [nats, or nats/element]. Gradient flows.
        sequence: :math:`\log s` of its trajectory. No gradient flows.

    Returns:
        The sequence's log-ratio, differentiable by this step's.

    Raises:
        ValueError: If shapes differ, or a tensor is empty or half precision.

    Examples:
        >>> import torch
        >>> step = torch.tensor(0.5).requires_grad_()
        >>> through = through_sequence(step, sequence=torch.tensor(0.25))
        >>> through.item(), torch.autograd.grad(through, step)[0].item()
        (0.25, 1.0)
    """
    check_paired(log_ratio=log_ratio, sequence=sequence)
    return sequence.detach() + (log_ratio - log_ratio.detach())
