"""Trajectory consistency sampling (TCD): one step's Gaussian, and the sampler."""

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
from mvczigal_ref.diffusion.schedule import (
    PREDICTION_TYPES,
    PredictionType,
    check_schedule,
    clean_and_noise,
    lcm_timesteps,
)
from mvczigal_ref.shapes import AlphaBar, BatchLatent, BatchShape, StepAlphaBar

__all__ = ["TcdSampler", "tcd_transition"]


def tcd_transition(
    output: BatchLatent,
    latent_t: BatchLatent,
    *,
    alpha_bar_t: BatchShape,
    alpha_bar_target: BatchShape,
    alpha_bar_prev: BatchShape,
    prediction_type: PredictionType,
) -> Transition:
    r"""Jump along the trajectory below the next level, and diffuse back up to it.

    .. math::

        \hat x_r = \sqrt{\bar\alpha_r}\,\hat x_0 + \sqrt{1-\bar\alpha_r}\,\hat\epsilon,\qquad
        x_s \sim \mathcal{N}\Big(\sqrt{\tfrac{\bar\alpha_s}{\bar\alpha_r}}\,\hat x_r,\
            \big(1-\tfrac{\bar\alpha_s}{\bar\alpha_r}\big) I\Big)

    Source:
        Zheng et al., arXiv:2402.19159, Algorithm 4 (strategic stochastic sampling), as diffusers'
        scheduler takes it. No deviation.

    Args:
        output: The network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_t`. Gradient flows.
        alpha_bar_t: :math:`\bar\alpha_t` [1], in (0, 1).
        alpha_bar_target: :math:`\bar\alpha_r` of the level that is jumped to [1], in (0, 1).
        alpha_bar_prev: :math:`\bar\alpha_s` of the next lower level [1], at most
            ``alpha_bar_target``; equal levels have spread 0 and no density.
        prediction_type: Meaning of ``output``.

    Returns:
        Mean and spread of :math:`x_s`, and ``denoised`` :math:`= \hat x_r`.

    Raises:
        ValueError: If ``prediction_type`` is unknown, or a tensor is half precision or of a shape
            that does not fit.

    Examples:
        >>> step = tcd_transition(
        ...     torch.ones(1, 1, 1),
        ...     torch.ones(1, 1, 1),
        ...     alpha_bar_t=torch.tensor(0.36),
        ...     alpha_bar_target=torch.tensor(0.64),
        ...     alpha_bar_prev=torch.tensor(0.48),
        ...     prediction_type="epsilon",
        ... )
        >>> round(step.mean.item(), 4), round(step.std.item(), 4), round(step.denoised.item(), 4)
        (0.7506, 0.5, 0.8667)
    """
    require_levels(latent_t, alpha_bar_target=alpha_bar_target, alpha_bar_prev=alpha_bar_prev)
    dtype = working_dtype(output=output, latent_t=latent_t)
    clean, noise = clean_and_noise(
        output, latent_t, alpha_bar_t=alpha_bar_t, prediction_type=prediction_type
    )
    target = per_latent(alpha_bar_target.sqrt(), dtype) * clean
    target = target + per_latent((1.0 - alpha_bar_target).sqrt(), dtype) * noise
    share = alpha_bar_prev / alpha_bar_target
    fresh = (alpha_bar_target - alpha_bar_prev) / alpha_bar_target
    return Transition(
        mean=per_latent(share.sqrt(), dtype) * target, std=fresh.sqrt().to(dtype), denoised=target
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TcdSampler(ImplicitGrid):
    """Trajectory consistency sampling on a grid; make one with :meth:`create`.

    The last step's ``alpha_bar_prev`` is that of timestep 0.
    """

    alpha_bar_target: StepAlphaBar
    """Signal share of the level that each step jumps to, below the next one [1]."""

    num_density_steps: int
    """Steps from the first on that have a log-density [steps]: all but the last, or none."""

    @classmethod
    def create(
        cls,
        *,
        num_steps: int,
        alpha_bar: AlphaBar,
        prediction_type: PredictionType = "epsilon",
        eta: float = 0.3,
        original_num_steps: int = 50,
    ) -> "TcdSampler":
        r"""Take a grid's levels out of a noise schedule.

        .. math:: r = \lfloor (1-\eta)\,s \rfloor

        Args:
            num_steps: Length of the grid [steps].
            alpha_bar: Signal share at every training timestep [1]; its dtype is the tables'.
            prediction_type: Meaning of the network's output.
            eta: Stochasticity, gamma in the paper [1], in [0, 1]; 0 is deterministic, 1 renews
                all noise.
            original_num_steps: Length of the grid that the network was distilled on [steps].

        Returns:
            The sampler, its tables on ``alpha_bar``'s device.

        Raises:
            ValueError: If ``alpha_bar`` is not strictly decreasing in (0, 1), the grid does not
                fit it, or a setting is outside its range.

        Examples:
            >>> sampler = TcdSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> sampler.timesteps, sampler.num_density_steps
            (tensor([999, 759, 499, 259]), 3)
        """
        check_schedule(alpha_bar)
        require_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        require_eta(eta)
        timesteps = lcm_timesteps(
            num_steps,
            num_train_timesteps=alpha_bar.shape[0],
            original_num_steps=original_num_steps,
        ).to(alpha_bar.device)
        prev = torch.cat([timesteps[1:], torch.zeros_like(timesteps[:1])])
        # In fp32, as diffusers rounds it; a whole number may fall below itself.
        target = torch.floor((1 - eta) * prev).long()
        return cls(
            timesteps=timesteps,
            alpha_bar_t=alpha_bar[timesteps],
            alpha_bar_target=alpha_bar[target],
            alpha_bar_prev=alpha_bar[prev],
            prediction_type=prediction_type,
            num_density_steps=num_steps - 1 if eta > 0.0 else 0,
        )

    @property
    def last_action_is_image_independent(self) -> bool:
        """True: the image is the last ``denoised``, at timestep 0, and nothing is drawn there."""
        return True

    def deterministic(self) -> "TcdSampler":
        """Return the sampler without noise on the same grid.

        Returns:
            The sampler with ``eta`` 0: each step jumps to the next level itself.

        Examples:
            >>> sampler = TcdSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> sampler.deterministic().num_density_steps
            0
        """
        return replace(self, alpha_bar_target=self.alpha_bar_prev, num_density_steps=0)

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent by :func:`tcd_transition`.

        The spread is 0 at the last step; ``denoised`` is the latent jumped to.
        Arguments and errors: see :class:`~mvczigal_ref.diffusion.sampler.Sampler`.
        """
        require_index(step, latent_t)
        return tcd_transition(
            output,
            latent_t,
            alpha_bar_t=level_at(self.alpha_bar_t, step),
            alpha_bar_target=level_at(self.alpha_bar_target, step),
            alpha_bar_prev=level_at(self.alpha_bar_prev, step),
            prediction_type=self.prediction_type,
        )
