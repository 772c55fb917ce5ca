"""Latent consistency sampling: one step's Gaussian, its inversion, and the sampler."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mvczigal_ref.diffusion.levels import level_at, require_index, require_levels
from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_choice,
    require_positive,
    working_dtype,
)
from mvczigal_ref.diffusion.sampler import GaussianGrid, StepIndex, Transition
from mvczigal_ref.diffusion.schedule import (
    PREDICTION_TYPES,
    PredictionType,
    check_schedule,
    clean_and_noise,
    lcm_timesteps,
)
from mvczigal_ref.diffusion.spacing import spaced_timesteps
from mvczigal_ref.shapes import AlphaBar, BatchLatent, BatchShape, StepAlphaBar, Timesteps

__all__ = ["LcmSampler", "lcm_invert", "lcm_transition"]


def lcm_transition(
    output: BatchLatent,
    latent_t: BatchLatent,
    *,
    timestep: Int[Tensor, "*#batch"],
    alpha_bar_t: BatchShape,
    alpha_bar_prev: BatchShape,
    prediction_type: PredictionType,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
) -> Transition:
    r"""Predict the clean latent and re-noise it to the next level.

    .. math::

        f = c_{out}(t)\,\hat x_0 + c_{skip}(t)\,x_t,\qquad
        x_s \sim \mathcal{N}\big(\sqrt{\bar\alpha_s}\,f,\ (1-\bar\alpha_s) I\big)

        c_{skip} = \frac{\sigma_d^2}{(kt)^2+\sigma_d^2},\qquad
        c_{out} = \frac{kt}{\sqrt{(kt)^2+\sigma_d^2}}

    Source:
        Luo et al., arXiv:2310.04378, Sec. 3 and its multi-step sampler. The last step is
        re-noised too, to its own level (s := t), as the released trainer of arXiv:2505.20107
        does; its image is ``denoised``.

    Args:
        output: The network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_t`. Gradient flows.
        timestep: :math:`t`, the training-time noise index [timesteps]; one number per latent.
        alpha_bar_t: :math:`\bar\alpha_t` [1], in (0, 1).
        alpha_bar_prev: :math:`\bar\alpha_s` of the next lower level [1], in (0, 1).
        prediction_type: Meaning of ``output``.
        sigma_data: :math:`\sigma_d`, spread of clean latents [1]; positive.
        timestep_scaling: :math:`k` [1]; positive.

    Returns:
        Mean and spread of :math:`x_s`, and ``denoised`` :math:`= f`.

    Raises:
        ValueError: If a setting is not positive, ``prediction_type`` is unknown, or a tensor is
            half precision or of a shape that does not fit.

    Examples:
        >>> step = lcm_transition(
        ...     torch.zeros(1, 1, 1),
        ...     torch.ones(1, 1, 1),
        ...     timestep=torch.tensor(999),
        ...     alpha_bar_t=torch.tensor(0.25),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     prediction_type="epsilon",
        ... )
        >>> [round(x.item(), 4) for x in (step.denoised, step.mean, step.std)]
        [2.0, 1.6, 0.6]
    """
    require_levels(latent_t, alpha_bar_prev=alpha_bar_prev)
    dtype = working_dtype(output=output, latent_t=latent_t)
    clean, _ = clean_and_noise(
        output, latent_t, alpha_bar_t=alpha_bar_t, prediction_type=prediction_type
    )
    denoised = _boundary(clean, latent_t, timestep, alpha_bar_t, sigma_data, timestep_scaling)
    return Transition(
        mean=per_latent(alpha_bar_prev.sqrt(), dtype) * denoised,
        std=(1.0 - alpha_bar_prev).sqrt().to(dtype),
        denoised=denoised,
    )


def lcm_invert(
    output: BatchLatent,
    latent_prev: BatchLatent,
    *,
    timestep_prev: Int[Tensor, "*#batch"],
    alpha_bar_prev: BatchShape,
    alpha_bar_t: BatchShape,
    prediction_type: PredictionType,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
) -> BatchLatent:
    r"""Carry a latent up to a noisier level without drawing noise.

    .. math::

        f = c_{out}(s)\,\hat x_0 + c_{skip}(s)\,y,\qquad
        \tilde x_t = \sqrt{\bar\alpha_t}\,f + \sqrt{1-\bar\alpha_t}\,\hat\epsilon

    Source:
        Zhang et al., arXiv:2505.20107, the inversion of zigzag sampling. The boundary scalings
        are those of the source level s, the network is evaluated at t, as released.

    Args:
        output: The network's output for ``latent_prev``. Gradient flows.
        latent_prev: :math:`y`, at the lower level. Gradient flows.
        timestep_prev: :math:`s`, the level that ``latent_prev`` is at [timesteps].
        alpha_bar_prev: :math:`\bar\alpha_s` [1], in (0, 1).
        alpha_bar_t: :math:`\bar\alpha_t` of the level to reach [1], in (0, 1).
        prediction_type: Meaning of ``output``.
        sigma_data: :math:`\sigma_d`, spread of clean latents [1]; positive.
        timestep_scaling: :math:`k` of the boundary scalings [1]; positive.

    Returns:
        :math:`\tilde x_t`.

    Raises:
        ValueError: If a setting is not positive, ``prediction_type`` is unknown, or a tensor is
            half precision or of a shape that does not fit.

    Examples:
        >>> latent_t = lcm_invert(
        ...     torch.zeros(1, 1, 1),
        ...     torch.full((1, 1, 1), 1.6),
        ...     timestep_prev=torch.tensor(759),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     alpha_bar_t=torch.tensor(0.25),
        ...     prediction_type="epsilon",
        ... )
        >>> round(latent_t.item(), 4)
        1.0
    """
    require_levels(latent_prev, alpha_bar_t=alpha_bar_t, alpha_bar_prev=alpha_bar_prev)
    dtype = working_dtype(output=output, latent_prev=latent_prev)
    clean, noise = clean_and_noise(
        output, latent_prev, alpha_bar_t=alpha_bar_prev, prediction_type=prediction_type
    )
    denoised = _boundary(
        clean, latent_prev, timestep_prev, alpha_bar_prev, sigma_data, timestep_scaling
    )
    signal = per_latent(alpha_bar_t.sqrt(), dtype)
    return signal * denoised + per_latent((1.0 - alpha_bar_t).sqrt(), dtype) * noise


def _boundary(
    clean: Tensor,
    latent: Tensor,
    timestep: Tensor,
    alpha_bar: Tensor,
    sigma_data: float,
    timestep_scaling: float,
) -> Tensor:
    """Mix prediction and input so that the consistency function is the identity at t = 0."""
    require_positive(sigma_data=sigma_data, timestep_scaling=timestep_scaling)
    scaled = timestep.to(alpha_bar.dtype) * timestep_scaling
    energy = scaled.square() + sigma_data**2
    skip = per_latent(sigma_data**2 / energy, clean.dtype)
    out = per_latent(scaled * energy.rsqrt(), clean.dtype)
    return torch.addcmul(skip * latent, out, clean)


@dataclass(frozen=True, kw_only=True, slots=True)
class LcmSampler(GaussianGrid):
    """Latent consistency sampling on a grid; make one with :meth:`create`."""

    timesteps_prev: Timesteps
    """Timestep of the next lower level; the lowest level has none and names itself [timesteps]."""

    alpha_bar_t: StepAlphaBar
    """Signal share at ``timesteps`` [1]."""

    alpha_bar_prev: StepAlphaBar
    """Signal share at ``timesteps_prev`` [1]."""

    prediction_type: PredictionType
    """Meaning of the network's output."""

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
        trailing: bool = False,
    ) -> "LcmSampler":
        """Take a grid's levels out of a noise schedule.

        Args:
            num_steps: Length of the grid [steps].
            alpha_bar: Signal share at every training timestep [1]; its dtype is the tables'.
            prediction_type: Meaning of the network's output.
            original_num_steps: Length of the grid that the network was distilled on [steps].
            sigma_data: Spread of clean latents [1]; positive.
            timestep_scaling: Factor on the timestep [1]; positive.
            trailing: Whether the timesteps are spaced evenly from the last one down, as DMD2
                (arXiv:2405.14867) is sampled, and not taken from the distillation grid.

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
        total = alpha_bar.shape[0]
        if trailing:
            timesteps = spaced_timesteps(num_steps, "trailing", num_train_timesteps=total)
        else:
            timesteps = lcm_timesteps(
                num_steps, num_train_timesteps=total, original_num_steps=original_num_steps
            )
        timesteps = timesteps.to(alpha_bar.device)
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
    def num_density_steps(self) -> int:
        """Steps from the first on that have a log-density [steps]: all."""
        return self.num_steps

    @property
    def last_action_is_image_independent(self) -> bool:
        """True: the last action re-noises the very latent that is decoded."""
        return True

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent by :func:`lcm_transition`.

        Arguments and errors: see :class:`~mvczigal_ref.diffusion.sampler.Sampler`.
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
        """Carry a latent up to the level of ``step`` by :func:`lcm_invert`.

        Arguments and errors: see :class:`~mvczigal_ref.diffusion.sampler.Sampler`.
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
