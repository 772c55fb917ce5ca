"""A time grid bound to a step function: all that rollout and update know of a sampler.

Steps are counted from 0, the noisiest. A step index may be a Python int or an int64 tensor, one
number a latent; a tensor is never read from its device, so a whole trajectory is one call.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from mvczigal_ref.diffusion.ddim import ddim_invert, ddim_transition
from mvczigal_ref.diffusion.gaussian import check_std
from mvczigal_ref.diffusion.lcm import lcm_invert, lcm_transition
from mvczigal_ref.diffusion.precision import require_full_dtype, require_full_precision
from mvczigal_ref.diffusion.schedule import PredictionType, ddim_timesteps, lcm_timesteps
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.shapes import AlphaBar, BatchLatent, StepAlphaBar, Timesteps

__all__ = ["DdimSampler", "LcmSampler", "Sampler", "StepIndex"]

StepIndex = int | Int[Tensor, "*#batch"]
"""Index into a sampling grid, 0 the noisiest; one for all latents or one a latent."""

Device = torch.device | str | None


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LcmSampler:
    """Latent consistency sampling on a grid; make one with :meth:`create`."""

    timesteps: Timesteps
    """Training-time noise index of each step [timesteps]."""

    timesteps_prev: Timesteps
    """That of the next lower level; the lowest level has none and names itself [timesteps]."""

    alpha_bar_t: StepAlphaBar
    """Signal share at ``timesteps`` [1]."""

    alpha_bar_prev: StepAlphaBar
    """Signal share at ``timesteps_prev`` [1]."""

    prediction_type: PredictionType
    """What the network's output is."""

    sigma_data: float = 0.5
    """Spread of clean latents in the boundary scalings [1]."""

    timestep_scaling: float = 10.0
    """Factor on the timestep in the boundary scalings [1]."""

    @classmethod
    def create(
        cls,
        *,
        num_steps: int,
        alpha_bar: AlphaBar,
        prediction_type: PredictionType = "epsilon",
        original_num_steps: int = 50,
        sigma_data: float = 0.5,
        timestep_scaling: float = 10.0,
    ) -> "LcmSampler":
        """Take a grid's levels out of a noise schedule.

        Args:
            num_steps: Length of the grid [steps].
            alpha_bar: Signal share at every training timestep [1]; its dtype is the tables'.
            prediction_type: What the network's output is.
            original_num_steps: Length of the grid that the network was distilled on [steps].
            sigma_data: Spread of clean latents [1]; positive.
            timestep_scaling: Factor on the timestep [1]; positive.

        Returns:
            The sampler, its tables on ``alpha_bar``'s device.

        Raises:
            ValueError: If ``alpha_bar`` is not strictly decreasing in (0, 1), or the grid does
                not fit it.

        Examples:
            >>> sampler = LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> sampler.timesteps, sampler.timesteps_prev
            (tensor([999, 499]), tensor([499, 499]))
        """
        _check_schedule(alpha_bar)
        timesteps = lcm_timesteps(
            num_steps,
            num_train_timesteps=alpha_bar.shape[0],
            original_num_steps=original_num_steps,
        ).to(alpha_bar.device)
        timesteps_prev = torch.cat([timesteps[1:], timesteps[-1:]])
        return cls(
            timesteps=timesteps,
            timesteps_prev=timesteps_prev,
            alpha_bar_t=alpha_bar[timesteps],
            alpha_bar_prev=alpha_bar[timesteps_prev],
            prediction_type=prediction_type,
            sigma_data=sigma_data,
            timestep_scaling=timestep_scaling,
        )

    @property
    def num_steps(self) -> int:
        """Length of the grid [steps]."""
        return self.timesteps.shape[0]

    @property
    def last_action_is_image_independent(self) -> bool:
        """True: the last action re-noises the very latent that is decoded."""
        return True

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent, see :func:`lcm_transition`.

        Args:
            output: The network's output at ``latent_t`` and ``timesteps[step]``. Gradient flows.
            latent_t: The latent at ``step``. Gradient flows.
            step: Index into the grid. An int is checked; a tensor must hold 0..num_steps-1.

        Returns:
            Mean and spread of the next latent, and the denoised latent.

        Raises:
            ValueError: If ``step`` is an int outside the grid.
        """
        return lcm_transition(
            output,
            latent_t,
            timestep=_at(self.timesteps, step),
            alpha_bar_t=_at(self.alpha_bar_t, step),
            alpha_bar_prev=_at(self.alpha_bar_prev, step),
            prediction_type=self.prediction_type,
            sigma_data=self.sigma_data,
            timestep_scaling=self.timestep_scaling,
        )

    def invert(self, output: BatchLatent, latent_prev: BatchLatent, step: StepIndex) -> BatchLatent:
        """Carry a latent up to the level of ``step``, see :func:`lcm_invert`.

        Args:
            output: The network's output at ``latent_prev`` and ``timesteps[step]``. Gradient
                flows.
            latent_prev: The latent at the level below ``step``. Gradient flows.
            step: Index into the grid. An int is checked; a tensor must hold 0..num_steps-1.

        Returns:
            The latent at the level of ``step``.

        Raises:
            ValueError: If ``step`` is an int outside the grid.
        """
        return lcm_invert(
            output,
            latent_prev,
            timestep_prev=_at(self.timesteps_prev, step),
            alpha_bar_prev=_at(self.alpha_bar_prev, step),
            alpha_bar_t=_at(self.alpha_bar_t, step),
            prediction_type=self.prediction_type,
            sigma_data=self.sigma_data,
            timestep_scaling=self.timestep_scaling,
        )

    def to(self, device: Device = None, dtype: torch.dtype | None = None) -> "LcmSampler":
        """Return a copy with its tables elsewhere.

        Args:
            device: Where to; None stays.
            dtype: Dtype of the signal shares, float32 or float64; None stays.

        Returns:
            The copy.

        Raises:
            ValueError: If ``dtype`` is half precision.
        """
        return replace(
            self,
            timesteps=self.timesteps.to(device),
            timesteps_prev=self.timesteps_prev.to(device),
            alpha_bar_t=_moved(self.alpha_bar_t, device, dtype),
            alpha_bar_prev=_moved(self.alpha_bar_prev, device, dtype),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DdimSampler:
    """Implicit-model sampling on a grid; make one with :meth:`create`."""

    timesteps: Timesteps
    """Training-time noise index of each step [timesteps]."""

    alpha_bar_t: StepAlphaBar
    """Signal share at ``timesteps`` [1]."""

    alpha_bar_prev: StepAlphaBar
    """Signal share one stride lower; below timestep 0 it is that of timestep 0 [1]."""

    prediction_type: PredictionType
    """What the network's output is."""

    eta: float = 1.0
    """Stochasticity of a step [1], in [0, 1]."""

    @classmethod
    def create(
        cls,
        *,
        num_steps: int,
        alpha_bar: AlphaBar,
        prediction_type: PredictionType = "epsilon",
        eta: float = 1.0,
        steps_offset: int = 1,
    ) -> "DdimSampler":
        """Take a grid's levels out of a noise schedule.

        Args:
            num_steps: Length of the grid [steps].
            alpha_bar: Signal share at every training timestep [1]; its dtype is the tables'.
            prediction_type: What the network's output is.
            eta: Stochasticity [1], in [0, 1].
            steps_offset: Lowest timestep of the grid [timesteps].

        Returns:
            The sampler, its tables on ``alpha_bar``'s device.

        Raises:
            ValueError: If ``alpha_bar`` is not strictly decreasing in (0, 1), the grid does not
                fit it, or the last step would have no spread.

        Examples:
            >>> sampler = DdimSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> sampler.timesteps
            tensor([751, 501, 251,   1])
        """
        _check_schedule(alpha_bar)
        num_train_timesteps = alpha_bar.shape[0]
        timesteps = ddim_timesteps(
            num_steps, num_train_timesteps=num_train_timesteps, steps_offset=steps_offset
        ).to(alpha_bar.device)
        below = (timesteps - num_train_timesteps // num_steps).clamp(min=0)
        alpha_bar_t, alpha_bar_prev = alpha_bar[timesteps], alpha_bar[below]
        if eta > 0.0:
            # With offset 0 the last step stays at timestep 0: no spread, no density.
            check_std((alpha_bar_prev - alpha_bar_t).sqrt(), name="steps_offset")
        return cls(
            timesteps=timesteps,
            alpha_bar_t=alpha_bar_t,
            alpha_bar_prev=alpha_bar_prev,
            prediction_type=prediction_type,
            eta=eta,
        )

    @property
    def num_steps(self) -> int:
        """Length of the grid [steps]."""
        return self.timesteps.shape[0]

    @property
    def last_action_is_image_independent(self) -> bool:
        """True: the image is decoded from the last ``denoised``, not from the last action."""
        return True

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent, see :func:`ddim_transition`.

        Args:
            output: The network's output at ``latent_t`` and ``timesteps[step]``. Gradient flows.
            latent_t: The latent at ``step``. Gradient flows.
            step: Index into the grid. An int is checked; a tensor must hold 0..num_steps-1.

        Returns:
            Mean and spread of the next latent, and the denoised latent.

        Raises:
            ValueError: If ``step`` is an int outside the grid.
        """
        return ddim_transition(
            output,
            latent_t,
            alpha_bar_t=_at(self.alpha_bar_t, step),
            alpha_bar_prev=_at(self.alpha_bar_prev, step),
            eta=self.eta,
            prediction_type=self.prediction_type,
        )

    def invert(self, output: BatchLatent, latent_prev: BatchLatent, step: StepIndex) -> BatchLatent:
        """Carry a latent up to the level of ``step``, see :func:`ddim_invert`.

        Args:
            output: The network's output at ``latent_prev`` and ``timesteps[step]``. Gradient
                flows.
            latent_prev: The latent at the level below ``step``. Gradient flows.
            step: Index into the grid. An int is checked; a tensor must hold 0..num_steps-1.

        Returns:
            The latent at the level of ``step``.

        Raises:
            ValueError: If ``step`` is an int outside the grid.
        """
        return ddim_invert(
            output,
            latent_prev,
            alpha_bar_prev=_at(self.alpha_bar_prev, step),
            alpha_bar_t=_at(self.alpha_bar_t, step),
            prediction_type=self.prediction_type,
        )

    def to(self, device: Device = None, dtype: torch.dtype | None = None) -> "DdimSampler":
        """Return a copy with its tables elsewhere.

        Args:
            device: Where to; None stays.
            dtype: Dtype of the signal shares, float32 or float64; None stays.

        Returns:
            The copy.

        Raises:
            ValueError: If ``dtype`` is half precision.
        """
        return replace(
            self,
            timesteps=self.timesteps.to(device),
            alpha_bar_t=_moved(self.alpha_bar_t, device, dtype),
            alpha_bar_prev=_moved(self.alpha_bar_prev, device, dtype),
        )


def _at(table: Tensor, step: int | Tensor) -> Tensor:
    if isinstance(step, Tensor):
        # Plain indexing reads a 0-d index from its device; a gather never does.
        index = step.to(table.device).reshape(-1)
        return table.index_select(0, index).reshape(step.shape)
    num_steps = table.shape[0]
    if not 0 <= step < num_steps:
        msg = f"`step` must be in 0..{num_steps - 1}, 0 the noisiest; got {step}."
        raise ValueError(msg)
    return table[step]


def _moved(table: Tensor, device: Device, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None:
        require_full_dtype("dtype", dtype)
    return table.to(device=device, dtype=dtype)


def _check_schedule(alpha_bar: Tensor) -> None:
    require_full_precision(alpha_bar=alpha_bar)
    inside = bool(((alpha_bar > 0.0) & (alpha_bar < 1.0)).all())
    if not inside or not bool((alpha_bar.diff() < 0.0).all()):
        msg = (
            "`alpha_bar` must be strictly decreasing in (0, 1); got values in "
            f"[{alpha_bar.min().item()}, {alpha_bar.max().item()}]."
        )
        raise ValueError(msg)
