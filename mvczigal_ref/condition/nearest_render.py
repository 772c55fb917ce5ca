"""Nearest of the tiny world's renders to an image, in given colours."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product
from typing import Final

import torch
from torch import Tensor

from mvczigal_ref.condition.description import SIDES, SIZES, Description
from mvczigal_ref.tiny_world.grammar import PARTS, SHAPES, Prompt
from mvczigal_ref.tiny_world.render import (
    BACKGROUND,
    Geometry,
    Nuisance,
    colour_maps,
    render_maps,
)

__all__ = ["nearest_renders"]

_RENDERED: Final = (0, 45, 90, 135)  # azimuths [deg]; beyond 135 no part is seen
_AZIMUTHS: Final = (*_RENDERED, -45, -90, -135)  # the rest are mirror images
_GRID: Final = (3, 4, 2)  # numbers of sizes, heights and radii


def nearest_renders(images: Tensor, colours: Sequence[Sequence[str]]) -> list[Description]:
    """Find each image's nearest render, in either order of its two colours.

    Args:
        images: RGB in [0, 1], square, from cameras at elevation 0 with the world's frame.
        colours: Two colours per image.

    Returns:
        Description of each nearest render, with its error relative to the render's energy [1].
    """
    above = (images - BACKGROUND).flatten(2)
    square = above.square().sum((1, 2))[:, None, None]
    best: list[Description] = []
    for shape, part in product(SHAPES, PARTS):
        prompts = [
            [
                Prompt(body_colour=body, shape=shape, part_colour=other, part=part)
                for body, other in permutations(pair)
            ]
            for pair in colours
        ]
        weights = torch.stack([torch.stack([colour_maps(one) for one in both]) for both in prompts])
        maps, gram = _renders(shape, part, images.shape[-1])
        seen = torch.einsum("rmp,ncp->nrmc", maps, above)
        energy = torch.einsum("rmk,nomk->nor", gram, weights @ weights.mT)
        error = square - 2 * torch.einsum("nrmc,nomc->nor", seen, weights) + energy
        least, place = (error / energy).clamp(min=0).flatten(1).min(-1)
        nearest = [
            _description(both[at // len(maps)], at % len(maps), relative)
            for both, at, relative in zip(prompts, place.tolist(), least.tolist(), strict=True)
        ]
        pairs = zip(best or nearest, nearest, strict=True)
        best = [new if new.error < old.error else old for old, new in pairs]
    return best


def _description(prompt: Prompt, render: int, error: float) -> Description:
    """Describe the render of a prompt that has this number in the grid."""
    geometry, azimuth = divmod(render, len(_AZIMUTHS))
    angle = _AZIMUTHS[azimuth]
    return Description(
        prompt=prompt,
        size={0: SIZES[0], _GRID[0] - 1: SIZES[1]}.get(geometry // (_GRID[1] * _GRID[2])),
        # The camera stands beside the front: its picture has the part on the other side.
        side=None if angle == 0 else SIDES[angle < 0],
        error=error,
    )


@lru_cache(maxsize=16)
def _renders(shape: str, part: str, image_size: int) -> tuple[Tensor, Tensor]:
    """Render every geometry of the grid from every azimuth at which the part may show.

    Returns the three maps of each render, and the inner products of every two of its maps.
    """
    geometry = Geometry(shape, part, Nuisance.grid(*_GRID))
    maps = render_maps(geometry, torch.tensor(_RENDERED).float(), image_size=image_size)
    maps = torch.cat([maps, maps[:, 1:].flip(-1)], 1).flatten(-2).flatten(0, 1)
    return maps, maps @ maps.mT
