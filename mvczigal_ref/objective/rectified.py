"""Weights that make the gradients of all steps as large as each other."""

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_full_precision

__all__ = ["rectified_step_weights"]


def rectified_step_weights(
    gain: Float[Tensor, " step"], *, mean_over: Float[Tensor, " candidate"]
) -> Float[Tensor, " step"]:
    r"""Divide each step's loss by the size of its gradient, 1 on average.

    .. math:: w_t = \frac{1 / \lambda_t}{\frac{1}{T} \sum_s 1 / \lambda_s}, \qquad
        \lambda_t = \frac{1}{g} \Big|\frac{\partial \mu}{\partial v}\Big|
        = \frac{s - r}{g} + \frac{g\,(1 - s)}{2 s}

    The gradient of a log-density by the velocity is :math:`\lambda_t` times the standard normal
    noise that was drawn; the right side is that of a stochastic equation's step from :math:`s` to
    :math:`r` with noise of spread :math:`g`. Where an iteration trains one step, the step's level
    would decide how much is learnt.

    Source:
        arXiv:2605.15980 (Flash-GRPO), its temporal gradient rectification. Its released code
        divides by the mean of each batch; here by that of all steps that can be drawn, since an
        iteration has one.

    Args:
        gain: :math:`\lambda` of the trained steps [1 / velocity]; positive.
        mean_over: :math:`\lambda` of all steps that can be drawn; positive.

    Returns:
        One weight per trained step [1], positive.

    Raises:
        ValueError: If a tensor is empty, of half precision, or not positive and finite.

    Examples:
        >>> import torch
        >>> gains = torch.tensor([0.5, 1.0])
        >>> rectified_step_weights(gains[:1], mean_over=gains).tolist()
        [1.3333333730697632]
    """
    require_full_precision(gain=gain, mean_over=mean_over)
    for name, values in (("gain", gain), ("mean_over", mean_over)):
        if values.numel() == 0 or not bool(((values > 0.0) & values.isfinite()).all()):
            msg = (
                f"`{name}` must hold positive finite numbers, at least one; got "
                f"{values.tolist()}; leave out steps that draw nothing."
            )
            raise ValueError(msg)
    return ((1.0 / gain) / (1.0 / mean_over).mean()).detach()
