"""Contact sheets and grids: many images as one picture."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw, ImageFont

from mvczigal_ref.files import atomic_write

__all__ = ["as_grid", "contact_sheet", "save_png", "view_scale"]

_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_SMALLEST = 96  # edge of a view that is still seen well [screen pixels]
_FONT_SIZE, _LINE = 12, 18  # of a label [pixels]


def contact_sheet(
    images: Float[Any, "row column rgb height width"],
    *,
    scale: int = 1,
    row_labels: Sequence[str] | None = None,
    gap: int = 2,
    paper: tuple[int, int, int] = _PAPER,
) -> Image.Image:
    """Lay out objects as rows and their views as columns.

    Args:
        images: RGB, of torch or NumPy; values outside [0, 1] are clamped.
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
        >>> contact_sheet(np.zeros((2, 3, 3, 8, 8)), scale=2, gap=1).size
        (52, 35)
    """
    rows, columns, _, height, width = images.shape
    if not math.prod(images.shape):
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
    pixels = (_array(images).clip(0, 1) * np.float32(255)).round().astype(np.uint8)
    pixels = pixels.repeat(scale, -1).repeat(scale, -2)
    for row, views in enumerate(np.ascontiguousarray(pixels.transpose(0, 1, 3, 4, 2))):
        top = gap + row * step_y
        if labels:
            ImageDraw.Draw(sheet).text((gap, top), labels[row], fill=_INK, font=font)
        for column, view in enumerate(views):
            sheet.paste(Image.fromarray(view), (gap + column * step_x, top + line))
    return sheet


def _array(images: Float[Any, "*axis"]) -> Float32[np.ndarray, "*axis"]:
    """Bring images to the CPU, in fp32."""
    if isinstance(images, np.ndarray):
        return images.astype(np.float32)
    array: np.ndarray = images.detach().cpu().float().numpy()
    return array


def view_scale(images: Float[Any, "*axis"]) -> int:
    """Choose the scale at which small views are large enough to be seen.

    Args:
        images: Views, whose last axis is their width.

    Returns:
        Smallest scale, for :func:`contact_sheet`, that makes a view 96 screen pixels wide.

    Examples:
        >>> view_scale(np.zeros((3, 32, 32))), view_scale(np.zeros((3, 512, 512)))
        (3, 1)
    """
    width: int = images.shape[-1]
    return max(1, -(-_SMALLEST // width))


def as_grid(
    images: Float[Any, "view rgb height width"], columns: int
) -> Float[Any, "row column rgb height width"]:
    """Lay out one object's views row by row, for :func:`contact_sheet`.

    Args:
        images: RGB, of torch.
        columns: Views per row; at least 1.

    Returns:
        As many rows as needed, the last filled up with white.

    Raises:
        ValueError: If ``columns`` is below 1.

    Examples:
        >>> import torch
        >>> as_grid(torch.zeros(5, 3, 8, 8), 3).shape
        torch.Size([2, 3, 3, 8, 8])
    """
    if columns < 1:
        msg = f"`columns` must be at least 1; got {columns}."
        raise ValueError(msg)
    import torch

    white = images.new_ones((-len(images) % columns, *images.shape[1:]))
    return torch.cat([images, white]).unflatten(0, (-1, columns))


def save_png(path: Path, image: Image.Image) -> None:
    """Write a picture so that a reader finds it whole or not at all.

    Args:
        path: File to write; its folder is made.
        image: The picture.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())
