"""Flow-model sampling bound to a grid."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.flow import flow_invert, flow_ode_transition
from mvczigal_ref.diffusion.flow_dpm import OdeMemory, dpm2m_transition
from mvczigal_ref.diffusion.flow_noise import (
    constant_noise_transition,
    cps_transition,
    cps_unscaled_log_prob,
    flow_sde_transition,
    require_noise_scale,
)
from mvczigal_ref.diffusion.flow_schedule import Sigmas
from mvczigal_ref.diffusion.gaussian import Reduction, log_prob
from mvczigal_ref.diffusion.grid import Grid
from mvczigal_ref.diffusion.levels import level_at, require_index
from mvczigal_ref.diffusion.precision import require_choice, require_full_precision
from mvczigal_ref.diffusion.sampler import StepIndex, Transition, require_scored_step
from mvczigal_ref.shapes import BatchLatent

__all__ = ["FLOW_KERNELS", "FlowDensity", "FlowKernel", "FlowOde", "FlowSampler", "StepSigma"]

FlowKernel = Literal["sde", "constant", "cps", "ode"]
"""Noise that falls with the level, constant noise, coefficient-preserving, or none."""

FlowOde = Literal["euler", "dpm2m"]
"""Solver of the steps that draw no noise: Euler's, or DPM-Solver++ of second order."""

FlowDensity = Literal["gaussian", "unscaled"]
"""Density that scores an action: the Gaussian's, or the squared error that Flow-GRPO's released
code takes in its place for coefficient-preserving noise."""

FLOW_KERNELS: Final = get_args(FlowKernel)
"""The words of :data:`FlowKernel`, to check one by."""

StepSigma = Float[Tensor, " step"]
"""Noise level at each step of a grid [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSampler(Grid):
    """Flow-model sampling on a grid; make one with :meth:`create`.

    Its timesteps are no integers: a level lies anywhere between two trained ones.
    """

    timesteps: StepSigma
    """Noise level of each step in training timesteps, where the network is evaluated."""

    sigma_t: StepSigma
    """Noise level of each step [1]."""

    sigma_prev: StepSigma
    """Noise level that each step ends at [1]."""

    kernel: FlowKernel
    """Kernel by which a step draws noise."""

    noise_scale: float
    """Stochasticity in the kernel's own measure [1]; 0 for "ode" alone."""

    num_density_steps: int
    """Steps from the first on that have a log-density [steps]."""

    image_is_denoised: bool = False
    """Whether the image is the last step's clean prediction, not its action."""

    ode: FlowOde = "euler"
    """Solver that :meth:`follow` takes a step of the ODE with."""

    density: FlowDensity = "gaussian"
    """Density that scores an action; "unscaled" for "cps" alone."""

    @classmethod
    def create(
        cls,
        *,
        sigmas: Sigmas,
        kernel: FlowKernel,
        noise_scale: float = 0.0,
        image_is_denoised: bool = False,
        ode: FlowOde = "euler",
        density: FlowDensity = "gaussian",
        num_train_timesteps: int = 1000,
    ) -> "FlowSampler":
        """Bind a kernel to a grid of noise levels.

        Args:
            sigmas: Levels, see :func:`flow_sigmas` [1]; strictly decreasing in [0, 1], one more
                than there are steps. A part of a grid, or every second level, is a grid.
            kernel: "sde" (Flow-GRPO), "constant" (DanceGRPO), "cps" or "ode".
            noise_scale: Stochasticity in the kernel's own measure [1]; positive, with "cps" at
                most 1, with "ode" 0.
            image_is_denoised: Whether the image is the last step's clean prediction, as in
                DanceGRPO, or its action, as in Flow-GRPO.
            ode: Solver of the steps that draw no noise, see :meth:`follow`.
            density: Density that scores an action, see :meth:`log_prob`.
            num_train_timesteps: Timestep of level 1 [timesteps]; at least 1.

        Returns:
            The sampler, its tables on ``sigmas``' device and in its dtype.

        Raises:
            ValueError: If ``sigmas`` is no grid, ``kernel`` is unknown, or a setting is outside
                its range.

        Examples:
            >>> import torch
            >>> sampler = FlowSampler.create(
            ...     sigmas=torch.tensor([1.0, 0.75, 0.5, 0.0]), kernel="cps", noise_scale=0.8
            ... )
            >>> sampler.timesteps, sampler.num_density_steps
            (tensor([1000.,  750.,  500.]), 2)
        """
        _check_sigmas(sigmas)
        require_choice("kernel", kernel, FLOW_KERNELS)
        require_choice("ode", ode, get_args(FlowOde))
        require_choice("density", density, get_args(FlowDensity))
        if density == "unscaled" and kernel != "cps":
            msg = f"`density` must be 'gaussian' with kernel={kernel!r}; got {density!r}."
            raise ValueError(msg)
        if num_train_timesteps < 1:
            msg = f"`num_train_timesteps` must be at least 1; got {num_train_timesteps}."
            raise ValueError(msg)
        require_noise_scale(noise_scale, **({"most": 1.0} if kernel == "cps" else {}))
        if (noise_scale == 0.0) != (kernel == "ode"):
            rule = "0 with kernel='ode'" if kernel == "ode" else f"positive with kernel={kernel!r}"
            msg = f"`noise_scale` must be {rule}; got {noise_scale}. Without noise, take 'ode'."
            raise ValueError(msg)
        num_steps = sigmas.shape[0] - 1
        # The level that this kernel keeps exact has no room for noise where it is 0.
        ends_clean = kernel == "cps" and bool(sigmas[-1] == 0.0)
        return cls(
            timesteps=sigmas[:-1] * num_train_timesteps,
            sigma_t=sigmas[:-1],
            sigma_prev=sigmas[1:],
            kernel=kernel,
            noise_scale=noise_scale,
            num_density_steps=0 if kernel == "ode" else num_steps - ends_clean,
            image_is_denoised=image_is_denoised,
            ode=ode,
            density=density,
        )

    @property
    def last_action_is_image_independent(self) -> bool:
        """Whether the image is decoded from the last ``denoised``, not from the last action."""
        return self.image_is_denoised

    def deterministic(self) -> "FlowSampler":
        """Return the ODE on the same grid, for steps outside a window of stochastic ones.

        Returns:
            The sampler; it shares this one's tables.

        Examples:
            >>> import torch
            >>> sampler = FlowSampler.create(
            ...     sigmas=torch.tensor([1.0, 0.0]), kernel="sde", noise_scale=0.7
            ... )
            >>> sampler.deterministic().num_density_steps
            0
        """
        return replace(self, kernel="ode", noise_scale=0.0, num_density_steps=0, density="gaussian")

    def transition(self, output: BatchLatent, latent_t: BatchLatent, step: StepIndex) -> Transition:
        """Return the Gaussian of the next latent by the kernel's own function.

        ``output`` is the velocity; the spread is 0 from step ``num_density_steps`` on.
        Arguments and errors: see :class:`~mvczigal_ref.diffusion.sampler.Sampler`.
        """
        require_index(step, latent_t)
        return self._kernel()(
            output,
            latent_t,
            sigma_t=level_at(self.sigma_t, step),
            sigma_prev=level_at(self.sigma_prev, step),
        )

    def follow(
        self,
        output: BatchLatent,
        latent_t: BatchLatent,
        step: StepIndex,
        memory: OdeMemory | None = None,
    ) -> tuple[Transition, OdeMemory | None]:
        """Follow the ODE down to the next level by the solver ``ode``, without fresh noise.

        Args:
            output: The velocity at ``latent_t`` and ``timesteps[step]``. Gradient flows.
            latent_t: The latent at ``step``. Gradient flows.
            step: As in :meth:`transition`.
            memory: From the step before, if that followed the ODE too; None begins anew.

        Returns:
            The next latent as ``mean``, with ``std`` 0, and the memory for the step after; None
            from Euler's step, which needs none.

        Raises:
            ValueError: If ``step`` is an int outside the grid, or a tensor of another shape.

        Examples:
            >>> import torch
            >>> sampler = FlowSampler.create(
            ...     sigmas=torch.tensor([0.8, 0.5, 0.2]), kernel="ode", ode="dpm2m"
            ... )
            >>> x = torch.ones(1, 1, 1)
            >>> first, memory = sampler.follow(x, x, 0)
            >>> second, _ = sampler.follow(x, first.mean, 1, memory)
            >>> round(first.mean.item(), 4), round(second.mean.item(), 4)
            (0.7, 0.4)
        """
        require_index(step, latent_t)
        sigma_t, sigma_prev = level_at(self.sigma_t, step), level_at(self.sigma_prev, step)
        if self.ode == "euler":
            taken = flow_ode_transition(output, latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev)
            return taken, None
        taken = dpm2m_transition(
            output, latent_t, sigma_t=sigma_t, sigma_prev=sigma_prev, memory=memory
        )
        return taken, OdeMemory(clean=taken.denoised, sigma=sigma_t)

    def log_prob(
        self, action: BatchLatent, transition: Transition, step: StepIndex, *, reduction: Reduction
    ) -> Float[Tensor, "..."]:
        """Return the log-density of an action, unless the step has none.

        Args:
            action: The next latent. Gradient flows.
            transition: Gaussian that :meth:`transition` returned for ``step``. Gradient flows.
            step: Index into the grid. An int is checked; a tensor must hold
                0..num_density_steps-1, and what it holds above is NaN.
            reduction: As in :func:`mvczigal_ref.diffusion.gaussian.log_prob`.

        Returns:
            One number per latent; with "none" one per element.

        Raises:
            ValueError: If no step, or the int ``step``, has a log-density, or it is outside the
                grid.

        Examples:
            >>> import torch
            >>> sampler = FlowSampler.create(
            ...     sigmas=torch.tensor([1.0, 0.5]), kernel="cps", noise_scale=1.0
            ... )
            >>> zero = torch.zeros(1, 1, 1)
            >>> taken = sampler.transition(zero, zero, 0)
            >>> round(sampler.log_prob(zero, taken, 0, reduction="sum").item(), 4)
            -0.2258
        """
        which = "the ODE" if self.kernel == "ode" else f"kernel {self.kernel!r} at level 0"
        why = (
            f"A step of {which} has no spread, so no log-density: leave it out of training, "
            "or draw it with a stochastic kernel."
        )
        require_scored_step(self, step, why)
        return self.score(action, transition, reduction=reduction)

    def score(
        self, action: BatchLatent, transition: Transition, *, reduction: Reduction
    ) -> Float[Tensor, "..."]:
        """Score an action by the sampler's density, without asking for the step.

        Args:
            action: The next latent. Gradient flows.
            transition: Gaussian that it was drawn from. Gradient flows.
            reduction: As in :func:`mvczigal_ref.diffusion.gaussian.log_prob`.

        Returns:
            One number per latent [nats or nats/element; squared latent units if "unscaled"]; with
            "none" one per element.
        """
        if self.density == "unscaled":
            return cps_unscaled_log_prob(action, mean=transition.mean, reduction=reduction)
        return log_prob(action, mean=transition.mean, std=transition.std, reduction=reduction)

    def invert(self, output: BatchLatent, latent_prev: BatchLatent, step: StepIndex) -> BatchLatent:
        """Carry a latent up to the level of ``step`` by :func:`flow_invert`.

        Arguments and errors: see :class:`~mvczigal_ref.diffusion.sampler.Sampler`.
        """
        require_index(step, latent_prev)
        return flow_invert(
            output,
            latent_prev,
            sigma_prev=level_at(self.sigma_prev, step),
            sigma_t=level_at(self.sigma_t, step),
        )

    def _kernel(self) -> Callable[..., Transition]:
        """Return the step function, its noise scale filled in."""
        if self.kernel == "ode":
            return flow_ode_transition
        if self.kernel == "sde":
            return partial(flow_sde_transition, noise_scale=self.noise_scale)
        if self.kernel == "constant":
            return partial(constant_noise_transition, noise_scale=self.noise_scale)
        return partial(cps_transition, noise_scale=self.noise_scale)


def _check_sigmas(sigmas: Tensor) -> None:
    """Refuse what is no grid of noise levels; reads the device, so once, when one is made."""
    require_full_precision(sigmas=sigmas)
    inside = bool(((sigmas >= 0.0) & (sigmas <= 1.0)).all())
    if sigmas.shape[0] < 2 or not inside or not bool((sigmas.diff() < 0.0).all()):
        msg = (
            "`sigmas` must be two or more levels, strictly decreasing in [0, 1]; got "
            f"{sigmas.tolist()}. See `flow_sigmas`."
        )
        raise ValueError(msg)
