"""Implicit-model sampling (DDIM): one step's Gaussian, its inversion, and the sampler."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.gaussian import Reduction, check_std, log_prob
from mvczigal_ref.diffusion.levels import level_at, require_index, require_levels
from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_choice,
    working_dtype,
)
from mvczigal_ref.diffusion.sampler import GaussianGrid, StepIndex, Transition
from mvczigal_ref.diffusion.schedule import (
    PREDICTION_TYPES,
    PredictionType,
    check_schedule,
    clean_and_noise,
)
from mvczigal_ref.diffusion.spacing import TimestepSpacing, spaced_timesteps
from mvczigal_ref.shapes import AlphaBar, BatchLatent, BatchShape, StepAlphaBar

__all__ = [
    "ETA_ZERO_VARIANCE",
    "DdimSampler",
    "ImplicitGrid",
    "ddim_invert",
    "ddim_transition",
    "require_eta",
]

ETA_ZERO_VARIANCE = 1e-8
"""Variance that the released trainer scores a deterministic step with [1].

A step at ``eta`` 0 is drawn without noise and has no density; its square root is the ``std`` for
:func:`~mvczigal_ref.diffusion.gaussian.log_prob` that gives the released number all the same. In
fp16 the released variance rounds to 0, and the released number is NaN.
"""


def require_eta(eta: float) -> None:
    """Refuse a stochasticity for which some level would have no direction left.

    Args:
        eta: Stochasticity [1].

    Raises:
        ValueError: If it is outside [0, 1].

    Examples:
        >>> require_eta(1.0)
    """
    if not 0.0 <= eta <= 1.0:
        msg = f"`eta` must be in [0, 1]; got {eta}. 0 is deterministic, 1 the most noise."
        raise ValueError(msg)


def ddim_transition(
    output: BatchLatent,
    latent_t: BatchLatent,
    *,
    alpha_bar_t: BatchShape,
    alpha_bar_prev: BatchShape,
    eta: float,
    prediction_type: PredictionType,
) -> Transition:
    r"""Move towards the predicted clean latent, with a share of fresh noise.

    .. math::

        \sigma = \eta\sqrt{\frac{1-\bar\alpha_s}{1-\bar\alpha_t}
            \Big(1-\frac{\bar\alpha_t}{\bar\alpha_s}\Big)},\qquad
        x_s \sim \mathcal{N}\big(\sqrt{\bar\alpha_s}\,\hat x_0
            + \sqrt{1-\bar\alpha_s-\sigma^2}\,\hat\epsilon,\ \sigma^2 I\big)

    Source:
        Song et al., arXiv:2010.02502, Eqs. 12 and 16. At ``eta`` 0 the spread is 0 and the mean
        is the next latent. The released trainer of arXiv:2505.20107 draws the mean there too,
        but scores it with a variance of its own, :data:`ETA_ZERO_VARIANCE`.

    Args:
        output: The network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_t`. Gradient flows.
        alpha_bar_t: :math:`\bar\alpha_t` [1], in (0, 1).
        alpha_bar_prev: :math:`\bar\alpha_s` of the next lower level [1], in
            (``alpha_bar_t``, 1); equal levels have spread 0 and no density.
        eta: :math:`\eta`, stochasticity [1], in [0, 1].
        prediction_type: Meaning of ``output``.

    Returns:
        Mean and spread of :math:`x_s`, and ``denoised`` :math:`= \hat x_0`. A step without
        spread has no log-density: ``DdimSampler.log_prob`` refuses it by the step's number,
        ``gaussian.check_std`` by its value, and ``gaussian.log_prob``, which reads no value, is
        NaN.

    Raises:
        ValueError: If ``eta`` is outside [0, 1], ``prediction_type`` is unknown, or a tensor is
            half precision or of a shape that does not fit.

    Examples:
        >>> import torch
        >>> step = ddim_transition(
        ...     torch.ones(1, 1, 1),
        ...     torch.ones(1, 1, 1),
        ...     alpha_bar_t=torch.tensor(0.36),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     eta=0.0,
        ...     prediction_type="epsilon",
        ... )
        >>> round(step.denoised.item(), 4), round(step.mean.item(), 4), step.std.item()
        (0.3333, 0.8667, 0.0)
    """
    require_levels(latent_t, alpha_bar_prev=alpha_bar_prev)
    require_eta(eta)
    dtype = working_dtype(output=output, latent_t=latent_t)
    clean, noise = clean_and_noise(
        output, latent_t, alpha_bar_t=alpha_bar_t, prediction_type=prediction_type
    )
    noise_t, noise_prev = 1.0 - alpha_bar_t, 1.0 - alpha_bar_prev
    # 1 - abar_s - sigma^2 loses its digits near the clean end; here nothing is subtracted.
    survival = alpha_bar_t * noise_prev / (alpha_bar_prev * noise_t)
    direction = noise_prev * ((1.0 - eta**2) + eta**2 * survival)
    drawn = noise_prev * (alpha_bar_prev - alpha_bar_t) / (alpha_bar_prev * noise_t)
    std = (drawn * eta**2).sqrt()
    mean = per_latent(alpha_bar_prev.sqrt(), dtype) * clean
    mean = mean + per_latent(direction.sqrt(), dtype) * noise
    return Transition(mean=mean, std=std.to(dtype), denoised=clean)


def ddim_invert(
    output: BatchLatent,
    latent_prev: BatchLatent,
    *,
    alpha_bar_prev: BatchShape,
    alpha_bar_t: BatchShape,
    prediction_type: PredictionType,
) -> BatchLatent:
    r"""Carry a latent up to a noisier level: the deterministic step, run backwards.

    .. math:: \tilde x_t = \sqrt{\bar\alpha_t}\,\hat x_0 + \sqrt{1-\bar\alpha_t}\,\hat\epsilon,
        \qquad (\hat x_0, \hat\epsilon)\ \text{from}\ (y, \bar\alpha_s)

    Source:
        Song et al., arXiv:2010.02502, Sec. 5.4. No deviation.

    Args:
        output: The network's output for ``latent_prev``. Gradient flows.
        latent_prev: :math:`y`, at the lower level. Gradient flows.
        alpha_bar_prev: :math:`\bar\alpha_s` of the level that ``latent_prev`` is at [1].
        alpha_bar_t: :math:`\bar\alpha_t` of the level to reach [1].
        prediction_type: Meaning of ``output``.

    Returns:
        :math:`\tilde x_t`.

    Raises:
        ValueError: If ``prediction_type`` is unknown or a tensor is half precision or of a shape
            that does not fit.

    Examples:
        >>> import torch
        >>> latent_t = ddim_invert(
        ...     torch.ones(1, 1, 1),
        ...     torch.full((1, 1, 1), 13 / 15),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     alpha_bar_t=torch.tensor(0.36),
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
    signal = per_latent(alpha_bar_t.sqrt(), dtype)
    return signal * clean + per_latent((1.0 - alpha_bar_t).sqrt(), dtype) * noise


@dataclass(frozen=True, kw_only=True, slots=True)
class ImplicitGrid(GaussianGrid):
    """Grid whose levels are reached from below by the deterministic step, run backwards."""

    alpha_bar_t: StepAlphaBar
    """Signal share at ``timesteps`` [1]."""

    alpha_bar_prev: StepAlphaBar
    """Signal share at the next lower level [1]."""

    prediction_type: PredictionType
    """Meaning of the network's output."""

    def invert(self, output: BatchLatent, latent_prev: BatchLatent, step: StepIndex) -> BatchLatent:
        """Carry a latent up to the level of ``step`` by :func:`ddim_invert`.

        Arguments and errors: see :class:`~mvczigal_ref.diffusion.sampler.Sampler`.
        """
        require_index(step, latent_prev)
        return ddim_invert(
            output,
            latent_prev,
            alpha_bar_prev=level_at(self.alpha_bar_prev, step),
            alpha_bar_t=level_at(self.alpha_bar_t, step),
            prediction_type=self.prediction_type,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DdimSampler(ImplicitGrid):
    """Implicit-model sampling on a grid; make one with :meth:`create`.

    The last step's ``alpha_bar_prev``, below timestep 0, is that of timestep 0, so that it has a
    spread. Where the image is the clean latent, it is that step's ``denoised``, to which
    diffusers' last step goes at once, and not its ``mean``.
    """

    eta: float = 1.0
    """Stochasticity of a step [1], in [0, 1]."""

    image_is_denoised: bool = True
    """Whether the last step goes to the clean image, or to a level that is still noisy."""

    @classmethod
    def create(
        cls,
        *,
        num_steps: int,
        alpha_bar: AlphaBar,
        prediction_type: PredictionType = "epsilon",
        eta: float = 1.0,
        steps_offset: int = 1,
        timestep_spacing: TimestepSpacing = "leading",
        set_alpha_to_one: bool = True,
    ) -> "DdimSampler":
        """Take a grid's levels out of a noise schedule.

        Args:
            num_steps: Length of the grid [steps].
            alpha_bar: Signal share at every training timestep [1]; its dtype is the tables'.
            prediction_type: Meaning of the network's output.
            eta: Stochasticity [1], in [0, 1].
            steps_offset: Lowest timestep of a leading grid [timesteps].
            timestep_spacing: "leading", "trailing" or "linspace".
            set_alpha_to_one: Whether below timestep 0 lies the clean image, or the level of
                timestep 0, which is then that of the image.

        Returns:
            The sampler, its tables on ``alpha_bar``'s device.

        Raises:
            ValueError: If ``alpha_bar`` is not strictly decreasing in (0, 1), the grid does not
                fit it, a setting is outside its range, or the last step would have no spread.

        Examples:
            >>> import torch
            >>> sampler = DdimSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
            >>> sampler.timesteps
            tensor([751, 501, 251,   1])
        """
        check_schedule(alpha_bar)
        require_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        require_eta(eta)
        num_train_timesteps = alpha_bar.shape[0]
        timesteps = spaced_timesteps(
            num_steps,
            timestep_spacing,
            num_train_timesteps=num_train_timesteps,
            steps_offset=steps_offset,
        ).to(alpha_bar.device)
        lower = timesteps - num_train_timesteps // num_steps
        below = lower.clamp(min=0)
        alpha_bar_t, alpha_bar_prev = alpha_bar[timesteps], alpha_bar[below]
        if eta > 0.0:
            # A grid down to timestep 0 stays there in its last step: no spread, no density.
            name = "steps_offset" if timestep_spacing == "leading" else "timestep_spacing"
            check_std((alpha_bar_prev - alpha_bar_t).sqrt(), name=name)
        return cls(
            timesteps=timesteps,
            alpha_bar_t=alpha_bar_t,
            alpha_bar_prev=alpha_bar_prev,
            prediction_type=prediction_type,
            eta=eta,
            image_is_denoised=set_alpha_to_one and bool(lower[-1] < 0),
        )

    @property
    def num_density_steps(self) -> int:
        """Steps from the first on that have a log-density [steps]: all, or none at ``eta`` 0."""
        return 0 if self.eta == 0.0 else self.num_steps

    @property
    def last_action_is_image_independent(self) -> bool:
        """Whether the image is decoded from the last ``denoised``, not from the last action."""
        return self.image_is_denoised

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent by :func:`ddim_transition`.

        The spread is 0 at ``eta`` 0.
        Arguments and errors: see :class:`~mvczigal_ref.diffusion.sampler.Sampler`.
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
            transition: Gaussian that :meth:`transition` returned for ``step``. Gradient flows.
            step: Index into the grid.
            reduction: As in :func:`mvczigal_ref.diffusion.gaussian.log_prob`.

        Returns:
            One number per latent; with "none" one per element.

        Raises:
            ValueError: If ``eta`` is 0: no step has a log-density. Or if the int ``step`` is
                outside the grid.

        Examples:
            >>> import torch
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
        if not isinstance(step, Tensor):
            level_at(self.alpha_bar_t, step)  # refuses one outside the grid
        return log_prob(action, mean=transition.mean, std=transition.std, reduction=reduction)
