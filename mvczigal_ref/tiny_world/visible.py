"""Visibility of the named part, in its colour, in a set of views."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.shapes import Images
from mvczigal_ref.tiny_world.grammar import COLOURS, Prompt, parse
from mvczigal_ref.tiny_world.render import (
    AMBIENT,
    BACKGROUND,
    Geometry,
    Nuisance,
    colour_maps,
    paint,
    render_maps,
)
from mvczigal_ref.tiny_world.scene import FRONT_DEG, WORLD_RIG

__all__ = ["colour_area", "part_visible", "views_showing_part"]

_SHARE: Final = 0.5  # least area of a visible part, relative to the smallest part's


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
