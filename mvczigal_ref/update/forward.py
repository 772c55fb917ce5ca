"""The update on the forward process: samples noised again, and velocities fitted to them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mvczigal_ref.diffusion.flow import flow_latent
from mvczigal_ref.diffusion.precision import widest_dtype
from mvczigal_ref.diffusion.schedule import noised_latent
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.update.loop import (
    GradientStats,
    asks_for_change,
    dealt,
    update_parameters,
)
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.parameters import Parameters
from mvczigal_ref.update.replay import ReplaySettings

__all__ = ["ForwardBatch", "ForwardObjective", "NoisedSamples", "update_forward"]

Elsewhere = Callable[[], AbstractContextManager[None]]
"""Parameter swap: gives the policy other parameters for a while."""

MemberLatent = Float[Tensor, "member prompt view c h w"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardBatch:
    """One slice's samples, and the noise that they are given."""

    clean: MemberLatent
    """Samples that were judged [1]."""

    noise: Float[Tensor, "level member prompt view c h w"]
    """Standard-normal noise of each sample, drawn anew for each level [1]."""

    levels: tuple[float, ...]
    """Noise levels of a flow; signal shares where there are timesteps [1]."""

    conditioning: Conditioning
    """Text and cameras of the prompts."""

    advantage: Float[Tensor, "member prompt view"]
    """Advantage of each sample [1]."""

    first_object: int
    """Index of the first prompt within the iteration, for messages."""

    timesteps: tuple[int, ...] | None = None
    """Training-time noise index of each level; None for a flow, whose levels say it."""

    def timestep(self, index: int) -> float | int:
        """Give what the network is told of a level."""
        return 1000.0 * self.levels[index] if self.timesteps is None else self.timesteps[index]

    def noised(self, index: int) -> MemberLatent:
        """Give the samples the noise of a level."""
        device = self.clean.device
        level = torch.full(
            self.advantage.shape, self.levels[index], dtype=widest_dtype(device), device=device
        )
        if self.timesteps is None:
            return flow_latent(self.clean, self.noise[index], sigma=level)
        return noised_latent(self.clean, self.noise[index], alpha_bar_t=level)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisedSamples:
    """Samples at one noise level, and what networks say of them: velocities of a flow."""

    velocity: MemberLatent
    """Output of the policy [1]. Gradient flows."""

    velocity_old: MemberLatent | None
    """Output of the policy that sampled [1]; None where no objective reads it."""

    velocity_reference: MemberLatent | None
    """Output of the reference policy [1]; None where there is none."""

    latent_t: MemberLatent
    """The noised samples [1]."""

    clean: MemberLatent
    """The samples [1]."""

    noise: MemberLatent
    """Noise that they were given [1]."""

    level: Float[Tensor, "member prompt view"]
    """Noise level or signal share of each sample [1]."""

    advantage: Float[Tensor, "member prompt view"]
    """Advantage of each sample [1]."""


ForwardObjective = Callable[[NoisedSamples], tuple[Tensor, dict[str, Tensor]]]
"""From noised samples to their mean loss, with gradient, and means by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Microbatch:
    """One slice at one noise level."""

    policy: Policy
    batch: ForwardBatch
    index: int
    objective: ForwardObjective
    old: Elsewhere | None
    reference: Elsewhere | None
    settings: ReplaySettings
    exact: bool = False

    @property
    def count(self) -> int:
        """Elements: samples times views."""
        return self.batch.advantage.numel()

    @property
    def place(self) -> str:
        """Slice that this is, for messages."""
        return f"the slice that starts at object {self.batch.first_object}"

    def accumulate(self, *, weight: float, on_policy: bool) -> GradientStats:
        """Fit, and send the weighted loss backward."""
        del on_policy
        noised, latent_t = self._noised()
        noised.velocity.retain_grad()
        loss, means = self.objective(noised)
        if not bool(loss.detach().isfinite()):
            raise self._culprit(latent_t, float(loss.detach()))
        (weight * loss).backward()
        zero = torch.zeros_like(loss.detach())
        return GradientStats(
            loss=loss.detach() * self.count,
            log_ratio_square=zero,
            clipped=zero,
            deviation=zero,
            asks=asks_for_change(noised.velocity) & self._has_goal(),
            count=self.count,
            num_log_ratios=0,
            extra={name: value * self.count for name, value in means.items()},
        )

    def _has_goal(self) -> Bool[Tensor, ""]:
        """Tell whether a sample is better or worse than average, or a reference policy pulls.

        Elsewhere both fits of the loss weigh the same, and their gradients cancel but for rounding
        and the distance to the old policy: neither must reach the parameters.
        """
        return self.batch.advantage.any() | (self.reference is not None)

    def _velocity(self, latent_t: MemberLatent) -> MemberLatent:
        members = latent_t.shape[0]
        output = self.policy(
            latent_t.flatten(0, 2),
            torch.tensor(self.batch.timestep(self.index), device=latent_t.device),
            self.batch.conditioning.repeat(members) if members > 1 else self.batch.conditioning,
            guidance_scale=self.settings.guidance_scale,
            camera_scale=self.settings.camera_scale,
        )
        return output.reshape(latent_t.shape)

    @torch.no_grad()
    def _velocity_of(self, elsewhere: Elsewhere | None, latent_t: MemberLatent) -> Tensor | None:
        """Predict by other parameters, if there are any."""
        if elsewhere is None:
            return None
        with elsewhere():
            return self._velocity(latent_t)

    def _noised(self) -> tuple[NoisedSamples, MemberLatent]:
        batch, latent_t = self.batch, self.batch.noised(self.index)
        old = self._velocity_of(self.old, latent_t)
        reference = self._velocity_of(self.reference, latent_t)
        noised = NoisedSamples(
            velocity=self._velocity(latent_t),
            velocity_old=old,
            velocity_reference=reference,
            latent_t=latent_t,
            clean=batch.clean,
            noise=batch.noise[self.index],
            level=torch.full_like(batch.advantage, batch.levels[self.index]),
            advantage=batch.advantage,
        )
        return noised, latent_t

    def _culprit(self, latent_t: MemberLatent, loss: float) -> NonFiniteError:
        """Name the sample whose velocity or advantage is non-finite, or none."""
        velocity = self._velocity(latent_t).detach().sum((-3, -2, -1))
        for name, table in (("advantage", self.batch.advantage), ("velocity", velocity)):
            bad = (~table.isfinite()).nonzero().tolist()
            if bad:
                _, prompt, view = bad[0]
                return NonFiniteError(name, object=self.batch.first_object + prompt, view=view)
        return NonFiniteError("loss", value=loss)


def update_forward(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[ForwardBatch],
    objective: ForwardObjective,
    *,
    parameters: Parameters,
    world: World,
    settings: ReplaySettings,
    old: Elsewhere | None = None,
    reference: Elsewhere | None = None,
    loss_scale: LossScale | None = None,
) -> tuple[dict[str, float], LossScale | None]:
    """Go over one iteration's samples, noised again, and change the parameters.

    Source:
        arXiv:2509.16117 (DiffusionNFT): no trajectory is stored and no log-density asked for;
        arXiv:2311.12908 (Diffusion-DPO) on pairs.

    Args:
        policy: The network.
        optimizer: Optimiser over ``parameters``.
        batches: This process's slices, optimiser step by optimiser step.
        objective: Gives a level's loss with gradient.
        parameters: Trainable parameters; by name, so that an error can name one.
        world: This process among all; gradients are averaged over it.
        settings: Guidance, epochs and optimiser steps.
        old: Gives the policy the parameters that sampled; None where no objective reads its
            output.
        reference: Gives the policy the parameters of the reference; None where there is none.
        loss_scale: Factor on the loss in the backward pass; None where gradients do not need it.

    Returns:
        Means over the update: loss, grad_norm, and the objective's own means; and the loss scale of
        the next.

    Raises:
        ValueError: If the batches cannot be dealt out to the optimiser steps equally.
        NonFiniteError: If a number is non-finite; names object and view, or the parameter whose
            gradient it is.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
    """
    return update_parameters(
        optimizer,
        [
            [
                _Microbatch(
                    policy=policy, batch=batch, index=index, objective=objective, old=old,
                    reference=reference, settings=settings,
                )
                for batch in part
                for index in range(len(batch.levels))
            ]
            for part in dealt(batches, settings.optimizer_steps)
        ],
        parameters=parameters,
        world=world,
        epochs=settings.epochs,
        max_grad_norm=settings.max_grad_norm,
        clip_range=settings.clip_range,
        loss_scale=loss_scale,
        growth_interval=settings.scale_growth_interval,
    )  # fmt: skip
