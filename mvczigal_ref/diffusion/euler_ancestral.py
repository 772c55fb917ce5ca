"""Ancestral Euler sampling, as SDXL-Turbo is sampled: one step's Gaussian, and the sampler."""

from dataclasses import dataclass, replace

import torch

from mvczigal_ref.diffusion.ddim import ImplicitGrid, require_eta
from mvczigal_ref.diffusion.levels import level_at, require_index, require_levels
from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_choice,
    working_dtype,
)
from mvczigal_ref.diffusion.sampler import StepIndex, Transition
from mvczigal_ref.diffusion.schedule import PredictionType, check_schedule, clean_and_noise
from mvczigal_ref.diffusion.spacing import spaced_timesteps
from mvczigal_ref.shapes import AlphaBar, BatchLatent, BatchShape

__all__ = ["EulerAncestralSampler", "euler_ancestral_transition"]

_KINDS = ("epsilon", "v_prediction")  # at the clean end a predicted sample says no direction


def euler_ancestral_transition(
    output: BatchLatent,
    latent_t: BatchLatent,
    *,
    alpha_bar_t: BatchShape,
    alpha_bar_prev: BatchShape,
    eta: float,
    prediction_type: PredictionType,
) -> Transition:
    r"""Step down to a lower noise level than asked for, and draw fresh noise up to it.

    .. math::

        \sigma = \sqrt{\tfrac{1-\bar\alpha}{\bar\alpha}},\qquad
        \sigma_\uparrow = \eta\,\frac{\sigma_s}{\sigma_t}\sqrt{\sigma_t^2-\sigma_s^2},\qquad
        \sigma_\downarrow = \sqrt{\sigma_s^2-\sigma_\uparrow^2},\qquad
        \frac{x_s}{\sqrt{\bar\alpha_s}} \sim \mathcal{N}\big(\hat x_0
            + \sigma_\downarrow\hat\epsilon,\ \sigma_\uparrow^2 I\big)

    Source:
        Karras et al., arXiv:2206.00364, for the levels; Sauer et al., arXiv:2311.17042
        (SDXL-Turbo), with diffusers' scheduler, whose ``eta`` is 1. Here latents have variance 1
        at every level, so a density differs from theirs by a constant and a ratio not at all. The
        same step as :func:`~mvczigal_ref.diffusion.ddim.ddim_transition`, in other coordinates.

    Args:
        output: The network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_t`. Gradient flows.
        alpha_bar_t: :math:`\bar\alpha_t` [1], in (0, 1).
        alpha_bar_prev: :math:`\bar\alpha_s` of the next lower level [1], in
            (``alpha_bar_t``, 1]; at 1 the step ends at the clean latent, without spread.
        eta: :math:`\eta`, stochasticity [1], in [0, 1]; 0 is Euler's own step.
        prediction_type: Meaning of ``output``.

    Returns:
        Mean and spread of :math:`x_s`, and ``denoised`` :math:`= \hat x_0`.

    Raises:
        ValueError: If ``eta`` is outside [0, 1], ``prediction_type`` is unknown, or a tensor is
            half precision or of a shape that does not fit.

    Examples:
        >>> step = euler_ancestral_transition(
        ...     torch.ones(1, 1, 1),
        ...     torch.ones(1, 1, 1),
        ...     alpha_bar_t=torch.tensor(0.36),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     eta=1.0,
        ...     prediction_type="epsilon",
        ... )
        >>> round(step.mean.item(), 4), round(step.std.item(), 4)
        (0.6042, 0.4961)
    """
    require_levels(latent_t, alpha_bar_prev=alpha_bar_prev)
    require_eta(eta)
    dtype = working_dtype(output=output, latent_t=latent_t)
    clean, noise = clean_and_noise(
        output, latent_t, alpha_bar_t=alpha_bar_t, prediction_type=prediction_type
    )
    sigma_t = ((1.0 - alpha_bar_t) / alpha_bar_t).sqrt()
    sigma_prev = ((1.0 - alpha_bar_prev) / alpha_bar_prev).sqrt()
    ratio = sigma_prev / sigma_t
    # sigma_t^2 - sigma_prev^2 and sigma_prev^2 - up^2 lose their digits where the levels are close;
    # here the levels alone are subtracted, which is exact.
    fall = (alpha_bar_prev - alpha_bar_t) / (alpha_bar_prev * alpha_bar_t)
    up = eta * ratio * fall.sqrt()
    down = sigma_prev * ((1.0 - eta**2) + (eta * ratio).square()).sqrt()
    signal = alpha_bar_prev.sqrt()
    mean = per_latent(signal, dtype) * (clean + per_latent(down, dtype) * noise)
    return Transition(mean=mean, std=(signal * up).to(dtype), denoised=clean)


@dataclass(frozen=True, kw_only=True, slots=True)
class EulerAncestralSampler(ImplicitGrid):
    """Ancestral Euler sampling on a trailing grid; make one with :meth:`create`.

    The last step's ``alpha_bar_prev`` is 1, the clean latent.
    """

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
    ) -> "EulerAncestralSampler":
        """Take a grid's levels out of a noise schedule.

        Args:
            num_steps: Length of the grid [steps].
            alpha_bar: Signal share at every training timestep [1]; its dtype is the tables'.
            prediction_type: Meaning of the network's output, "epsilon" or "v_prediction".
            eta: Stochasticity [1], in [0, 1].

        Returns:
            The sampler, its tables on ``alpha_bar``'s device. Sampling begins with standard
            normal noise, where diffusers takes 0.998 of it.

        Raises:
            ValueError: If ``alpha_bar`` is not strictly decreasing in (0, 1), the grid does not
                fit it, or a setting is outside its range.

        Examples:
            >>> sampler = EulerAncestralSampler.create(
            ...     num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000)
            ... )
            >>> sampler.timesteps, sampler.num_density_steps
            (tensor([999, 749, 499, 249]), 3)
        """
        check_schedule(alpha_bar)
        require_choice("prediction_type", prediction_type, _KINDS)
        require_eta(eta)
        timesteps = spaced_timesteps(
            num_steps, "trailing", num_train_timesteps=alpha_bar.shape[0]
        ).to(alpha_bar.device)
        alpha_bar_t = alpha_bar[timesteps]
        return cls(
            timesteps=timesteps,
            alpha_bar_t=alpha_bar_t,
            alpha_bar_prev=torch.cat([alpha_bar_t[1:], torch.ones_like(alpha_bar_t[:1])]),
            prediction_type=prediction_type,
            eta=eta,
        )

    @property
    def num_density_steps(self) -> int:
        """Steps from the first on that have a log-density [steps]: all but the last."""
        return 0 if self.eta == 0.0 else self.num_steps - 1

    @property
    def last_action_is_image_independent(self) -> bool:
        """True: the image is the last ``denoised``, and the last step draws nothing."""
        return True

    def deterministic(self) -> "EulerAncestralSampler":
        """Return Euler's own sampler on the same grid.

        Returns:
            The sampler with ``eta`` 0.

        Examples:
            >>> sampler = EulerAncestralSampler.create(
            ...     num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000)
            ... )
            >>> sampler.deterministic().num_density_steps
            0
        """
        return replace(self, eta=0.0)

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent by :func:`euler_ancestral_transition`.

        The spread is 0 at the last step.
        Arguments and errors: see :class:`~mvczigal_ref.diffusion.sampler.Sampler`.
        """
        require_index(step, latent_t)
        return euler_ancestral_transition(
            output,
            latent_t,
            alpha_bar_t=level_at(self.alpha_bar_t, step),
            alpha_bar_prev=level_at(self.alpha_bar_prev, step),
            eta=self.eta,
            prediction_type=self.prediction_type,
        )
