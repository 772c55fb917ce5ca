"""Ring of cameras: one object's views around it, each where its camera stands."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mvczigal_ref.pictures.sheets import contact_sheet

__all__ = ["camera_ring"]

_PAPER, _INK, _LINE = (255, 255, 255), (30, 30, 30), (170, 170, 170)
_FONT_SIZE, _LABEL = 12, 18  # of an azimuth [pixels]
_ROOM = 1.15  # distance of two neighbours over the diagonal of a view [1]
_OBJECT = 0.25  # size of the mark in the middle over the edge of a view [1]


def camera_ring(
    images: Float[Tensor, "view rgb height width"],
    azimuth_deg: Sequence[float],
    *,
    scale: int = 1,
) -> Image.Image:
    """Lay one object's views on a circle, as seen from above.

    The camera at -90 degrees stands below the object, that at 0 right of it.

    Args:
        images: RGB; values outside [0, 1] are clamped.
        azimuth_deg: Azimuth of each view's camera [deg].
        scale: Screen pixels along the edge of an image's pixel; at least 1.

    Returns:
        The picture, RGB and square, with each azimuth below its view.

    Raises:
        ValueError: If there is no view, the azimuths are not one per view, or ``scale`` is below
            1.

    Examples:
        >>> import torch
        >>> ring = camera_ring(torch.zeros(4, 3, 8, 8), [-90.0, 0.0, 90.0, 180.0])
        >>> ring.width == ring.height
        True
    """
    if len(azimuth_deg) != len(images):
        msg = f"`azimuth_deg` must hold one angle per view, {len(images)}; got {len(azimuth_deg)}."
        raise ValueError(msg)
    views = [contact_sheet(image[None, None], scale=scale, gap=0) for image in images]
    if not views:
        raise ValueError("`images` must hold at least one view; got none.")
    width, height = views[0].size
    box = (width, height + _LABEL)
    radius = _radius(azimuth_deg, math.hypot(*box) * _ROOM)
    edge = math.ceil(2 * radius + math.hypot(*box))
    middle = edge / 2
    ring, font = Image.new("RGB", (edge, edge), _PAPER), ImageFont.load_default(_FONT_SIZE)
    draw, mark = ImageDraw.Draw(ring), width * _OBJECT / 2
    draw.ellipse([middle - radius, middle - radius, middle + radius, middle + radius], None, _LINE)
    draw.ellipse([middle - mark, middle - mark, middle + mark, middle + mark], _LINE)
    for view, azimuth in zip(views, azimuth_deg, strict=True):
        angle = math.radians(azimuth)
        x = round(middle + radius * math.cos(angle) - box[0] / 2)
        y = round(middle - radius * math.sin(angle) - box[1] / 2)
        draw.rectangle([x, y, x + box[0], y + box[1]], _PAPER)
        ring.paste(view, (x, y))
        label = f"{azimuth:g}°"
        left = x + (width - font.getlength(label)) / 2
        draw.text((left, y + height), label, fill=_INK, font=font)
    return ring


def _radius(azimuth_deg: Sequence[float], room: float) -> float:
    """Give the circle on which no two neighbours touch [pixels]."""
    angles = sorted({azimuth % 360.0 for azimuth in azimuth_deg})
    after = [*angles[1:], angles[0] + 360.0]
    nearest = min(b - a for a, b in zip(angles, after, strict=True))
    return max(room, room / (2 * math.sin(math.radians(min(nearest, 180.0) / 2))))
