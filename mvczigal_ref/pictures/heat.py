"""Heat: how far images are from others, as levels and as colours from black to pale yellow."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

__all__ = ["error_levels", "heat"]

_FULL = 0.25  # difference that has the highest level [1]


def error_levels(
    images: Float[Any, "*batch rgb height width"], targets: Float[Any, "*batch rgb height width"]
) -> UInt8[Any, "*batch height width"]:
    """Measure where images differ from others: 0 is equal, 255 a quarter or more.

    Args:
        images: RGB in [0, 1], of torch.
        targets: Images that they are compared with.

    Returns:
        Mean absolute difference over RGB, of torch [1/1020].

    Examples:
        >>> import torch
        >>> error_levels(torch.zeros(3, 1, 1), torch.full((3, 1, 1), 0.125))
        tensor([[128]], dtype=torch.uint8)
    """
    difference = (images - targets).abs().mean(-3)
    return ((difference / _FULL).clamp(0, 1) * 255).round().byte()


def heat(
    levels: UInt8[np.ndarray, "*batch height width"],
) -> Float32[np.ndarray, "*batch rgb height width"]:
    """Colour levels by the map ``inferno``, which is even to the eye and in print.

    Args:
        levels: As :func:`error_levels` gives them.

    Returns:
        RGB in [0, 1].

    Examples:
        >>> float(heat(np.zeros((1, 1), np.uint8)).sum()) < 0.03
        True
    """
    import matplotlib  # which training needs for nothing

    colours = matplotlib.colormaps["inferno"].resampled(256)(range(256))[:, :3]
    return np.moveaxis(colours.astype(np.float32)[levels], -1, -3)
