"""Area of a colour in an image of the tiny world."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.tiny_world.grammar import COLOURS
from mvczigal_ref.tiny_world.render import AMBIENT, BACKGROUND

__all__ = ["colour_area"]


def colour_area(
    images: Float[Tensor, "*batch rgb height width"], colour: str
) -> Int[Tensor, "*batch"]:
    r"""Count the 2 x 2 blocks of pixels whose nearest colour is a given one.

    A pixel x belongs to the nearest of the background and the colours c under any shading,

    .. math:: \min_{s \in [0.55, 1]} \lVert x - s\,c \rVert

    and a block counts if all four of its pixels belong to the colour: neither noise nor the mixed
    pixels along an outline form blocks.

    Args:
        images: RGB in [0, 1].
        colour: One of ``COLOURS``.

    Returns:
        Blocks of that colour [1]; they may overlap.

    Examples:
        >>> red = torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(3, 4, 4)
        >>> colour_area(red, "red")
        tensor(9)
    """
    names = list(COLOURS)
    full = torch.tensor([COLOURS[name] for name in names]).to(images)[:, :, None, None]
    pixel = images.unsqueeze(-4)  # (*batch, 1, rgb, height, width) against (colour, rgb, 1, 1)
    shade = (pixel * full).sum(-3, keepdim=True) / full.square().sum(-3, keepdim=True)
    distance = (pixel - shade.clamp(AMBIENT, 1) * full).square().sum(-3)
    background = (images - BACKGROUND).square().sum(-3).unsqueeze(-3)
    best = torch.cat([distance, background], -3).argmin(-3)
    belongs = best == names.index(colour)
    pairs = belongs[..., 1:] & belongs[..., :-1]
    return (pairs[..., 1:, :] & pairs[..., :-1, :]).sum((-2, -1))
