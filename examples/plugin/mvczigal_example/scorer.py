"""Scorer: how red each view is."""

from collections.abc import Callable

from torch import Tensor

from mvczigal_ref.reward.builders import ScorerOptions

__all__ = ["redness"]


def redness(options: ScorerOptions) -> Callable[[Tensor, list[str]], Tensor]:
    """Build the scorer; a network would be loaded here, from ``options.weights``.

    Args:
        options: Device, dtype, weights and number of views.

    Returns:
        Function of images (object, view, rgb, height, width) in [0, 1] and prompts, that gives
        (object, view).
    """

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        red, green, blue = images.mean((-1, -2)).unbind(-1)
        return red - (green + blue) / 2

    return score
