"""Packing of latents into tokens, and the tokens' positions, as in FLUX.1."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from mvczigal_ref.shapes import Latent

__all__ = ["PATCH", "PackedLatent", "image_positions", "pack_latents", "unpack_latents"]


PackedLatent = Float[Tensor, "row token packed"]


PATCH = 2
"""Edge of the square of latent pixels that makes a token [latent px]."""


def pack_latents(latent: Latent) -> PackedLatent:
    r"""Lay squares of 2x2 latent pixels out as tokens.

    .. math:: p_{n,\;4c + 2i + j} = z_{c,\;2y + i,\;2x + j},\qquad n = y\,\tfrac{w}{2} + x

    Source:
        FLUX.1 as diffusers runs it. No deviation.

    Args:
        latent: Latents of even height and width [1]. Gradient flows.

    Returns:
        A quarter of the pixels as tokens, of four times the channels.

    Examples:
        >>> pack_latents(torch.arange(4.0).reshape(1, 1, 2, 2))
        tensor([[[0., 1., 2., 3.]]])
    """
    return pixel_unshuffle(latent, PATCH).flatten(2).mT


def unpack_latents(tokens: PackedLatent, *, height: int, width: int) -> Latent:
    """Undo :func:`pack_latents`.

    Args:
        tokens: One token per square of 2x2 [1]. Gradient flows.
        height: Height of the latents [latent px]; even.
        width: Width of the latents [latent px]; even.

    Returns:
        The latents.

    Examples:
        >>> unpack_latents(torch.arange(4.0).reshape(1, 1, 4), height=2, width=2)
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    rows = tokens.mT.unflatten(2, (height // PATCH, width // PATCH))
    return pixel_shuffle(rows, PATCH)


def image_positions(
    height: int, width: int, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "token 3"]:
    """Place image tokens on a grid; text tokens all stand at zero.

    Args:
        height: Height of the latents [latent px]; even.
        width: Width of the latents [latent px]; even.
        device: Device of the result.

    Returns:
        A zero, the row and the column of each token, fp32 [tokens].

    Examples:
        >>> image_positions(2, 4)
        tensor([[0., 0., 0.],
                [0., 0., 1.]])
    """
    y = torch.arange(height // PATCH, dtype=torch.float32, device=device)
    x = torch.arange(width // PATCH, dtype=torch.float32, device=device)
    return torch.cartesian_prod(y.new_zeros(1), y, x)
