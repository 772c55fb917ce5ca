r"""Noise levels of flow models: the grid that sampling descends, and its shift to more noise.

A level :math:`\sigma` mixes :math:`x = (1-\sigma)\,x_0 + \sigma\,\epsilon`; 1 is pure noise.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import (
    require_full_dtype,
    require_full_precision,
    require_positive,
)

__all__ = ["Sigmas", "flow_sigmas", "resolution_shift", "shift_sigma"]

Sigmas = Float[Tensor, " level"]
"""Noise levels of a grid [1], strictly decreasing; one more than it has steps."""


def shift_sigma(sigma: Float[Tensor, "*any"], shift: float) -> Float[Tensor, "*any"]:
    r"""Move noise levels towards noise, the ends staying where they are.

    .. math:: \sigma' = \frac{k\,\sigma}{1 + (k-1)\,\sigma},\qquad
        \frac{1-\sigma'}{\sigma'} = \frac1k\,\frac{1-\sigma}{\sigma}

    Source:
        Esser et al., arXiv:2403.03206, Sec. 5.3.2, with :math:`k = \sqrt{m/n}` there. Written so
        that 0 and 1 are mapped to themselves without rounding.

    Args:
        sigma: Noise levels [1], in [0, 1]. Gradient flows.
        shift: :math:`k` [1], positive; above 1 is noisier, 1 is the identity.

    Returns:
        The shifted levels [1], in [0, 1].

    Raises:
        ValueError: If ``shift`` is not positive or ``sigma`` is half precision.

    Examples:
        >>> shift_sigma(torch.tensor([1.0, 0.5, 0.0]), 3.0)
        tensor([1.0000, 0.7500, 0.0000])
    """
    require_full_precision(sigma=sigma)
    require_positive(shift=shift)
    return sigma / (sigma + (1.0 - sigma) / shift)


def resolution_shift(
    num_tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_log_shift: float = 0.5,
    max_log_shift: float = 1.15,
) -> float:
    r"""Return the shift that belongs to an image's size: a larger one needs more noise.

    .. math:: \log k = \mu_0 + (\mu_1 - \mu_0)\,\frac{n - n_0}{n_1 - n_0}

    Source:
        FLUX.1 and Stable Diffusion 3.5, as diffusers' pipelines compute ``mu`` and its scheduler
        applies it with ``time_shift_type="exponential"``. No deviation.

    Args:
        num_tokens: :math:`n`, tokens that the transformer sees [1]; 1024 for a FLUX image of
            512x512 pixels, at least 1. Outside the two points the line goes on.
        base_tokens: :math:`n_0` [1].
        max_tokens: :math:`n_1` [1], above ``base_tokens``.
        base_log_shift: :math:`\mu_0`, ``base_shift`` in diffusers [1].
        max_log_shift: :math:`\mu_1`, ``max_shift`` in diffusers [1].

    Returns:
        :math:`k`, for :func:`flow_sigmas` [1]; positive.

    Raises:
        ValueError: If ``num_tokens`` is below 1 or the two points span no line.

    Examples:
        >>> round(resolution_shift(4096), 4)
        3.1582
    """
    if num_tokens < 1:
        msg = f"`num_tokens` must be at least 1; got {num_tokens}."
        raise ValueError(msg)
    if not max_tokens > base_tokens:
        msg = f"`max_tokens` must be above base_tokens = {base_tokens}; got {max_tokens}."
        raise ValueError(msg)
    share = (num_tokens - base_tokens) / (max_tokens - base_tokens)
    return math.exp(base_log_shift + share * (max_log_shift - base_log_shift))


def flow_sigmas(
    num_steps: int,
    *,
    shift: float = 1.0,
    lowest_sigma: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Sigmas:
    r"""Return the levels of a grid: evenly spaced, shifted, and 0 at the end.

    .. math:: \sigma_i = \mathrm{shift}\Big(1 - (1-\sigma_{low})\frac{i}{T-1}\Big),
        \quad i < T,\qquad \sigma_T = 0

    Source:
        ``lowest_sigma`` None is the grid of FLUX in diffusers and of DanceGRPO
        (arXiv:2505.07818). Stable Diffusion 3 in diffusers, which Flow-GRPO (arXiv:2505.05470)
        samples on, goes down to the lowest trained level: 1e-3 where the shift is the
        resolution's; where it is fixed, the scheduler shifts that level twice, so that
        ``lowest_sigma`` is ``shift_sigma(1e-3, shift)``.

    Args:
        num_steps: :math:`T` [steps]; at least 1.
        shift: See :func:`shift_sigma` and :func:`resolution_shift` [1]; positive.
        lowest_sigma: Level of the last step before the shift [1], in (0, 1); None is
            1 / ``num_steps``. A grid of one step starts at 1 and has no other level.
        dtype: float32 or float64; every operation is in float64, rounded once.

    Returns:
        ``num_steps`` + 1 levels [1], from exactly 1 to exactly 0.

    Raises:
        ValueError: If a setting is outside its range.

    Examples:
        >>> flow_sigmas(4, shift=3.0, dtype=torch.float32)
        tensor([1.0000, 0.9000, 0.7500, 0.5000, 0.0000])
    """
    if num_steps < 1:
        msg = f"`num_steps` must be at least 1; got {num_steps}."
        raise ValueError(msg)
    if lowest_sigma is not None and not 0.0 < lowest_sigma < 1.0:
        msg = f"`lowest_sigma` must be in (0, 1); got {lowest_sigma}. The final 0 is added."
        raise ValueError(msg)
    require_full_dtype("dtype", dtype)
    lowest = 1.0 / num_steps if lowest_sigma is None else lowest_sigma
    even = torch.linspace(1.0, lowest, num_steps, dtype=torch.float64)
    return torch.cat([shift_sigma(even, shift), even.new_zeros(1)]).to(dtype)
