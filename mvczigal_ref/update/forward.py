"""The update on the forward process: samples noised again, and velocities fitted to them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mvczigal_ref.diffusion.flow import flow_latent
from mvczigal_ref.diffusion.precision import widest_dtype
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
    """Noise levels [1]."""

    conditioning: Conditioning
    """Text and cameras of the prompts."""

    advantage: Float[Tensor, "member prompt view"]
    """Advantage of each sample [1]."""

    first_object: int
    """Index of the first prompt within the iteration, for messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisedSamples:
    """Samples at one noise level, and the velocities that an objective reads."""

    velocity: MemberLatent
    """Velocity of the policy [1]. Gradient flows."""

    velocity_old: MemberLatent
    """Velocity of the policy that sampled [1]."""

    velocity_reference: MemberLatent | None
    """Velocity of the reference policy [1]; None where there is none."""

    latent_t: MemberLatent
    """The noised samples [1]."""

    clean: MemberLatent
    """The samples [1]."""

    level: Float[Tensor, "member prompt view"]
    """Noise level of each sample [1]."""

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
    old: Elsewhere
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
            torch.tensor(1000.0 * self.batch.levels[self.index], device=latent_t.device),
            self.batch.conditioning.repeat(members) if members > 1 else self.batch.conditioning,
            guidance_scale=self.settings.guidance_scale,
            camera_scale=self.settings.camera_scale,
        )
        return output.reshape(latent_t.shape)

    def _noised(self) -> tuple[NoisedSamples, MemberLatent]:
        batch, level = self.batch, self.batch.levels[self.index]
        shape, device = batch.advantage.shape, batch.clean.device
        latent_t = flow_latent(
            batch.clean,
            batch.noise[self.index],
            sigma=torch.full(shape, level, dtype=widest_dtype(device), device=device),
        )
        reference = None
        with torch.no_grad():
            with self.old():
                old = self._velocity(latent_t)
            if self.reference is not None:
                with self.reference():
                    reference = self._velocity(latent_t)
        noised = NoisedSamples(
            velocity=self._velocity(latent_t),
            velocity_old=old,
            velocity_reference=reference,
            latent_t=latent_t,
            clean=batch.clean,
            level=torch.full_like(batch.advantage, level),
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
    old: Elsewhere,
    reference: Elsewhere | None = None,
    loss_scale: LossScale | None = None,
) -> tuple[dict[str, float], LossScale | None]:
    """Go over one iteration's samples, noised again, and change the parameters.

    Source:
        arXiv:2509.16117 (DiffusionNFT): no trajectory is stored and no log-density asked for.

    Args:
        policy: A flow's network.
        optimizer: Optimiser over ``parameters``.
        batches: This process's slices, optimiser step by optimiser step.
        objective: Gives a level's loss with gradient.
        parameters: Trainable parameters; by name, so that an error can name one.
        world: This process among all; gradients are averaged over it.
        settings: Guidance, epochs and optimiser steps.
        old: Gives the policy the parameters that sampled.
        reference: Gives the policy the parameters that training started from; None without a
            penalty.
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
