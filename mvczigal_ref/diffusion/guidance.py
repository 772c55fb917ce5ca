"""Guidance: two predictions mixed, or a guidance scale given to the network."""

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_one_shape
from mvczigal_ref.shapes import BatchLatent

__all__ = ["classifier_free_guidance", "guidance_embedding"]

_MAX_PERIOD = 10_000.0
_GUIDANCE_UNIT = 1_000.0


def classifier_free_guidance(
    uncond: BatchLatent, cond: BatchLatent, *, guidance_scale: float
) -> BatchLatent:
    r"""Extrapolate from the unconditional prediction through the conditional one.

    .. math:: \hat\epsilon = \epsilon_u + w\,(\epsilon_c - \epsilon_u)

    Source:
        Ho and Salimans, arXiv:2207.12598, with :math:`w` = 1 meaning no guidance, as diffusers.

    Args:
        uncond: Prediction under the negative prompt. Gradient flows.
        cond: Prediction under the prompt. Gradient flows.
        guidance_scale: :math:`w` [1]; 0 gives ``uncond``, 1 gives ``cond``.

    Returns:
        The guided prediction.

    Raises:
        ValueError: If shapes differ, or a tensor is half precision.

    Examples:
        >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        >>> classifier_free_guidance(zero, one, guidance_scale=7.0).item()
        7.0
    """
    require_one_shape(uncond=uncond, cond=cond)
    dtype = torch.promote_types(uncond.dtype, cond.dtype)
    return uncond.to(dtype) + guidance_scale * (cond - uncond)


def guidance_embedding(
    guidance_scale: Float[Tensor, " row"], *, width: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "row width"]:
    r"""Embed a guidance scale in waves, for a network distilled to read it.

    .. math:: e_k = \sin\big(1000\,(w-1)\,10^{-4k/(n-1)}\big),\quad
        e_{n+k} = \cos(\cdot),\qquad k = 0..n-1,\ n = \lfloor \mathrm{width}/2 \rfloor

    Source:
        Luo et al., arXiv:2310.04378 (w-conditioning). As diffusers the argument is :math:`w-1`,
        so no guidance (w = 1) is embedded as 0. Angles reach thousands of radians and in fp32
        carry an error near 1e-4: the order of operations is the one that published networks
        were trained with.

    Args:
        guidance_scale: :math:`w` [1], one number per row. Gradient flows.
        width: Length of the embedding, ``time_cond_proj_dim`` of the network; at least 4. An odd
            width ends with a 0.
        dtype: dtype of the result; angles are computed in it, or in fp32 if it is narrower.

    Returns:
        One embedding per row.

    Raises:
        ValueError: If ``width`` is below 4.

    Examples:
        >>> guidance_embedding(torch.ones(1), width=4)
        tensor([[0., 0., 1., 1.]])
    """
    if width < 4:
        msg = f"`width` must be at least 4, two waves of sine and cosine; got {width}."
        raise ValueError(msg)
    wide = torch.promote_types(dtype, torch.float32)
    num_waves = width // 2
    device = guidance_scale.device
    log_period = torch.tensor(_MAX_PERIOD, dtype=wide, device=device).log() / (num_waves - 1)
    frequency = (torch.arange(num_waves, dtype=wide, device=device) * -log_period).exp()
    excess = (guidance_scale.to(wide) - 1.0) * _GUIDANCE_UNIT
    angle = excess[:, None] * frequency[None, :]
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.nn.functional.pad(waves, (0, width % 2)).to(dtype)
