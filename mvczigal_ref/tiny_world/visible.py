"""Visibility of the named part, in its colour, in a set of views."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.shapes import Images
from mvczigal_ref.tiny_world.colour_area import colour_area
from mvczigal_ref.tiny_world.grammar import Prompt, parse
from mvczigal_ref.tiny_world.render import (
    Geometry,
    Nuisance,
    colour_maps,
    paint,
    render_maps,
)
from mvczigal_ref.tiny_world.scene import FRONT_DEG, WORLD_RIG

__all__ = ["part_visible", "views_showing_part"]

_SHARE: Final = 0.5  # least area of a visible part, relative to the smallest part's


def part_visible(
    images: Images, prompts: Sequence[str], *, rig: OrthographicRig = WORLD_RIG
) -> Bool[Tensor, " object"]:
    """Tell, for each object, whether some view shows the named part in its colour.

    The part counts as shown where its colour covers at least half of the area that the smallest
    part covers in the view that shows it best. The place of the colour in the image does not
    matter.

    Args:
        images: Views in [0, 1], one object per prompt, one view per camera.
        prompts: Sentences of the grammar.
        rig: Any number of cameras, in any place.

    Returns:
        True where the part is shown.

    Raises:
        ValueError: If counts disagree, images are not square, or a prompt is
            not in the grammar.

    Examples:
        >>> grey = torch.full((1, 6, 3, 32, 32), 0.45)
        >>> part_visible(grey, ["a red cube with a white nose"])
        tensor([False])
    """
    if images.shape[:2] != (len(prompts), rig.num_views):
        msg = (
            f"`images` must hold an object per prompt and a view per camera, {len(prompts)} and "
            f"{rig.num_views}; got {tuple(images.shape[:2])}."
        )
        raise ValueError(msg)
    return views_showing_part(images, prompts, rig=rig).any(1)


def views_showing_part(
    images: Images, prompts: Sequence[str], *, rig: OrthographicRig = WORLD_RIG
) -> Bool[Tensor, "object view"]:
    """Tell, for each view, whether it shows the named part in its colour.

    The rule is that of :func:`part_visible`; views may come from any cameras. A side view may show
    too little of a part to count, so compare the share of such views with that of real renders.

    Args:
        images: Views in [0, 1], one object per prompt.
        prompts: Sentences of the grammar.
        rig: Cameras on which the smallest part's best view is measured.

    Returns:
        True where the part is shown.

    Raises:
        ValueError: If counts disagree, images are not square, or a prompt is not in the grammar.

    Examples:
        >>> views_showing_part(torch.full((1, 2, 3, 32, 32), 0.45), ["a red can with a white fin"])
        tensor([[False, False]])
    """
    if images.shape[0] != len(prompts):
        msg = f"`prompts` must hold one per object, {images.shape[0]}; got {len(prompts)}."
        raise ValueError(msg)
    if images.shape[-2] != images.shape[-1]:
        msg = f"`images` must be square, as every frame; got {tuple(images.shape[-2:])} pixels."
        raise ValueError(msg)
    shown = [
        colour_area(views, prompt.part_colour) >= _least_area(prompt, rig, images.shape[-1])
        for views, prompt in zip(images, map(parse, prompts), strict=True)
    ]
    return torch.stack(shown) if shown else images.new_zeros(images.shape[:2], dtype=torch.bool)


@lru_cache(maxsize=512)
def _least_area(prompt: Prompt, rig: OrthographicRig, image_size: int) -> float:
    """Return the area that the part must cover, measured on renders of the smallest."""
    maps = _smallest(prompt.shape, prompt.part, rig, image_size)
    area = colour_area(paint(maps, colour_maps(prompt)), prompt.part_colour)
    return _SHARE * float(area.amax(-1).min())  # the best of all cameras


@lru_cache(maxsize=32)
def _smallest(
    shape: str, part: str, rig: OrthographicRig, image_size: int
) -> Float[Tensor, "n heading view 3 height width"]:
    """Render the smallest part at three heights, under every heading, from every camera."""
    heights = (Nuisance.HEIGHT_RANGE[0], 0.0, Nuisance.HEIGHT_RANGE[1])
    n = len(heights)
    smallest = Nuisance(
        torch.full((n,), Nuisance.SIZE_RANGE[0]),
        torch.tensor(heights),
        torch.full((n,), Nuisance.RADIUS_RANGE[0]),
    )
    relative = [a - FRONT_DEG - h for h, a in product(Nuisance.HEADINGS, rig.azimuth_deg)]
    maps = render_maps(
        Geometry(shape, part, smallest),
        torch.tensor(relative),
        torch.tensor(rig.elevation_deg * len(Nuisance.HEADINGS)),
        image_size=image_size,
        half_width=rig.half_width,
    )
    return maps.view(n, len(Nuisance.HEADINGS), rig.num_views, *maps.shape[2:])
