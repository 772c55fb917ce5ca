"""Sampler of a flow: more of the steps at low noise."""

from torch import Tensor

from mvczigal_ref.config import FlowConfig
from mvczigal_ref.diffusion import FlowSampler

__all__ = ["late"]


def late(steps: int, sigmas: Tensor, settings: FlowConfig) -> FlowSampler:
    """Bend a grid towards its clean end; a kernel of one's own is a subclass of FlowSampler.

    Args:
        steps: Length of the grid [steps].
        sigmas: The grid of the settings, one level more than there are steps [1].
        settings: Section ``flow``.

    Returns:
        The sampler.
    """
    return FlowSampler.create(
        sigmas=sigmas**1.5,
        kernel=settings.kernel,
        noise_scale=settings.noise_scale,
        image_is_denoised=settings.image_is_denoised,
    )
