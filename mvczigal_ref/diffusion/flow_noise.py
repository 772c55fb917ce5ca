r"""Flow-model steps that draw noise: the Gaussian kernels of the published trainers.

Each goes from level :math:`s` to :math:`r < s` by the ODE's step, less a share :math:`\kappa` of
the predicted noise, plus fresh noise of spread :math:`g`; see ``flow.flow_step``.

Fresh noise alone would make latents noisier than their level. The two stochastic equations make
up for it by half its variance times the score, the direction in which latents get likelier, which
is :math:`-\hat\epsilon / s`: noise of spread :math:`g` takes :math:`\kappa = g^2 / (2 s)` of
the predicted noise away. So at every level latents are distributed as the ODE's, the better the
shorter the steps. Coefficient-preserving noise keeps the amount of noise alone, and that exactly.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.flow import flow_step
from mvczigal_ref.diffusion.gaussian import Reduction
from mvczigal_ref.diffusion.levels import require_levels
from mvczigal_ref.diffusion.precision import require_choice, working_dtype
from mvczigal_ref.diffusion.sampler import Transition
from mvczigal_ref.shapes import BatchLatent, BatchShape

__all__ = [
    "constant_noise_transition",
    "cps_transition",
    "cps_unscaled_log_prob",
    "flow_sde_transition",
    "require_noise_scale",
]


def require_noise_scale(noise_scale: float, *, most: float = math.inf) -> None:
    """Refuse a noise scale that gives no spread.

    Args:
        noise_scale: Stochasticity of a kernel [1].
        most: The largest that the kernel knows [1].

    Raises:
        ValueError: If it is negative, above ``most`` or non-finite.

    Examples:
        >>> require_noise_scale(0.7)
    """
    if not (0.0 <= noise_scale <= most and math.isfinite(noise_scale)):
        msg = f"`noise_scale` must be finite and in [0, {most}]; got {noise_scale}. 0 is the ODE."
        raise ValueError(msg)


def flow_sde_transition(
    velocity: BatchLatent,
    latent_t: BatchLatent,
    *,
    sigma_t: BatchShape,
    sigma_prev: BatchShape,
    noise_scale: float,
) -> Transition:
    r"""Take a step of the stochastic equation whose noise falls with the level.

    .. math::

        g = a\sqrt{\frac{s\,(s-r)}{1-s_*}},\qquad \kappa = \frac{g^2}{2 s},\qquad
        x_r \sim \mathcal{N}\big(x_s - (s-r)\,v - \kappa\,\hat\epsilon,\ g^2 I\big)

    with :math:`s_* = s`, but :math:`s_* = r` where :math:`s = 1`.

    Source:
        Liu et al. (Flow-GRPO), arXiv:2505.05470. The paper's noise has a pole at :math:`s = 1`;
        the level that replaces it there is the released code's. Finer grids come to the ODE's
        distributions at first order, but out of pure noise at order :math:`\min(1, a^2)` alone.

    Args:
        velocity: :math:`v`, the network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_s`. Gradient flows.
        sigma_t: :math:`s` [1], in (0, 1].
        sigma_prev: :math:`r`, the next lower level [1], in [0, ``sigma_t``).
        noise_scale: :math:`a` [1], 0 or above; 0 is the ODE. Published: 0.7 for Stable
            Diffusion 3.5, 0.9 and 0.8 for FLUX.

    Returns:
        Mean and spread of :math:`x_r`, and ``denoised`` :math:`= \hat x_0`.

    Raises:
        ValueError: If ``noise_scale`` is negative or non-finite, or a tensor is half precision or
            of a shape that does not fit.

    Examples:
        >>> step = flow_sde_transition(
        ...     torch.full((1, 1, 1), 2.0),
        ...     torch.ones(1, 1, 1),
        ...     sigma_t=torch.tensor(0.5),
        ...     sigma_prev=torch.tensor(0.25),
        ...     noise_scale=1.0,
        ... )
        >>> step.mean.item(), step.std.item()
        (0.0, 0.5)
    """
    require_levels(latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev)
    require_noise_scale(noise_scale)
    below_one = torch.where(sigma_t == 1.0, sigma_prev, sigma_t)
    variance = noise_scale**2 * sigma_t / (1.0 - below_one) * (sigma_t - sigma_prev)
    return _stochastic_equation_step(
        velocity, latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev, variance=variance
    )


def constant_noise_transition(
    velocity: BatchLatent,
    latent_t: BatchLatent,
    *,
    sigma_t: BatchShape,
    sigma_prev: BatchShape,
    noise_scale: float,
) -> Transition:
    r"""Take a step of the stochastic equation whose noise is the same at every level.

    .. math::

        g = \eta\sqrt{s-r},\qquad \kappa = \frac{g^2}{2 s},\qquad
        x_r \sim \mathcal{N}\big(x_s - (s-r)\,v - \kappa\,\hat\epsilon,\ g^2 I\big)

    Source:
        Xue et al. (DanceGRPO), arXiv:2505.07818. No deviation.

    Args:
        velocity: :math:`v`, the network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_s`. Gradient flows.
        sigma_t: :math:`s` [1], in (0, 1].
        sigma_prev: :math:`r`, the next lower level [1], in [0, ``sigma_t``).
        noise_scale: :math:`\eta` [1], 0 or above; 0 is the ODE. Published: 0.3 for FLUX.

    Returns:
        Mean and spread of :math:`x_r`, and ``denoised`` :math:`= \hat x_0`.

    Raises:
        ValueError: If ``noise_scale`` is negative or non-finite, or a tensor is half precision or
            of a shape that does not fit.

    Examples:
        >>> step = constant_noise_transition(
        ...     torch.full((1, 1, 1), 2.0),
        ...     torch.ones(1, 1, 1),
        ...     sigma_t=torch.tensor(0.5),
        ...     sigma_prev=torch.tensor(0.25),
        ...     noise_scale=1.0,
        ... )
        >>> step.mean.item(), step.std.item()
        (0.0, 0.5)
    """
    require_levels(latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev)
    require_noise_scale(noise_scale)
    variance = noise_scale**2 * (sigma_t - sigma_prev)
    return _stochastic_equation_step(
        velocity, latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev, variance=variance
    )


def _stochastic_equation_step(
    velocity: BatchLatent,
    latent_t: BatchLatent,
    *,
    sigma_t: BatchShape,
    sigma_prev: BatchShape,
    variance: BatchShape,
) -> Transition:
    """Draw fresh noise of a variance and take half of it, by the level, from what is predicted."""
    return flow_step(
        velocity,
        latent_t,
        sigma_t=sigma_t,
        sigma_prev=sigma_prev,
        replaced=0.5 * variance / sigma_t,
        std=variance.sqrt(),
    )


def cps_transition(
    velocity: BatchLatent,
    latent_t: BatchLatent,
    *,
    sigma_t: BatchShape,
    sigma_prev: BatchShape,
    noise_scale: float,
) -> Transition:
    r"""Replace a part of the predicted noise by fresh noise, so that the level stays exact.

    .. math::

        g = r \sin\tfrac{a\pi}{2},\qquad x_r \sim \mathcal{N}\big(
            (1-r)\,\hat x_0 + \sqrt{r^2 - g^2}\,\hat\epsilon,\ g^2 I\big),\qquad
        \kappa = r\,\big(1 - \cos\tfrac{a\pi}{2}\big)

    Source:
        Wang and Yu (Flow-CPS, coefficient-preserving sampling), arXiv:2509.05952. No deviation
        in the step; for its score see :func:`cps_unscaled_log_prob`. The level is exact, the
        distribution of a target with a spread of its own is not, however fine the grid.

    Args:
        velocity: :math:`v`, the network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_s`. Gradient flows.
        sigma_t: :math:`s` [1], in (0, 1].
        sigma_prev: :math:`r`, the next lower level [1], in [0, ``sigma_t``); at 0 the step has
            no spread, so no log-density.
        noise_scale: :math:`a` [1], in [0, 1]; 0 is the ODE, 1 predicts no noise at all.
            Published: 0.8.

    Returns:
        Mean and spread of :math:`x_r`, and ``denoised`` :math:`= \hat x_0`.

    Raises:
        ValueError: If ``noise_scale`` is outside [0, 1] or a tensor is half precision or of a shape
            that does not fit.

    Examples:
        >>> step = cps_transition(
        ...     torch.full((1, 1, 1), 2.0),
        ...     torch.ones(1, 1, 1),
        ...     sigma_t=torch.tensor(0.5),
        ...     sigma_prev=torch.tensor(0.25),
        ...     noise_scale=1.0,
        ... )
        >>> round(step.mean.item(), 4), step.std.item()
        (0.0, 0.25)
    """
    require_levels(latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev)
    require_noise_scale(noise_scale, most=1.0)
    # The addend is 0 and gives both numbers the shape of both levels.
    reached = sigma_prev + torch.zeros_like(sigma_t)
    replaced = reached * (1.0 - math.cos(0.5 * math.pi * noise_scale))
    std = reached * math.sin(0.5 * math.pi * noise_scale)
    return flow_step(
        velocity,
        latent_t,
        sigma_t=sigma_t,
        sigma_prev=sigma_prev,
        replaced=replaced,
        std=std,
    )


def cps_unscaled_log_prob(
    action: BatchLatent, *, mean: BatchLatent, reduction: Reduction
) -> Float[Tensor, "..."]:
    r"""Return the squared error that the released code takes for a log-density.

    .. math:: -(a - \mu)^2

    Source:
        The released code of Flow-GRPO for this kernel: the Gaussian's constants and its
        :math:`1/(2\sigma^2)` are dropped, so every step weighs the same whatever its spread, and
        the last step, which has none, has a number too. It is no log-density; the true one is
        ``gaussian.log_prob``, whose gradient is larger by :math:`1/(2\sigma^2)`.

    Args:
        action: :math:`a`. Gradient flows.
        mean: :math:`\mu`, of :func:`cps_transition`. Gradient flows.
        reduction: "mean", as released, "sum" or "none", over c, h, w.

    Returns:
        One number per latent [squared latent units], not positive; with "none" one per element.

    Raises:
        ValueError: If ``reduction`` is unknown or a tensor is half precision or of a shape that
            does not fit.

    Examples:
        >>> action = torch.full((2, 4, 8, 8), 0.5)
        >>> cps_unscaled_log_prob(action, mean=torch.zeros_like(action), reduction="mean")
        tensor([-0.2500, -0.2500])
    """
    working_dtype(action=action, mean=mean)
    require_choice("reduction", reduction, ("mean", "sum", "none"))
    error = -(action - mean).square()
    if reduction == "none":
        return error
    axes = (-3, -2, -1)
    return error.mean(dim=axes) if reduction == "mean" else error.sum(dim=axes)
