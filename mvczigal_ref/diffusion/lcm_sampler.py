"""Latent consistency sampling bound to a grid."""

from dataclasses import dataclass, replace

import torch

from mvczigal_ref.diffusion.grid import (
    Device,
    StepIndex,
    level_at,
    moved,
    require_index,
)
from mvczigal_ref.diffusion.lcm import lcm_invert, lcm_transition
from mvczigal_ref.diffusion.precision import require_choice, require_positive
from mvczigal_ref.diffusion.schedule import (
    PREDICTION_TYPES,
    PredictionType,
    check_schedule,
    lcm_timesteps,
)
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.shapes import AlphaBar, BatchLatent, StepAlphaBar, Timesteps

__all__ = ["LcmSampler"]


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
            ValueError: If ``alpha_bar`` is not strictly decreasing in (0, 1), the grid does not
                fit it, or a setting is outside its range.

        Examples:
            >>> sampler = LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> sampler.timesteps, sampler.timesteps_prev
            (tensor([999, 499]), tensor([499, 499]))
        """
        check_schedule(alpha_bar)
        require_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        require_positive(sigma_data=sigma_data, timestep_scaling=timestep_scaling)
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
    def num_density_steps(self) -> int:
        """Steps from the first on that have a log-density [steps]: all."""
        return self.num_steps

    @property
    def last_action_is_image_independent(self) -> bool:
        """True: the last action re-noises the very latent that is decoded."""
        return True

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent, see :func:`lcm_transition`.

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
        require_index(step, latent_t)
        return lcm_transition(
            output,
            latent_t,
            timestep=level_at(self.timesteps, step),
            alpha_bar_t=level_at(self.alpha_bar_t, step),
            alpha_bar_prev=level_at(self.alpha_bar_prev, step),
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
            step: Index into the grid. An int is checked; a tensor must hold 0..num_steps-1, one
                for all latents or with one axis per axis of the batch.

        Returns:
            The latent at the level of ``step``.

        Raises:
            ValueError: If ``step`` is an int outside the grid, or a tensor of another shape.
        """
        require_index(step, latent_prev)
        return lcm_invert(
            output,
            latent_prev,
            timestep_prev=level_at(self.timesteps_prev, step),
            alpha_bar_prev=level_at(self.alpha_bar_prev, step),
            alpha_bar_t=level_at(self.alpha_bar_t, step),
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
            alpha_bar_t=moved(self.alpha_bar_t, device, dtype),
            alpha_bar_prev=moved(self.alpha_bar_prev, device, dtype),
        )
