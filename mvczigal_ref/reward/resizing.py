"""Resizing of images, one axis at a time, where only a window of the result is needed."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Interpolation", "covering_size", "resize_window"]


Interpolation = Literal["bicubic", "bilinear"]
"""Filter of the resizing, as wide as the larger pixel."""


def covering_size(source: Sequence[int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size of the source's aspect ratio that covers the target.

    Args:
        source: Height and width of an image [pixels].
        target: Height and width to cover [pixels].

    Returns:
        Height and width [pixels]; the longer side rounds down.

    Examples:
        >>> covering_size((8, 6), (4, 4))
        (5, 4)
    """
    height, width = source
    # Integers only: a float ratio may lose a pixel.
    if target[0] * width >= target[1] * height:
        return target[0], max(target[1], target[0] * width // height)
    return max(target[0], target[1] * height // width), target[1]


def resize_window(
    rows: Tensor, axis: int, length: int, window: range, interpolation: Interpolation
) -> Tensor:
    """Resize one axis to a length, and compute only the pixels of a window.

    Args:
        rows: Images. Gradient flows.
        axis: Axis to resize.
        length: Length of the whole resized axis [pixels].
        window: Pixels of the resized axis to compute.
        interpolation: Filter of the resizing.

    Returns:
        The images, the axis as long as the window.
    """
    source = rows.shape[axis]
    ratio, radius = source / length, {"bicubic": 2.0, "bilinear": 1.0}[interpolation]
    width = max(ratio, 1.0)
    centre = (torch.arange(window.start, window.stop, dtype=torch.float64) + 0.5) * ratio
    first = (centre - radius * width + 0.5).to(torch.int64).clamp(min=0)
    last = (centre + radius * width + 0.5).to(torch.int64).clamp(max=source)
    low, high = int(first[0]), int(last[-1])
    pixel = torch.arange(low, high)
    x = ((pixel + 0.5 - centre[:, None]) / width).abs()
    if interpolation == "bilinear":
        weight = 1.0 - x
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1.0, ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
        weight = torch.where(x < 1.0, near, far)
    touched = (pixel >= first[:, None]) & (pixel < last[:, None]) & (x < radius)
    weight = torch.where(touched, weight, 0.0)
    weight = (weight / weight.sum(-1, keepdim=True)).to(rows)
    return (rows.movedim(axis, -1)[..., low:high] @ weight.T).movedim(-1, axis)
