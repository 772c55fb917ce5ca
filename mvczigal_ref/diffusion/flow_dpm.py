r"""A second-order step of a flow's ODE, for the price of one network call.

It remembers the clean latent that the step before predicted, and follows how the prediction
changes along the log-signal-to-noise ratio.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mvczigal_ref.diffusion.flow import flow_step
from mvczigal_ref.diffusion.levels import require_levels
from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_full_precision,
    widest_dtype,
    working_dtype,
)
from mvczigal_ref.diffusion.sampler import Transition
from mvczigal_ref.shapes import BatchLatent, BatchShape

__all__ = ["OdeMemory", "dpm2m_transition", "dpm2m_weight"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OdeMemory:
    """Prediction at the last step of an ODE, from which a solver of second order goes on."""

    clean: BatchLatent
    """Clean latent that the step predicted [1]."""

    sigma: BatchShape
    """Noise level of the prediction [1]; above the next step's."""


def dpm2m_weight(
    *, sigma_last: BatchShape, sigma_t: BatchShape, sigma_prev: BatchShape
) -> BatchShape:
    r"""Return the share of the last change of the prediction that the next step adds.

    .. math:: w = \Big(1 - \frac{r}{s}\Big) \frac{\lambda_r - \lambda_s}
        {2 (\lambda_s - \lambda_q)}, \qquad \lambda_s = \log\frac{1 - s}{s}

    and 0 where :math:`q = 1` or :math:`r = 0`, at which :math:`\lambda` is infinite: there the
    step is Euler's.

    Source:
        Lu et al., arXiv:2211.01095 (DPM-Solver++, its midpoint form 2M), at
        :math:`\alpha_s = 1 - s`. The Euler step at level 0 is diffusers' and MixGRPO's.

    Args:
        sigma_last: :math:`q`, level of the last step [1], in (``sigma_t``, 1].
        sigma_t: :math:`s`, level of this one [1], in (0, 1).
        sigma_prev: :math:`r`, level that it goes to [1], in [0, ``sigma_t``).

    Returns:
        :math:`w` [1], not negative.

    Raises:
        ValueError: If a tensor is half precision.

    Examples:
        >>> levels = torch.tensor([0.8, 0.5, 0.2])
        >>> weight = dpm2m_weight(sigma_last=levels[0], sigma_t=levels[1], sigma_prev=levels[2])
        >>> round(weight.item(), 4)
        0.3
    """
    require_full_precision(sigma_last=sigma_last, sigma_t=sigma_t, sigma_prev=sigma_prev)
    q, s, r = (_wide(level) for level in (sigma_last, sigma_t, sigma_prev))
    ratio = (s.logit() - r.logit()) / (q.logit() - s.logit()) / 2.0
    weight = (1.0 - r / s) * ratio
    return weight.where((r > 0.0) & (q < 1.0), 0.0)


def dpm2m_transition(
    velocity: BatchLatent,
    latent_t: BatchLatent,
    *,
    sigma_t: BatchShape,
    sigma_prev: BatchShape,
    memory: OdeMemory | None = None,
) -> Transition:
    r"""Follow the ODE down to the next level at second order.

    .. math:: x_r = x_s - (s-r)\,v + w\,\big(\hat x_0(s) - \hat x_0(q)\big),\qquad
        \hat x_0(s) = x_s - s\,v

    with :math:`w` of :func:`dpm2m_weight`. Without a memory it is Euler's step: the first step of
    an ODE, or the first after one that drew noise.

    Source:
        Lu et al., arXiv:2211.01095 (DPM-Solver++ 2M, midpoint), for a flow as in arXiv:2507.21802
        (MixGRPO) and arXiv:2509.16117 (DiffusionNFT). Written with :math:`v`, so that what it
        adds to Euler's step is seen. MixGRPO's released code remembers predictions across steps
        that draw noise; here the memory is the ODE's alone.

    Args:
        velocity: :math:`v`, the network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_s`. Gradient flows.
        sigma_t: :math:`s` [1], in (0, 1].
        sigma_prev: :math:`r`, the next lower level [1], in [0, ``sigma_t``).
        memory: Prediction :math:`\hat x_0(q)` of the step before. Gradient flows.

    Returns:
        The next latent as ``mean``, ``std`` 0, and ``denoised`` :math:`= \hat x_0(s)`.

    Raises:
        ValueError: If a tensor is half precision or of a shape that does not fit.

    Examples:
        >>> one = torch.ones(1, 1, 1)
        >>> step = dpm2m_transition(
        ...     2.0 * one, one, sigma_t=torch.tensor(0.5), sigma_prev=torch.tensor(0.2),
        ...     memory=OdeMemory(clean=one, sigma=torch.tensor(0.8)),
        ... )
        >>> round(step.mean.item(), 4), step.std.item(), step.denoised.item()
        (0.1, 0.0, 0.0)
    """
    require_levels(latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev)
    none = torch.zeros_like(sigma_t - sigma_prev)
    euler = flow_step(
        velocity, latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev, replaced=none, std=none
    )
    if memory is None:
        return euler
    dtype = working_dtype(denoised=euler.denoised, clean=memory.clean)
    weight = dpm2m_weight(sigma_last=memory.sigma, sigma_t=sigma_t, sigma_prev=sigma_prev)
    change = per_latent(weight, dtype) * (euler.denoised - memory.clean)
    return Transition(mean=euler.mean + change, std=euler.std, denoised=euler.denoised)


def _wide(level: Tensor) -> Tensor:
    """Widen a level, since differences of logarithms lose digits."""
    return level.to(widest_dtype(level.device))
