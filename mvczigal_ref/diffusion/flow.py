r"""Flow models: what a velocity says, one step down the levels without fresh noise, and back up.

A latent at level :math:`s` is :math:`x_s = (1-s)\,x_0 + s\,\epsilon`; the network predicts the
velocity :math:`v = \epsilon - x_0`. The steps that draw noise are in ``flow_noise``.
"""

import torch

from mvczigal_ref.diffusion.levels import require_levels
from mvczigal_ref.diffusion.precision import per_latent, require_one_shape, working_dtype
from mvczigal_ref.diffusion.sampler import Transition
from mvczigal_ref.shapes import BatchLatent, BatchShape

__all__ = [
    "flow_clean_and_noise",
    "flow_invert",
    "flow_latent",
    "flow_ode_transition",
    "flow_step",
    "flow_velocity",
]


def flow_latent(clean: BatchLatent, noise: BatchLatent, *, sigma: BatchShape) -> BatchLatent:
    r"""Mix a clean latent with noise.

    .. math:: x_s = (1-s)\,x_0 + s\,\epsilon

    Source:
        Liu et al., arXiv:2209.03003; Lipman et al., arXiv:2210.02747. No deviation.

    Args:
        clean: :math:`x_0`. Gradient flows.
        noise: :math:`\epsilon`. Gradient flows.
        sigma: :math:`s`, noise level [1], in [0, 1]; one number per latent.

    Returns:
        :math:`x_s`.

    Raises:
        ValueError: If a tensor is half precision or of a shape that does not fit.

    Examples:
        >>> flow_latent(torch.ones(1, 1, 1), -torch.ones(1, 1, 1), sigma=torch.tensor(0.25)).item()
        0.5
    """
    require_levels(clean, sigma=sigma)
    dtype = working_dtype(clean=clean, noise=noise)
    return per_latent(1.0 - sigma, dtype) * clean + per_latent(sigma, dtype) * noise


def flow_velocity(clean: BatchLatent, noise: BatchLatent) -> BatchLatent:
    r"""Return the velocity of the straight path from a clean latent to noise.

    .. math:: v = \epsilon - x_0

    Source:
        Liu et al., arXiv:2209.03003. No deviation.

    Args:
        clean: :math:`x_0`, or a prediction of it. Gradient flows.
        noise: :math:`\epsilon`, or a prediction of it. Gradient flows.

    Returns:
        :math:`v`.

    Raises:
        ValueError: If shapes differ, or a tensor is half precision.

    Examples:
        >>> flow_velocity(torch.ones(1, 1, 1), torch.full((1, 1, 1), 3.0)).item()
        2.0
    """
    require_one_shape(clean=clean, noise=noise)
    return noise - clean


def flow_clean_and_noise(
    velocity: BatchLatent, latent_t: BatchLatent, *, sigma_t: BatchShape
) -> tuple[BatchLatent, BatchLatent]:
    r"""Read a velocity as the clean latent and the noise that made ``latent_t``.

    .. math:: \hat x_0 = x_s - s\,v,\qquad \hat\epsilon = x_s + (1-s)\,v

    Source:
        Liu et al., arXiv:2209.03003. No deviation.

    Args:
        velocity: :math:`v`, the network's output. Gradient flows.
        latent_t: :math:`x_s`, the latent that it saw. Gradient flows.
        sigma_t: :math:`s`, its noise level [1], in [0, 1]; one number per latent.

    Returns:
        ``clean_pred`` and ``noise_pred``, in the wider dtype of the two latents.

    Raises:
        ValueError: If a tensor is half precision or of a shape that does not fit.

    Examples:
        >>> clean, noise = flow_clean_and_noise(
        ...     torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 1), sigma_t=torch.tensor(0.25)
        ... )
        >>> clean.item(), noise.item()
        (0.5, 2.5)
    """
    require_levels(latent_t, sigma_t=sigma_t)
    dtype = working_dtype(velocity=velocity, latent_t=latent_t)
    clean = latent_t - per_latent(sigma_t, dtype) * velocity
    return clean, latent_t + per_latent(1.0 - sigma_t, dtype) * velocity


def flow_step(
    velocity: BatchLatent,
    latent_t: BatchLatent,
    *,
    sigma_t: BatchShape,
    sigma_prev: BatchShape,
    replaced: BatchShape,
    std: BatchShape,
) -> Transition:
    r"""Take the ODE's step, less a share of the predicted noise that fresh noise stands for.

    .. math:: x_r \sim \mathcal{N}\big(x_s - (s-r)\,v - \kappa\,\hat\epsilon,\ g^2 I\big),\qquad
        \hat\epsilon = x_s + (1-s)\,v

    Source:
        Ours: what the published kernels have in common. They differ in :math:`\kappa` and
        :math:`g` alone, and at 0 all are the ODE, bit for bit.

    Args:
        velocity: :math:`v`, the network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_s`. Gradient flows.
        sigma_t: :math:`s` [1], in (0, 1].
        sigma_prev: :math:`r`, the next lower level [1], in [0, ``sigma_t``).
        replaced: :math:`\kappa`, share of predicted noise taken away [1]; 0 or above.
        std: :math:`g`, spread of the fresh noise [1]; 0 or above.

    Returns:
        Mean and spread of :math:`x_r`, and ``denoised`` :math:`= x_s - s\,v`.

    Raises:
        ValueError: If a tensor is half precision or of a shape that does not fit.

    Examples:
        >>> step = flow_step(
        ...     torch.full((1, 1, 1), 2.0),
        ...     torch.ones(1, 1, 1),
        ...     sigma_t=torch.tensor(0.5),
        ...     sigma_prev=torch.tensor(0.25),
        ...     replaced=torch.tensor(0.25),
        ...     std=torch.tensor(0.5),
        ... )
        >>> step.mean.item(), step.std.item(), step.denoised.item()
        (0.0, 0.5, 0.0)
    """
    require_levels(latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev, replaced=replaced, std=std)
    dtype = working_dtype(velocity=velocity, latent_t=latent_t)
    # Coefficients are formed in the levels' own dtype and rounded once.
    fall = sigma_t - sigma_prev + replaced * (1.0 - sigma_t)
    mean = per_latent(1.0 - replaced, dtype) * latent_t - per_latent(fall, dtype) * velocity
    clean = latent_t - per_latent(sigma_t, dtype) * velocity
    return Transition(mean=mean, std=std.to(dtype), denoised=clean)


def flow_ode_transition(
    velocity: BatchLatent, latent_t: BatchLatent, *, sigma_t: BatchShape, sigma_prev: BatchShape
) -> Transition:
    r"""Follow the velocity down to the next level, without fresh noise.

    .. math:: x_r = x_s - (s-r)\,v

    Source:
        Euler's step of Liu et al., arXiv:2209.03003, as diffusers' flow-matching scheduler.

    Args:
        velocity: :math:`v`, the network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_s`. Gradient flows.
        sigma_t: :math:`s` [1], in (0, 1].
        sigma_prev: :math:`r`, the next lower level [1], in [0, ``sigma_t``).

    Returns:
        The next latent as ``mean``, ``std`` 0, and ``denoised`` :math:`= \hat x_0`. A step
        without spread has no log-density: ``FlowSampler.log_prob`` refuses it by the step's
        number, ``gaussian.check_std`` by its value, and ``gaussian.log_prob``, which reads no
        value, is NaN.

    Raises:
        ValueError: If a tensor is half precision or of a shape that does not fit.

    Examples:
        >>> step = flow_ode_transition(
        ...     torch.full((1, 1, 1), 2.0),
        ...     torch.ones(1, 1, 1),
        ...     sigma_t=torch.tensor(0.5),
        ...     sigma_prev=torch.tensor(0.25),
        ... )
        >>> step.mean.item(), step.std.item(), step.denoised.item()
        (0.5, 0.0, 0.0)
    """
    require_levels(latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev)
    none = torch.zeros_like(sigma_t - sigma_prev)
    return flow_step(
        velocity, latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev, replaced=none, std=none
    )


def flow_invert(
    velocity: BatchLatent, latent_prev: BatchLatent, *, sigma_prev: BatchShape, sigma_t: BatchShape
) -> BatchLatent:
    r"""Carry a latent up to a noisier level: the ODE's step, run backwards.

    .. math:: \tilde x_s = y + (s-r)\,v

    Source:
        Ours, after Song et al., arXiv:2010.02502, Sec. 5.4: the inverse of the ODE's step at
        one and the same velocity.

    Args:
        velocity: :math:`v`, the network's output for ``latent_prev``. Gradient flows.
        latent_prev: :math:`y`, at the lower level. Gradient flows.
        sigma_prev: :math:`r` of the level that ``latent_prev`` is at [1], in [0, 1].
        sigma_t: :math:`s` of the level to reach [1], in [0, 1].

    Returns:
        :math:`\tilde x_s`.

    Raises:
        ValueError: If a tensor is half precision or of a shape that does not fit.

    Examples:
        >>> flow_invert(
        ...     torch.full((1, 1, 1), 2.0),
        ...     torch.full((1, 1, 1), 0.5),
        ...     sigma_prev=torch.tensor(0.25),
        ...     sigma_t=torch.tensor(0.5),
        ... ).item()
        1.0
    """
    require_levels(latent_prev, sigma_prev=sigma_prev, sigma_t=sigma_t)
    dtype = working_dtype(velocity=velocity, latent_prev=latent_prev)
    return latent_prev + per_latent(sigma_t - sigma_prev, dtype) * velocity
