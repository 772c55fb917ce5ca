"""Prefer the better sample of a pair by the errors of two networks in its noise (Diffusion-DPO)."""

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import working_dtype
from mvczigal_ref.diffusion.schedule import PredictionType, clean_and_noise
from mvczigal_ref.objective.preference import preference_loss
from mvczigal_ref.objective.reward_difference import ObjectiveStats, check_paired
from mvczigal_ref.shapes import BatchLatent, BatchShape, Scalar

__all__ = ["noise_error", "noise_preference_loss"]


def noise_error(
    output: BatchLatent,
    *,
    latent_t: BatchLatent,
    noise: BatchLatent,
    alpha_bar_t: BatchShape,
    prediction_type: PredictionType,
) -> BatchShape:
    r"""Measure how far a network is from the noise that a sample was given.

    .. math:: e = \frac{1}{d} \lVert \hat\epsilon(x_t) - \epsilon \rVert^2

    Source:
        Ho et al., arXiv:2006.11239, Eq. 14, per element.

    Args:
        output: The network's output at ``latent_t``, fp32 or fp64. Gradient flows.
        latent_t: :math:`x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t}\,\epsilon`.
        noise: :math:`\epsilon`, of the same shape. No gradient flows.
        alpha_bar_t: :math:`\bar\alpha_t` of each latent [1], in (0, 1).
        prediction_type: Meaning of ``output``; whatever it is, its noise is compared.

    Returns:
        One number per latent [1].

    Raises:
        ValueError: If ``prediction_type`` is unknown or a tensor is half precision.

    Examples:
        >>> import torch
        >>> one = torch.ones(1, 1, 1)
        >>> noise_error(
        ...     3.0 * one, latent_t=one, noise=one, alpha_bar_t=torch.tensor(0.5),
        ...     prediction_type="epsilon",
        ... ).item()
        4.0
    """
    working_dtype(output=output, noise=noise)
    _, prediction = clean_and_noise(
        output, latent_t, alpha_bar_t=alpha_bar_t, prediction_type=prediction_type
    )
    return (prediction - noise.detach()).square().mean((-3, -2, -1))


def noise_preference_loss(
    error_zigzag: Float[Tensor, "*sample"],
    error_standard: Float[Tensor, "*sample"],
    *,
    reference_zigzag: Float[Tensor, "*sample"],
    reference_standard: Float[Tensor, "*sample"],
    advantage_gap: Float[Tensor, "*sample"],
    scale: float,
    clip_range: float,
) -> tuple[Scalar, ObjectiveStats]:
    r"""Lower the error on the better sample of a pair more than that on the other.

    .. math:: l = \tfrac12 (e^{ref} - e),\qquad
        L = -\frac{1}{n} \sum_i \mathrm{sgn}(A_i)^2
        \log \mathrm{sigmoid}\big(\beta\, \mathrm{sgn}(A_i) (l^z_i - l^s_i)\big)

    Half a difference of errors stands for the log-ratio of a whole trajectory, so neither
    trajectory nor density is needed. At the reference each decided pair's loss is log 2.

    Source:
        Wallace et al., arXiv:2311.12908 (Diffusion-DPO), Eq. 14, with the weight of a level and
        the number of steps in :math:`\beta`, and errors per element, as in its released trainer.
        Both samples are to have the same level and noise, as there. Ours: decided at every view
        unless errors are those of all views.

    Args:
        error_zigzag: :math:`e^z` of the first sample under the network, fp32 or fp64 [1]. Gradient
            flows.
        error_standard: :math:`e^s` of the second sample. Gradient flows.
        reference_zigzag: :math:`e^{ref}` of the first sample. No gradient flows.
        reference_standard: :math:`e^{ref}` of the second sample. No gradient flows.
        advantage_gap: :math:`A`, first sample minus second [1]. Only its sign is read.
        scale: :math:`\beta` [1 / error]; positive. Published: 5000 for SDXL.
        clip_range: Beyond it a log-ratio counts as clipped in the diagnostics; nothing is
            clipped [1].

    Returns:
        The loss, and its detached diagnostics.

    Raises:
        ValueError: As :func:`~mvczigal_ref.objective.preference.preference_loss`.

    Examples:
        >>> import torch
        >>> error = torch.ones(2).requires_grad_()
        >>> loss, _ = noise_preference_loss(
        ...     error, torch.ones(2), reference_zigzag=torch.ones(2),
        ...     reference_standard=torch.ones(2), advantage_gap=torch.tensor([0.1, -9.0]),
        ...     scale=4.0, clip_range=1.0,
        ... )
        >>> round(loss.item(), 6), torch.autograd.grad(loss, error)[0].tolist()
        (0.693147, [0.5, -0.5])
    """
    check_paired(
        error_zigzag=error_zigzag,
        error_standard=error_standard,
        reference_zigzag=reference_zigzag,
        reference_standard=reference_standard,
    )
    return preference_loss(
        (reference_zigzag.detach() - error_zigzag) / 2,
        (reference_standard.detach() - error_standard) / 2,
        advantage_gap,
        scale=scale,
        clip_range=clip_range,
    )
