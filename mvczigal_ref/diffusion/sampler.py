"""A time grid bound to a step function: all that rollout and update know of a sampler.

Steps are counted from 0, the noisiest. A step index may be a Python int or an int64 tensor, one
index for all latents or with one axis per axis of the batch; a tensor is never read from its
device, so a whole trajectory is one call.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from mvczigal_ref.diffusion.ddim_sampler import DdimSampler
from mvczigal_ref.diffusion.grid import Device, StepIndex
from mvczigal_ref.diffusion.lcm_sampler import LcmSampler
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.shapes import BatchLatent, Timesteps

__all__ = ["DdimSampler", "LcmSampler", "Sampler", "StepIndex", "require_density"]


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
    def num_density_steps(self) -> int:
        """Steps from the first on that have a log-density [steps]; the others draw no noise."""
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


def require_density(name: str, steps: Sequence[int], sampler: Sampler) -> None:
    """Refuse steps that a sampler gives no spread.

    Args:
        name: What the caller calls the steps.
        steps: Those that are to be scored [index into the grid].
        sampler: Grid and transition kernel.

    Raises:
        ValueError: If a step has no log-density.

    Examples:
        >>> sampler = LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000))
        >>> require_density("steps", [0, 1], sampler)
    """
    most = sampler.num_density_steps
    if any(step >= most for step in steps):
        msg = (
            f"`{name}` must be below {most}, the steps that this sampler gives a spread; got "
            f"{list(steps)}. The others have no log-density: leave them to the ODE."
        )
        raise ValueError(msg)
