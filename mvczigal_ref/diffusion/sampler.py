"""Samplers: the protocol, and one step's Gaussian.

Steps are counted from 0, the noisiest. A step index may be a Python int or an int64 tensor, one
number per latent; a tensor is never read from its device, so a whole trajectory is one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.diffusion.gaussian import Reduction, log_prob
from mvczigal_ref.diffusion.grid import Device, Grid
from mvczigal_ref.diffusion.levels import level_at
from mvczigal_ref.shapes import BatchLatent, BatchShape, Timesteps

__all__ = [
    "GaussianGrid",
    "Sampler",
    "StepIndex",
    "Transition",
    "require_density",
    "require_scored_step",
]

StepIndex = int | Int[Tensor, "*#batch"]
"""Index into a sampling grid, 0 the noisiest; one for all latents, or see
:func:`~mvczigal_ref.diffusion.levels.require_index`."""


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
        """Return the Gaussian of the next latent.

        Args:
            output: The network's output at ``latent_t`` and ``timesteps[step]``. Gradient flows.
            latent_t: The latent at ``step``. Gradient flows.
            step: Index into the grid. An int is checked; a tensor must hold 0..num_steps-1, one
                for all latents or with one axis per axis of the batch.

        Returns:
            Mean and spread of the next latent, and the denoised latent.

        Raises:
            ValueError: If ``step`` is an int outside the grid, or a tensor of another shape.
        """
        ...

    def invert(self, output: BatchLatent, latent_prev: BatchLatent, step: StepIndex) -> BatchLatent:
        """Carry a latent from the level below ``step`` up to the level of ``step``.

        Args:
            output: The network's output at ``latent_prev`` and ``timesteps[step]``. Gradient
                flows.
            latent_prev: The latent at the level below ``step``. Gradient flows.
            step: As in :meth:`transition`.

        Returns:
            The latent at the level of ``step``.

        Raises:
            ValueError: As :meth:`transition`.
        """
        ...

    def to(self, device: Device = None, dtype: torch.dtype | None = None) -> "Sampler":
        """Return a copy with its tables elsewhere."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianGrid(Grid):
    """Grid whose noisy steps are scored by their Gaussian."""

    def log_prob(
        self: Sampler,
        action: BatchLatent,
        transition: Transition,
        step: StepIndex,
        *,
        reduction: Reduction,
    ) -> Float[Tensor, "..."]:
        """Return the log-density of an action, unless the step has none.

        Args:
            action: The next latent. Gradient flows.
            transition: Gaussian that ``transition`` returned for ``step``. Gradient flows.
            step: Index into the grid. An int is checked; a tensor must hold
                0..num_density_steps-1, and what it holds above is NaN.
            reduction: As in :func:`mvczigal_ref.diffusion.gaussian.log_prob`.

        Returns:
            One number per latent; with "none" one per element.

        Raises:
            ValueError: If no step, or the int ``step``, has a log-density, or it is outside the
                grid.

        Examples:
            >>> from mvczigal_ref.diffusion.lcm import LcmSampler
            >>> sampler = LcmSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> zero = torch.zeros(1, 1, 1)
            >>> taken = sampler.transition(zero, zero, 0)
            >>> round(sampler.log_prob(zero, taken, 0, reduction="sum").item(), 4)
            -0.7461
        """
        why = (
            "A step without spread has no log-density: leave it out of training, or draw it with "
            "noise."
        )
        require_scored_step(self, step, why)
        return log_prob(action, mean=transition.mean, std=transition.std, reduction=reduction)


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


def require_scored_step(sampler: Sampler, step: StepIndex, why: str) -> None:
    """Refuse a step that has no log-density, as far as that is told without reading a tensor.

    Args:
        sampler: Grid and transition kernel.
        step: Index into the grid.
        why: Sentence on what lacks a log-density, and the remedy.

    Raises:
        ValueError: If no step, or the int ``step``, has a log-density, or it is outside the grid.

    Examples:
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
        >>> sampler = LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000))
        >>> require_scored_step(sampler, 1, "The last one has none.")
    """
    most = sampler.num_density_steps
    if most == 0 or (not isinstance(step, Tensor) and step >= most):
        msg = f"`step` must be below num_density_steps = {most}; got {step}. {why}"
        raise ValueError(msg)
    if not isinstance(step, Tensor):
        level_at(sampler.timesteps, step)  # refuses one before the first
