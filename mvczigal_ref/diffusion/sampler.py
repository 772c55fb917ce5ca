"""Samplers: the protocol, one step's Gaussian, and the lookup in a grid's tables.

Steps are counted from 0, the noisiest. A step index may be a Python int or an int64 tensor, one
number per latent; a tensor is never read from its device, so a whole trajectory is one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_full_dtype
from mvczigal_ref.shapes import BatchLatent, BatchShape, Timesteps

__all__ = [
    "Device",
    "Sampler",
    "StepIndex",
    "Transition",
    "level_at",
    "moved",
    "require_density",
    "require_index",
]

StepIndex = int | Int[Tensor, "*#batch"]
"""Index into a sampling grid, 0 the noisiest; one for all latents, or see :func:`require_index`."""


Device = torch.device | str | None
"""Device to move to; None stays."""


def level_at(table: Tensor, step: int | Tensor) -> Tensor:
    """Look a level up without reading the index from its device.

    Args:
        table: One entry per step.
        step: An int, which is checked, or int64 indices, which must hold 0..num_steps-1.

    Returns:
        The entries, in the shape of ``step``; 0-d for an int.

    Raises:
        ValueError: If ``step`` is an int outside the grid.

    Examples:
        >>> level_at(torch.tensor([0.1, 0.9]), torch.tensor([[1, 0]]))
        tensor([[0.9000, 0.1000]])
    """
    if isinstance(step, Tensor):
        # Plain indexing reads a 0-d index from its device; a gather never does.
        index = step.to(table.device).reshape(-1)
        return table.index_select(0, index).reshape(step.shape)
    num_steps = table.shape[0]
    if not 0 <= step < num_steps:
        msg = f"`step` must be in 0..{num_steps - 1}, 0 the noisiest; got {step}."
        raise ValueError(msg)
    return table[step]


def require_index(step: int | Tensor, latent: BatchLatent) -> None:
    """Refuse indices that broadcasting would pair with another axis of the batch.

    Indices ``(n,)`` on latents ``(n, n, c, h, w)`` would go to the second axis without a word.
    Shapes alone are read, never a value.

    Args:
        step: One index, or indices with one axis per axis of the batch, of its length or 1.
        latent: The latents that are stepped.

    Raises:
        ValueError: If it is a tensor of another shape.

    Examples:
        >>> require_index(torch.tensor([[0], [1]]), torch.zeros(2, 3, 1, 1, 1))
    """
    if not isinstance(step, Tensor):
        return
    batch, index = tuple(latent.shape[:-3]), tuple(step.shape)
    one = step.numel() == 1 and len(index) <= len(batch)
    paired = len(index) == len(batch) and all(
        i in (1, b) for i, b in zip(index, batch, strict=True)
    )
    if not one and not paired:
        msg = (
            f"`step` must be one index, or have one axis per batch axis of the latents, {batch}, "
            f"of its length or 1; got {index}. One index per row of a table is step[:, None]."
        )
        raise ValueError(msg)


def moved(table: Tensor, device: Device, dtype: torch.dtype | None) -> Tensor:
    """Return a table of signal shares elsewhere.

    Args:
        table: One entry per step.
        device: Device to move to; None stays.
        dtype: float32 or float64; None stays.

    Returns:
        The copy, or the table itself if nothing changes.

    Raises:
        ValueError: If ``dtype`` is half precision.

    Examples:
        >>> moved(torch.tensor([0.5]), None, torch.float64)
        tensor([0.5000], dtype=torch.float64)
    """
    if dtype is not None:
        require_full_dtype("dtype", dtype)
    return table.to(device=device, dtype=dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """The Gaussian of the next latent, and the image that the step would stop at."""

    mean: BatchLatent
    """Mean of the next latent; gradient flows to the network's output."""

    std: BatchShape
    """Standard deviation of the next latent, one number per latent; no gradient."""

    denoised: BatchLatent
    """The clean latent that the step believes in; the last step's is decoded to the image."""


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
        name: Name that the caller gives the steps.
        steps: Those that are to be scored [index into the grid].
        sampler: Grid and transition kernel.

    Raises:
        ValueError: If a step has no log-density.

    Examples:
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
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
