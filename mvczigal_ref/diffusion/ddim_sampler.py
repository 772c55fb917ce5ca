"""Implicit-model sampling bound to a grid."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.ddim import ddim_invert, ddim_transition, require_eta
from mvczigal_ref.diffusion.gaussian import Reduction, check_std, log_prob
from mvczigal_ref.diffusion.grid import (
    Device,
    StepIndex,
    level_at,
    moved,
    require_index,
)
from mvczigal_ref.diffusion.precision import require_choice
from mvczigal_ref.diffusion.schedule import (
    PREDICTION_TYPES,
    PredictionType,
    check_schedule,
    ddim_timesteps,
)
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.shapes import AlphaBar, BatchLatent, StepAlphaBar, Timesteps

__all__ = ["DdimSampler"]


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
                fit it, a setting is outside its range, or the last step would have no spread.

        Examples:
            >>> sampler = DdimSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> sampler.timesteps
            tensor([751, 501, 251,   1])
        """
        check_schedule(alpha_bar)
        require_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        require_eta(eta)
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
    def num_density_steps(self) -> int:
        """Steps from the first on that have a log-density [steps]: all, or none at ``eta`` 0."""
        return 0 if self.eta == 0.0 else self.num_steps

    @property
    def last_action_is_image_independent(self) -> bool:
        """True: the image is decoded from the last ``denoised``, not from the last action."""
        return True

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent, see :func:`ddim_transition`.

        Args:
            output: The network's output at ``latent_t`` and ``timesteps[step]``. Gradient flows.
            latent_t: The latent at ``step``. Gradient flows.
            step: Index into the grid. An int is checked; a tensor must hold 0..num_steps-1, one
                for all latents or with one axis per axis of the batch.

        Returns:
            Mean and spread of the next latent, and the denoised latent. The spread is 0 at
            ``eta`` 0.

        Raises:
            ValueError: If ``step`` is an int outside the grid, or a tensor of another shape.
        """
        require_index(step, latent_t)
        return ddim_transition(
            output,
            latent_t,
            alpha_bar_t=level_at(self.alpha_bar_t, step),
            alpha_bar_prev=level_at(self.alpha_bar_prev, step),
            eta=self.eta,
            prediction_type=self.prediction_type,
        )

    def log_prob(
        self, action: BatchLatent, transition: Transition, step: StepIndex, *, reduction: Reduction
    ) -> Float[Tensor, "..."]:
        """Return the log-density of an action, unless the step has none.

        Args:
            action: The next latent. Gradient flows.
            transition: What :meth:`transition` returned for ``step``. Gradient flows.
            step: Index into the grid.
            reduction: As in :func:`mvczigal_ref.diffusion.gaussian.log_prob`.

        Returns:
            One number per latent; with "none" one per element.

        Raises:
            ValueError: If ``eta`` is 0: no step has a log-density.

        Examples:
            >>> sampler = DdimSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> zero = torch.zeros(1, 1, 1)
            >>> taken = sampler.transition(zero, zero, 0)
            >>> round(sampler.log_prob(zero, taken, 0, reduction="sum").item(), 4)
            -0.2945
        """
        if self.num_density_steps == 0:
            msg = (
                f"`step` must be below num_density_steps = 0; got {step}. A step of eta 0 has no "
                "spread, so no log-density: draw it with eta above 0, or score it as the released "
                "trainer does, by `log_prob` with std=ETA_ZERO_VARIANCE**0.5."
            )
            raise ValueError(msg)
        return log_prob(action, mean=transition.mean, std=transition.std, reduction=reduction)

    def invert(self, output: BatchLatent, latent_prev: BatchLatent, step: StepIndex) -> BatchLatent:
        """Carry a latent up to the level of ``step``, see :func:`ddim_invert`.

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
        return ddim_invert(
            output,
            latent_prev,
            alpha_bar_prev=level_at(self.alpha_bar_prev, step),
            alpha_bar_t=level_at(self.alpha_bar_t, step),
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
            alpha_bar_t=moved(self.alpha_bar_t, device, dtype),
            alpha_bar_prev=moved(self.alpha_bar_prev, device, dtype),
        )
