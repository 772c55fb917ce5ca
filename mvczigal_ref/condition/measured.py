r"""Describe images of the tiny world by measuring them; no language model is asked.

The two colours are those that cover the most pixels. Shape, part, size and side are those of the
nearest of 1344 renders in these colours; the distance of an image x from a render r is

.. math:: \lVert x - r \rVert^2 / \lVert r - \mathrm{background} \rVert^2

An image that is far from every render is refused.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.condition.description import SIDES, SIZES, Description
from mvczigal_ref.condition.protocol import CaptionError
from mvczigal_ref.tiny_world.grammar import COLOURS, PARTS, SHAPES, Prompt
from mvczigal_ref.tiny_world.render import (
    BACKGROUND,
    IMAGE_SIZE,
    Geometry,
    Nuisance,
    colour_maps,
    render_maps,
)
from mvczigal_ref.tiny_world.visible import colour_area

__all__ = ["describe", "describe_each"]

_RENDERED: Final = (0, 45, 90, 135)  # azimuths [deg]; beyond 135 no part is seen
_AZIMUTHS: Final = (*_RENDERED, -45, -90, -135)  # the rest are mirror images
_GRID: Final = (3, 4, 2)  # numbers of sizes, heights and radii
_LEAST_AREA: Final = 3  # least blocks of a colour that counts, at the world's image size


def describe(image: Float[Tensor, "rgb height width"], *, max_error: float = 0.3) -> Description:
    """Describe one image of the tiny world.

    Args:
        image: RGB in [0, 1], square, from a camera at elevation 0 with the world's frame.
        max_error: Largest error at which a render still counts as a match, relative to the
            render's energy [1].

    Returns:
        The description of the nearest render.

    Raises:
        CaptionError: If the image does not show two colours, for example because the part is
            hidden, or matches no render.
        ValueError: If the image is not square.

    Examples:
        >>> describe(torch.full((3, 32, 32), 0.45))
        Traceback (most recent call last):
        mvczigal_ref.condition.protocol.CaptionError: the image shows 0 colours ...
    """
    (description,) = describe_each(image[None], max_error=max_error)
    if isinstance(description, CaptionError):
        raise description
    return description


@torch.no_grad()
def describe_each(
    images: Float[Tensor, "image rgb height width"], *, max_error: float = 0.3
) -> list[Description | CaptionError]:
    """Describe each of several images as :func:`describe` does, in one batch.

    Args:
        images: RGB in [0, 1], square, from cameras at elevation 0 with the world's frame.
        max_error: Largest error of a match, relative to the render's energy [1].

    Returns:
        One description per image, or the reason why there is none.

    Raises:
        ValueError: If the images are not square.

    Examples:
        >>> describe_each(torch.full((1, 3, 32, 32), 0.45))
        [CaptionError('the image shows 0 colours of a body and a part, none; 2 are needed.')]
    """
    size = images.shape[-1]
    if images.shape[-2] != size:
        msg = f"`image` must be square, as every frame; got {tuple(images.shape[-2:])} pixels."
        raise ValueError(msg)
    images = images.detach().float().cpu()
    colours = _two_colours(images)
    clear = [index for index, pair in enumerate(colours) if len(pair) == 2]
    nearest = iter(_nearest(images[clear], [colours[index] for index in clear]) if clear else ())
    return [
        _accepted(next(nearest), max_error) if len(pair) == 2 else _without_colours(pair)
        for pair in colours
    ]


def _two_colours(images: Tensor) -> list[list[str]]:
    """Find the two colours that cover most of each image; fewer where it shows fewer."""
    least = _LEAST_AREA * (images.shape[-1] / IMAGE_SIZE) ** 2
    areas = torch.stack([colour_area(images, colour) for colour in COLOURS], -1)
    areas[~images.flatten(1).isfinite().all(1)] = 0
    there = areas >= least
    order = areas.sort(dim=-1, descending=True, stable=True).indices
    names = list(COLOURS)
    return [
        [names[index] for index in places if seen[index]][:2]
        for places, seen in zip(order.tolist(), there.tolist(), strict=True)
    ]


def _without_colours(colours: Sequence[str]) -> CaptionError:
    names = " and ".join(colours) or "none"
    return CaptionError(
        f"the image shows {len(colours)} colours of a body and a part, {names}; 2 are needed."
    )


def _accepted(nearest: Description, max_error: float) -> Description | CaptionError:
    if nearest.error <= max_error:
        return nearest
    return CaptionError(
        f"no body and part match the image: the nearest, {str(nearest.prompt)!r}, has an error "
        f"of {nearest.error:.2f} of its energy; at most {max_error:g} is allowed."
    )


def _nearest(images: Tensor, colours: Sequence[Sequence[str]]) -> list[Description]:
    """Find each image's nearest render, in either order of its two colours."""
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
