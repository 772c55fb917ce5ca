"""Latent consistency sampling: one step's Gaussian, and its deterministic inversion."""

import torch
from jaxtyping import Int
from torch import Tensor

from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_full_precision,
    require_positive,
    working_dtype,
)
from mvczigal_ref.diffusion.schedule import PredictionType, clean_and_noise
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.shapes import BatchLatent, BatchShape

__all__ = ["lcm_invert", "lcm_transition"]


def lcm_transition(
    output: BatchLatent,
    latent_t: BatchLatent,
    *,
    timestep: Int[Tensor, "*#batch"],
    alpha_bar_t: BatchShape,
    alpha_bar_prev: BatchShape,
    prediction_type: PredictionType,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
) -> Transition:
    r"""Predict the clean latent and re-noise it to the next level.

    .. math::

        f = c_{out}(t)\,\hat x_0 + c_{skip}(t)\,x_t,\qquad
        x_s \sim \mathcal{N}\big(\sqrt{\bar\alpha_s}\,f,\ (1-\bar\alpha_s) I\big)

        c_{skip} = \frac{\sigma_d^2}{(kt)^2+\sigma_d^2},\qquad
        c_{out} = \frac{kt}{\sqrt{(kt)^2+\sigma_d^2}}

    Source:
        Luo et al., arXiv:2310.04378, Sec. 3 and its multi-step sampler. The last step is
        re-noised too, to its own level (s := t), as the released trainer of arXiv:2505.20107
        does; its image is ``denoised``.

    Args:
        output: The network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_t`. Gradient flows.
        timestep: :math:`t`, the training-time noise index [timesteps]; one number a latent.
        alpha_bar_t: :math:`\bar\alpha_t` [1], in (0, 1).
        alpha_bar_prev: :math:`\bar\alpha_s` of the next lower level [1], in (0, 1).
        prediction_type: What ``output`` is.
        sigma_data: :math:`\sigma_d`, spread of clean latents [1]; positive.
        timestep_scaling: :math:`k` [1]; positive.

    Returns:
        Mean and spread of :math:`x_s`, and ``denoised`` :math:`= f`.

    Raises:
        ValueError: If a setting is not positive, ``prediction_type`` is unknown, or a tensor is
            half precision.

    Examples:
        >>> step = lcm_transition(
        ...     torch.zeros(1, 1, 1),
        ...     torch.ones(1, 1, 1),
        ...     timestep=torch.tensor(999),
        ...     alpha_bar_t=torch.tensor(0.25),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     prediction_type="epsilon",
        ... )
        >>> [round(x.item(), 4) for x in (step.denoised, step.mean, step.std)]
        [2.0, 1.6, 0.6]
    """
    require_full_precision(alpha_bar_prev=alpha_bar_prev)
    dtype = working_dtype(output=output, latent_t=latent_t)
    clean, _ = clean_and_noise(
        output, latent_t, alpha_bar_t=alpha_bar_t, prediction_type=prediction_type
    )
    denoised = _boundary(clean, latent_t, timestep, alpha_bar_t, sigma_data, timestep_scaling)
    return Transition(
        mean=per_latent(alpha_bar_prev.sqrt(), dtype) * denoised,
        std=(1.0 - alpha_bar_prev).sqrt().to(dtype),
        denoised=denoised,
    )


def lcm_invert(
    output: BatchLatent,
    latent_prev: BatchLatent,
    *,
    timestep_prev: Int[Tensor, "*#batch"],
    alpha_bar_prev: BatchShape,
    alpha_bar_t: BatchShape,
    prediction_type: PredictionType,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
) -> BatchLatent:
    r"""Carry a latent up to a noisier level without drawing noise.

    .. math::

        f = c_{out}(s)\,\hat x_0 + c_{skip}(s)\,y,\qquad
        \tilde x_t = \sqrt{\bar\alpha_t}\,f + \sqrt{1-\bar\alpha_t}\,\hat\epsilon

    Source:
        Zhang et al., arXiv:2505.20107, the inversion of zigzag sampling. The boundary scalings
        are those of the source level s, the network is evaluated at t, as released.

    Args:
        output: The network's output for ``latent_prev``. Gradient flows.
        latent_prev: :math:`y`, at the lower level. Gradient flows.
        timestep_prev: :math:`s`, the level that ``latent_prev`` is at [timesteps].
        alpha_bar_prev: :math:`\bar\alpha_s` [1], in (0, 1).
        alpha_bar_t: :math:`\bar\alpha_t` of the level to reach [1], in (0, 1).
        prediction_type: What ``output`` is.
        sigma_data: :math:`\sigma_d`, spread of clean latents [1]; positive.
        timestep_scaling: :math:`k` of the boundary scalings [1]; positive.

    Returns:
        :math:`\tilde x_t`.

    Raises:
        ValueError: If a setting is not positive, ``prediction_type`` is unknown, or a tensor is
            half precision.

    Examples:
        >>> latent_t = lcm_invert(
        ...     torch.zeros(1, 1, 1),
        ...     torch.full((1, 1, 1), 1.6),
        ...     timestep_prev=torch.tensor(759),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     alpha_bar_t=torch.tensor(0.25),
        ...     prediction_type="epsilon",
        ... )
        >>> round(latent_t.item(), 4)
        1.0
    """
    require_full_precision(alpha_bar_t=alpha_bar_t, alpha_bar_prev=alpha_bar_prev)
    dtype = working_dtype(output=output, latent_prev=latent_prev)
    clean, noise = clean_and_noise(
        output, latent_prev, alpha_bar_t=alpha_bar_prev, prediction_type=prediction_type
    )
    denoised = _boundary(
        clean, latent_prev, timestep_prev, alpha_bar_prev, sigma_data, timestep_scaling
    )
    signal = per_latent(alpha_bar_t.sqrt(), dtype)
    return signal * denoised + per_latent((1.0 - alpha_bar_t).sqrt(), dtype) * noise


def _boundary(
    clean: Tensor,
    latent: Tensor,
    timestep: Tensor,
    alpha_bar: Tensor,
    sigma_data: float,
    timestep_scaling: float,
) -> Tensor:
    """Mix prediction and input so that the consistency function is the identity at t = 0."""
    require_positive(sigma_data=sigma_data, timestep_scaling=timestep_scaling)
    scaled = timestep.to(alpha_bar.dtype) * timestep_scaling
    energy = scaled.square() + sigma_data**2
    skip = per_latent(sigma_data**2 / energy, clean.dtype)
    out = per_latent(scaled * energy.rsqrt(), clean.dtype)
    return torch.addcmul(skip * latent, out, clean)
