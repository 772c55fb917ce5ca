r"""Describe images of the tiny world by measuring them; no language model is asked.

The two colours are those that cover the most pixels. Shape, part, size and side are those of the
nearest of 1344 renders in these colours; the distance of an image x from a render r is

.. math:: \lVert x - r \rVert^2 / \lVert r - \mathrm{background} \rVert^2

An image that is far from every render is refused.
"""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.condition.description import Description
from mvczigal_ref.condition.nearest_render import nearest_renders
from mvczigal_ref.condition.protocol import CaptionError
from mvczigal_ref.tiny_world.colour_area import colour_area
from mvczigal_ref.tiny_world.grammar import COLOURS
from mvczigal_ref.tiny_world.render import (
    IMAGE_SIZE,
)

__all__ = ["describe", "describe_each"]

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
    nearest = iter(
        nearest_renders(images[clear], [colours[index] for index in clear]) if clear else ()
    )
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
