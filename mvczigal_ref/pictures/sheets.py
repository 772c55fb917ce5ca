"""Contact sheets, grids and turntables: many images as one picture or as an animation."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mvczigal_ref.files import atomic_write
from mvczigal_ref.shapes import Images

__all__ = ["as_grid", "contact_sheet", "save_png", "save_turntable"]

_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_FONT_SIZE, _LINE = 12, 18  # of a label [pixels]
# Format by the suffix of a file's name; all of them keep every pixel but GIF, of 256 colours.
_ANIMATED: dict[str, tuple[str, dict[str, Any]]] = {
    ".gif": ("GIF", {"disposal": 2}),
    ".png": ("PNG", {}),
    ".apng": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
}


def contact_sheet(
    images: Images,
    *,
    scale: int = 1,
    row_labels: Sequence[str] | None = None,
    gap: int = 2,
    paper: tuple[int, int, int] = _PAPER,
) -> Image.Image:
    """Lay out objects as rows and their views as columns.

    Args:
        images: RGB; values outside [0, 1] are clamped.
        scale: Screen pixels along the edge of an image's pixel, which stays a
            sharp square; at least 1.
        row_labels: A line of text above each row.
        gap: Pixels of paper around every image.
        paper: Colour of the ground, RGB up to 255; white if not given.

    Returns:
        The picture, RGB.

    Raises:
        ValueError: If there is no image, ``scale`` or ``gap`` is out of range, or
            the labels are not one per row.

    Examples:
        >>> contact_sheet(torch.zeros(2, 3, 3, 8, 8), scale=2, gap=1).size
        (52, 35)
    """
    rows, columns, _, height, width = images.shape
    if not images.numel():
        msg = f"`images` must hold at least one image; got shape {tuple(images.shape)}."
        raise ValueError(msg)
    if scale < 1:
        msg = f"`scale` must be at least 1; got {scale}."
        raise ValueError(msg)
    if gap < 0:
        msg = f"`gap` must not be negative; got {gap}."
        raise ValueError(msg)
    if row_labels is not None and len(row_labels) != rows:
        msg = f"`row_labels` must hold one text per row, {rows}; got {len(row_labels)}."
        raise ValueError(msg)
    font = ImageFont.load_default(_FONT_SIZE)
    labels = row_labels or ()
    line = _LINE if labels else 0
    step_x, step_y = width * scale + gap, height * scale + gap + line
    text = max((font.getlength(label) for label in labels), default=0)
    size = (max(gap + columns * step_x, 2 * gap + round(text)), gap + rows * step_y)
    sheet = Image.new("RGB", size, paper)
    pixels = (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    for row, views in enumerate(pixels.permute(0, 1, 3, 4, 2).numpy()):
        top = gap + row * step_y
        if labels:
            ImageDraw.Draw(sheet).text((gap, top), labels[row], fill=_INK, font=font)
        for column, view in enumerate(views):
            sheet.paste(Image.fromarray(view), (gap + column * step_x, top + line))
    return sheet


def as_grid(
    images: Float[Tensor, "view rgb height width"], columns: int
) -> Float[Tensor, "row column rgb height width"]:
    """Lay out one object's views row by row, for :func:`contact_sheet`.

    Args:
        images: RGB.
        columns: Views per row; at least 1.

    Returns:
        As many rows as needed, the last filled up with white.

    Raises:
        ValueError: If ``columns`` is below 1.

    Examples:
        >>> as_grid(torch.zeros(5, 3, 8, 8), 3).shape
        torch.Size([2, 3, 3, 8, 8])
    """
    if columns < 1:
        msg = f"`columns` must be at least 1; got {columns}."
        raise ValueError(msg)
    white = images.new_ones((-len(images) % columns, *images.shape[1:]))
    grid: Images = torch.cat([images, white]).unflatten(0, (-1, columns))
    return grid


def save_png(path: Path, image: Image.Image) -> None:
    """Write a picture so that a reader finds it whole or not at all.

    Args:
        path: File to write; its folder is made.
        image: The picture.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    atomic_write(path, buffer.getvalue())


def save_turntable(
    path: Path,
    images: Float[Tensor, "view rgb height width"],
    azimuth_deg: Sequence[float],
    *,
    seconds: float = 4.0,
    scale: int = 1,
) -> None:
    """Write one object's views as an animation that turns around it without end.

    Views follow one another by azimuth. Each is shown for its share of the turn: half the way from
    the view before it plus half the way to the next.

    Args:
        path: File to write, ``.gif``, ``.png`` or ``.apng``, or ``.webp``; its folder is made.
        images: RGB; values outside [0, 1] are clamped.
        azimuth_deg: Azimuth of each view's camera [deg].
        seconds: Duration of a turn [s]; positive.
        scale: Screen pixels along the edge of an image's pixel; at least 1.

    Raises:
        ValueError: If the suffix is unknown, the azimuths are not one per view, or ``seconds`` is
            not positive.
    """
    if path.suffix.lower() not in _ANIMATED:
        msg = f"`path` must end in {', '.join(_ANIMATED)}; got {path.name!r}."
        raise ValueError(msg)
    if len(azimuth_deg) != len(images):
        msg = f"`azimuth_deg` must hold one angle per view, {len(images)}; got {len(azimuth_deg)}."
        raise ValueError(msg)
    if not seconds > 0.0:
        msg = f"`seconds` must be positive; got {seconds!r}."
        raise ValueError(msg)
    order = sorted(range(len(images)), key=lambda view: azimuth_deg[view] % 360.0)
    angles = [azimuth_deg[view] % 360.0 for view in order]
    around = [angles[-1] - 360.0, *angles, angles[0] + 360.0]
    shares = [(after - before) / 720.0 for before, after in zip(around, around[2:], strict=False)]
    frames = [contact_sheet(images[view][None, None], scale=scale, gap=0) for view in order]
    kind, options = _ANIMATED[path.suffix.lower()]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=frames[1:],
        duration=[round(1000.0 * seconds * share) for share in shares],
        loop=0,
        **options,
    )
    atomic_write(path, buffer.getvalue())
