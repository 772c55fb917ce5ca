"""Heat: numbers from 0 to 1 as colours from black to pale yellow."""

import matplotlib
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["error_map", "heat"]

_FULL = 0.25  # difference that has the brightest colour [1]


def heat(
    values: Float[Tensor, "*batch height width"],
) -> Float[Tensor, "*batch rgb height width"]:
    """Colour numbers by the map ``inferno``, which is even to the eye and in print.

    Args:
        values: Numbers; those outside [0, 1] are clamped.

    Returns:
        RGB in [0, 1].

    Examples:
        >>> heat(torch.zeros(1, 1)).flatten().sum() < 0.03
        tensor(True)
    """
    colours = torch.tensor(matplotlib.colormaps["inferno"].resampled(256)(range(256)))[:, :3]
    index = (values.clamp(0, 1) * 255).round().long()
    return colours.to(values)[index].movedim(-1, -3)


def error_map(
    images: Float[Tensor, "*batch rgb height width"],
    targets: Float[Tensor, "*batch rgb height width"],
) -> Float[Tensor, "*batch rgb height width"]:
    """Paint where images differ from others: black is equal, pale yellow a quarter or more.

    Args:
        images: RGB in [0, 1].
        targets: Images that they are compared with.

    Returns:
        Mean absolute difference over RGB, as colours.

    Examples:
        >>> error_map(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)).flatten() > 0.6
        tensor([True, True, True])
    """
    return heat((images - targets).abs().mean(-3) / _FULL)
