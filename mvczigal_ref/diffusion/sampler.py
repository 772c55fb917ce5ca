"""A time grid bound to a step function: all that rollout and update know of a sampler.

Steps are counted from 0, the noisiest. A step index may be a Python int or an int64 tensor, one
number a latent; a tensor is never read from its device, so a whole trajectory is one call.
"""

from typing import Protocol, runtime_checkable

import torch

from mvczigal_ref.diffusion.ddim_sampler import DdimSampler
from mvczigal_ref.diffusion.grid import Device, StepIndex
from mvczigal_ref.diffusion.lcm_sampler import LcmSampler
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.shapes import BatchLatent, Timesteps

__all__ = ["DdimSampler", "LcmSampler", "Sampler", "StepIndex"]


@runtime_checkable
class Sampler(Protocol):
    """A grid of noise levels, the Gaussian of a step down it, and the way back up."""

    @property
    def timesteps(self) -> Timesteps:
        """Training-time noise index of each step, where the network is evaluated."""
        ...

    @property
    def num_steps(self) -> int:
        """Length of the grid [steps]."""
        ...

    @property
    def last_action_is_image_independent(self) -> bool:
        """Whether the image is decoded from ``denoised``, before the last action is drawn."""
        ...

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent."""
        ...

    def invert(self, output: BatchLatent, latent_prev: BatchLatent, step: StepIndex) -> BatchLatent:
        """Carry a latent from the level below ``step`` up to the level of ``step``."""
        ...

    def to(self, device: Device = None, dtype: torch.dtype | None = None) -> "Sampler":
        """Return a copy with its tables elsewhere."""
        ...
