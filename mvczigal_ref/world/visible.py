"""Whether a set of views shows the part that its prompt names, in its colour."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.shapes import Images
from mvczigal_ref.world.grammar import COLOURS, Prompt, parse
from mvczigal_ref.world.render import (
    AMBIENT,
    BACKGROUND,
    Geometry,
    Nuisance,
    colour_maps,
    paint,
    render_maps,
)
from mvczigal_ref.world.scene import FRONT_DEG, WORLD_RIG

__all__ = ["colour_area", "part_visible"]

_SHARE: Final = 0.5  # of the smallest part's area


def colour_area(
    images: Float[Tensor, "*batch rgb height width"], colour: str
) -> Int[Tensor, "*batch"]:
    r"""Count the pixels that one of the grammar's colours explains best.

    .. math:: \Big|\Big\{p : \min_{s \in [0.55, 1]} \lVert x_p - s\,c \rVert
        < \min\big(\lVert x_p - \text{background} \rVert,
        \min_{c' \ne c, s} \lVert x_p - s\,c' \rVert\big)\Big\}\Big|

    where s runs over the brightness of a shaded surface.

    Args:
        images: RGB in [0, 1].
        colour: One of ``COLOURS``.

    Returns:
        Pixels of that colour [1].

    Examples:
        >>> colour_area(torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1), "red")
        tensor(1)
    """
    names = list(COLOURS)
    full = torch.tensor([COLOURS[name] for name in names]).to(images)[:, :, None, None]
    pixel = images.unsqueeze(-4)  # (*batch, 1, rgb, height, width) against (colour, rgb, 1, 1)
    shade = (pixel * full).sum(-3, keepdim=True) / full.square().sum(-3, keepdim=True)
    distance = (pixel - shade.clamp(AMBIENT, 1) * full).square().sum(-3)
    background = (images - BACKGROUND).square().sum(-3).unsqueeze(-3)
    best = torch.cat([distance, background], -3).argmin(-3)
    return (best == names.index(colour)).sum((-2, -1))


def part_visible(
    images: Images, prompts: Sequence[str], *, rig: OrthographicRig = WORLD_RIG
) -> Bool[Tensor, " object"]:
    """Tell of each object whether some view shows the named part in its colour.

    The part counts as shown where its colour covers at least half of the area
    that the smallest part covers in the view that shows it best. Wherever
    the colour stands in the image is right.

    Args:
        images: Views in [0, 1], one object a prompt, one view a camera.
        prompts: Sentences of the grammar.
        rig: The cameras; any number, anywhere.

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
            f"`images` must hold an object a prompt and a view a camera, {len(prompts)} and "
            f"{rig.num_views}; got {tuple(images.shape[:2])}."
        )
        raise ValueError(msg)
    if images.shape[-2] != images.shape[-1]:
        msg = f"`images` must be square, as every frame; got {tuple(images.shape[-2:])} pixels."
        raise ValueError(msg)
    shown = [
        colour_area(views, said.part_colour).amax() >= _least_area(said, rig, images.shape[-1])
        for views, said in zip(images, map(parse, prompts), strict=True)
    ]
    return torch.stack(shown) if shown else torch.zeros(0, dtype=torch.bool)


@lru_cache(maxsize=512)
def _least_area(said: Prompt, rig: OrthographicRig, image_size: int) -> float:
    """Return the pixels that the part must cover, measured on renders of the smallest."""
    heights = (Nuisance.HEIGHT_RANGE[0], 0.0, Nuisance.HEIGHT_RANGE[1])
    n = len(heights)
    smallest = Nuisance(
        torch.full((n,), Nuisance.SIZE_RANGE[0]),
        torch.tensor(heights),
        torch.full((n,), Nuisance.RADIUS_RANGE[0]),
    )
    relative = [a - FRONT_DEG - h for h, a in product(Nuisance.HEADINGS, rig.azimuth_deg)]
    maps = render_maps(
        Geometry(said.shape, said.part, smallest),
        torch.tensor(relative),
        torch.tensor(rig.elevation_deg * len(Nuisance.HEADINGS)),
        image_size=image_size,
        half_width=rig.half_width,
    )
    area = colour_area(paint(maps, colour_maps(said)), said.part_colour)
    best = area.unflatten(1, (len(Nuisance.HEADINGS), -1)).amax(-1)  # over cameras
    return _SHARE * float(best.min())
