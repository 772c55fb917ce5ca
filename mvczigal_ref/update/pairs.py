"""The update over pairs: what is replayed together, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.policy import Policy
from mvczigal_ref.update.accumulate import accumulate_pairs, replay
from mvczigal_ref.update.batch import PairBatch, PairObjective, UpdateSettings
from mvczigal_ref.update.loop import dealt, update_parameters
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.microbatch import Culprit, GradientStats

__all__ = ["PairMicrobatch", "update_policy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairMicrobatch:
    """Some steps of some pairs."""

    policy: Policy
    """The network."""

    sampler: Sampler
    """The kernel that sampled the pairs."""

    batch: PairBatch
    """The pairs."""

    steps: Sequence[int]
    """Steps replayed together, in one network call an arm."""

    objective: PairObjective
    """Gives a loss and both derivatives from numbers alone."""

    settings: UpdateSettings
    """Guidance, reduction and clip range."""

    exact: bool
    """Whether the slice and its single step are those of the rollout."""

    @property
    def count(self) -> int:
        """Elements: steps times objects times views."""
        return len(self.steps) * self.batch.advantage_gap.numel()

    @property
    def place(self) -> str:
        """Say which slice this is, for messages."""
        state = self.batch.rollout.zigzag.state
        return (
            f"the slice that starts at object {self.batch.first_object} (storage {state.dtype}, "
            f"{state.shape[1]} objects of {state.shape[2]} views)"
        )

    def accumulate(self, *, weight: float, on_policy: bool) -> GradientStats:
        """Add this microbatch's share of the gradient; see :func:`accumulate_pairs`."""
        return accumulate_pairs(
            self.policy, self.sampler, self.batch, self.steps, self.objective,
            weight=weight, on_policy=on_policy, settings=self.settings,
        )  # fmt: skip

    def scores(self) -> Iterator[tuple[Tensor, Culprit]]:
        """Replay both arms, to search for what made a gradient non-finite."""
        for trajectory in (self.batch.rollout.zigzag, self.batch.rollout.standard):
            table = replay(
                self.policy, self.sampler, self.batch, trajectory, self.steps, self.settings
            )
            yield table, self._culprit

    def _culprit(self, index: Sequence[int]) -> NonFiniteError:
        step, item, view = index
        return NonFiniteError(
            "gradient", object=self.batch.first_object + item, view=view, step=self.steps[step]
        )


def update_policy(
    policy: Policy,
    sampler: Sampler,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[PairBatch],
    objective: PairObjective,
    *,
    parameters: Sequence[Tensor],
    world: World,
    settings: UpdateSettings,
    loss_scale: LossScale | None = None,
) -> tuple[dict[str, float], LossScale | None]:
    """Go over one iteration's pairs and change the parameters.

    The gradient of an optimiser step is that of the mean over its steps, objects and
    views, however they are cut into microbatches and shared among processes.

    Args:
        policy: The network.
        sampler: The kernel that sampled the pairs.
        optimizer: Over ``parameters``.
        batches: This process's pairs, one rollout slice each, optimiser step by
            optimiser step.
        objective: Gives a loss and both derivatives from numbers alone.
        parameters: What trains.
        world: This process among all; gradients are averaged over it.
        settings: How pairs are cut up and replayed.
        loss_scale: Factor on the loss in the backward pass; None where gradients do not need it.

    Returns:
        Means over the update, see :func:`update_parameters`, and the loss scale of the next.

    Raises:
        ValueError: If the batches cannot be dealt out to the optimiser steps equally.
        NonFiniteError: If a number is not finite; names object, view and step.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If the first ratio is not exactly 1 on equal slices.
    """
    return update_parameters(
        optimizer,
        [
            [
                PairMicrobatch(
                    policy=policy, sampler=sampler, batch=piece, steps=steps, objective=objective,
                    settings=settings, exact=piece is batch and len(steps) == 1,
                )
                for batch in part
                for piece in _pieces(batch, settings.objects_per_microbatch)
                for steps in _runs(settings)
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


def _pieces(batch: PairBatch, size: int | None) -> list[PairBatch]:
    """Cut a slice into what one network call replays; one that is not cut is handed on whole."""
    objects = batch.advantage_gap.shape[0]
    if size is None or size >= objects:
        return [batch]
    return [batch.objects(slice(i, i + size)) for i in range(0, objects, size)]


def _runs(settings: UpdateSettings) -> list[Sequence[int]]:
    """Cut the steps into what one network call replays."""
    length = settings.steps_per_microbatch
    return [settings.steps[i : i + length] for i in range(0, len(settings.steps), length)]
