"""One group of samples, judged and learnt under several conditions.

Condition 0 is the prompt that the samples were drawn for; the others describe or vary it. No
sample is drawn again: a stored transition is scored under every condition.
"""

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_full_precision
from mvczigal_ref.objective.clipped import SurrogateStats, clipped_surrogate_loss
from mvczigal_ref.shapes import Scalar

__all__ = ["augmented_conditions_loss", "probability_drift"]


def augmented_conditions_loss(
    log_ratio: Float[Tensor, "*batch condition sample step"],
    advantage: Float[Tensor, "*batch condition sample"],
    *,
    clip_range: float,
    condition_weight: Float[Tensor, " condition"] | None = None,
    step_weight: Float[Tensor, " step"] | None = None,
    kl: Float[Tensor, "*batch condition sample step"] | None = None,
    kl_weight: float = 0.0,
) -> tuple[Scalar, SurrogateStats]:
    r"""Average the clipped surrogate over conditions, each with its own ratios and advantages.

    .. math::

        L = \sum_{k=0}^{K} \frac{w_k}{\sum_j w_j} \frac{1}{G} \sum_{i} \frac{1}{T} \sum_t u_t
            \max\big(-A_{k i}\, \rho^{k i}_t,\; -A_{k i}\, c(\rho^{k i}_t)\big), \qquad
            \rho^{k i}_t = \frac{p_\theta(x^i_{t-1} | x^i_t, c_k)}
                {p_{\theta'}(x^i_{t-1} | x^i_t, c_k)}

    Both densities of a ratio are under the same condition, so on policy every ratio is 1
    however unlikely a sample is under a condition it was not drawn for. With one condition
    this is the plain clipped surrogate.

    Source:
        arXiv:2603.12648 (MV-GRPO), reconstructed from its words: the paper has no code. Equal
        weights are its mean over conditions.

    Args:
        log_ratio: Log-ratio under each condition, fp32 or fp64 [nats, or nats/element]. Gradient
            flows.
        advantage: :math:`A`, standardised within each condition's group [1]. No gradient
            flows.
        clip_range: Largest trusted change of a ratio [1]; positive.
        condition_weight: :math:`w`, relative, not negative, of positive sum; equal if None.
        step_weight: :math:`u` [1]; 1 if None.
        kl: Divergence of each transition from the reference under its condition. Its mean is
            over all conditions alike. Gradient flows.
        kl_weight: :math:`\beta`; finite, not negative.

    Returns:
        The loss, and its detached diagnostics over all conditions.

    Raises:
        ValueError: As :func:`~mvczigal_ref.objective.clipped.clipped_surrogate_loss`, or if
            shapes do not fit or weights are out of range.

    Examples:
        >>> import torch
        >>> advantage = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
        >>> loss, _ = augmented_conditions_loss(
        ...     torch.zeros(2, 2, 1), advantage, clip_range=0.1,
        ...     condition_weight=torch.tensor([1.0, 3.0]),
        ... )
        >>> loss.item()
        -1.5
    """
    _check_shape("log_ratio", log_ratio, (*advantage.shape, *log_ratio.shape[-1:]), "advantage")
    shape = log_ratio.shape
    weight: Tensor | None = None
    if condition_weight is not None:
        _check_shape("condition_weight", condition_weight, shape[-3:-2], "log_ratio")
        _check_weights(condition_weight)
        share = condition_weight / condition_weight.mean()
        weight = share.to(log_ratio.dtype)[:, None, None].expand(shape)
    if step_weight is not None:
        _check_shape("step_weight", step_weight, shape[-1:], "log_ratio")
        by_step = step_weight.to(log_ratio.dtype).expand(shape)
        weight = by_step if weight is None else weight * by_step
    return clipped_surrogate_loss(
        log_ratio,
        advantage[..., None].expand(shape),
        clip_range=clip_range,
        weight=weight,
        kl=kl,
        kl_weight=kl_weight,
    )


def probability_drift(
    log_prob: Float[Tensor, "*batch condition sample step"],
) -> Float[Tensor, "*batch condition-1 sample step"]:
    r"""Measure how a condition changes the density of what another condition drew.

    .. math:: d^{k i}_t = \big| \log p(x^i_{t-1} | x^i_t, c_k)
        - \log p(x^i_{t-1} | x^i_t, c_0) \big|, \qquad k = 1 \dots K

    Source:
        arXiv:2603.12648 (MV-GRPO), its figure on how well samples fit augmented conditions.

    Args:
        log_prob: Log-density under every condition, the prompt's own first, all of one policy
            [nats, or nats/element]. No gradient flows.

    Returns:
        Not negative, one per augmented condition, sample and step [unit of ``log_prob``];
        empty where there is the prompt alone.

    Raises:
        ValueError: If ``log_prob`` is half precision or lacks one of its last three axes.

    Examples:
        >>> import torch
        >>> probability_drift(torch.tensor([-1.0, -1.5, -0.25])[:, None, None]).flatten().tolist()
        [0.5, 0.75]
    """
    require_full_precision(log_prob=log_prob)
    if log_prob.ndim < 3:
        msg = (
            "`log_prob` must end in condition, sample and step; got shape "
            f"{tuple(log_prob.shape)}; stack the conditions."
        )
        raise ValueError(msg)
    apart = log_prob.detach()
    return (apart[..., 1:, :, :] - apart[..., :1, :, :]).abs()


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], partner: str) -> None:
    """Refuse what would broadcast; annotations are checked in tests alone."""
    require_full_precision(**{name: tensor})
    if tuple(tensor.shape) != tuple(expected):
        msg = (
            f"`{name}` must have shape {tuple(expected)} to fit `{partner}`; got "
            f"{tuple(tensor.shape)}; its axes are condition, sample and step."
        )
        raise ValueError(msg)


def _check_weights(weight: Tensor) -> None:
    """Refuse weights that are no shares of anything."""
    values = weight.tolist()
    if not (bool((weight >= 0.0).all()) and bool(weight.isfinite().all()) and sum(values) > 0.0):
        msg = (
            f"`condition_weight` must be finite, not negative, and not all 0; got {values}; "
            "None weighs all alike."
        )
        raise ValueError(msg)
