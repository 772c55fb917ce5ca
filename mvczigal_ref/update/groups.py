"""The update over groups: every decision replayed with gradients, under its condition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler, Transition
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.records import GroupDecision
from mvczigal_ref.update.group_batch import (
    GroupBatch,
    GroupObjective,
    MemberTable,
    Reference,
    ReplayedDecision,
)
from mvczigal_ref.update.loop import (
    GradientStats,
    asks_for_change,
    dealt,
    update_parameters,
)
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.parameters import Parameters
from mvczigal_ref.update.replay import GroupUpdateSettings, member_transition, score_members
from mvczigal_ref.update.sequence import SequenceRatios

__all__ = ["GroupMicrobatch", "update_groups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupMicrobatch:
    """Some parents of one decision, with their members, under one condition."""

    policy: Policy
    """The network."""

    sampler: Sampler
    """Kernel that drew the members."""

    decision: GroupDecision
    """States and actions, with the densities that the network which sampled gives the actions
    under this condition."""

    conditioning: Conditioning
    """Text and cameras of the prompts, or of other captions in their place."""

    advantage: MemberTable
    """Advantage of each member under this condition [1]."""

    weight: tuple[float, ...]
    """Weight of each prompt's terms, added up over the conditions that they stand for [1]."""

    repeats: tuple[int, ...]
    """Number of conditions that each prompt's terms stand for."""

    objects: tuple[int, ...]
    """Index of each prompt within the iteration."""

    objective: GroupObjective
    """Loss of a replayed decision, with gradient."""

    reference: Reference | None
    """Reference policy that the objective holds the policy near; None if it does not."""

    settings: GroupUpdateSettings
    """Guidance and reduction."""

    share: tuple[float, ...] | None
    """Weight of each prompt in every mean [1]; None is 1 each."""

    members: slice
    """Members of the batch's decision that these are."""

    first: bool
    """Whether these are the first of an optimiser step's elements of their batch."""

    sequence: SequenceRatios | None = None
    """Log-ratios of whole trajectories; None where no objective reads them."""

    exact: bool = True
    """Whether slices are those of the rollout, so that the first ratio is 1."""

    @property
    def count(self) -> int:
        """Elements: members times views times the conditions of all prompts."""
        members, _, views = self.advantage.shape
        return members * views * sum(self.repeats)

    @property
    def place(self) -> str:
        """Decision that this is, for messages."""
        state = self.decision.state
        return (
            f"step {self.decision.step} of the slice that starts at object {self.objects[0]} "
            f"(storage {state.dtype}, {state.shape[0]} prompts, {state.shape[1]} states of "
            f"{state.shape[2]} views)"
        )

    def accumulate(self, *, weight: float, on_policy: bool) -> GradientStats:
        """Replay, and send the weighted loss backward.

        Args:
            weight: This microbatch's share of the whole loss, times the loss scale [1].
            on_policy: Whether the parameters are those that sampled.

        Returns:
            Sums for the metrics.

        Raises:
            NonFiniteError: If a log-density or the loss is non-finite.
        """
        sequence = None
        if self.sequence is not None:
            sequence = self.sequence.of(self.members, first=self.first, on_policy=on_policy)
        mean_reference = None
        if self.reference is not None:
            with torch.no_grad(), self.reference():
                mean_reference = self._transition().mean
        transition = self._transition()
        transition.mean.retain_grad()
        score = score_members(self.sampler, self.decision, transition, settings=self.settings)
        log_ratio = score - self.decision.log_prob.transpose(0, 1)
        repeats = self._relative(self.repeats, log_ratio)
        old = self.decision.mean
        loss, diagnostics = self.objective(
            ReplayedDecision(
                log_ratio=log_ratio,
                advantage=self.advantage.to(log_ratio.dtype),
                weight=self._relative(self.weight, log_ratio),
                repeats=repeats,
                share=None
                if self.share is None
                else log_ratio.new_tensor(self.share)[:, None].expand_as(log_ratio),
                sequence=sequence,
                mean=transition.mean,
                std=transition.std,
                step=self.decision.step,
                mean_old=None if old is None else self.decision.members_of(old.transpose(0, 1)),
                mean_reference=mean_reference,
            )
        )
        ratio = log_ratio.detach()
        self._check_finite(ratio, loss.detach())
        (weight * loss).backward()
        extra = (
            {}
            if mean_reference is None
            else {"reference_kl": diagnostics.reference_kl * self.count}
        )
        return GradientStats(
            loss=loss.detach() * self.count,
            log_ratio_square=(repeats * ratio.square()).mean() * self.count,
            clipped=diagnostics.clip_fraction * self.count,
            deviation=ratio.abs().max(),
            asks=asks_for_change(transition.mean),
            count=self.count,
            num_log_ratios=self.count,
            extra=extra,
        )

    def _relative(self, values: Sequence[float | int], like: Tensor) -> Tensor:
        """Share out what belongs to prompts, so that a mean over terms is one over elements."""
        mean = sum(self.repeats) / len(self.repeats)
        return like.new_tensor([value / mean for value in values])[:, None].expand_as(like)

    def _transition(self) -> Transition:
        return member_transition(
            self.policy, self.sampler, self.decision, self.conditioning, settings=self.settings
        )

    def _check_finite(self, log_ratio: Tensor, loss: Tensor) -> None:
        """Name the first non-finite log-ratio or advantage, or the ratio that made the loss so."""
        if bool(log_ratio.isfinite().all() & loss.isfinite()):
            return
        for name, table in (("log_ratio", log_ratio), ("advantage", self.advantage)):
            bad = (~table.isfinite()).nonzero().tolist()
            if bad:
                raise self._error(name, bad[0], value=float(table[tuple(bad[0])]))
        largest = (log_ratio == log_ratio.max()).nonzero().tolist()[0]
        raise self._error("loss", largest, value=float(loss))

    def _error(
        self, what: str, index: Sequence[int], *, value: float | None = None
    ) -> NonFiniteError:
        _, prompt, view = index
        return NonFiniteError(
            what,
            object=self.objects[prompt],
            view=view,
            step=self.decision.step,
            value=value,
        )


def update_groups(
    policy: Policy,
    sampler: Sampler,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Sequence[GroupBatch]],
    objective: GroupObjective,
    *,
    parameters: Parameters,
    world: World,
    settings: GroupUpdateSettings,
    reference: Reference | None = None,
    loss_scale: LossScale | None = None,
    on_policy: bool = True,
) -> tuple[dict[str, float], LossScale | None]:
    """Go over one iteration's groups and change the parameters.

    The gradient of an optimiser step is that of the mean over its decisions, members, prompts,
    views and conditions, however they are cut and shared among processes.

    Args:
        policy: The network.
        sampler: The kernel that drew the members.
        optimizer: Optimiser over ``parameters``.
        batches: This process's slices, optimiser step by optimiser step, each under all of its
            conditions.
        objective: Gives a decision's loss with gradient.
        parameters: Trainable parameters; by name, so that an error can name one.
        world: This process among all; gradients are averaged over it.
        settings: Cuts, guidance and reduction of the replay.
        reference: Reference policy that the objective holds the policy near; None if it does not.
        loss_scale: Factor on the loss in the backward pass; None where gradients do not need it.
        on_policy: Whether the parameters are those that sampled.

    Returns:
        Means over the update, see :func:`update_parameters`, and ``reference_kl``; and the loss
        scale of the next.

    Raises:
        ValueError: If the batches cannot be dealt out to the optimiser steps equally.
        NonFiniteError: If a number is non-finite; names object, view and step, or the parameter
            whose gradient it is.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If the first ratio is not exactly 1.
    """
    by_sequence = settings.by_sequence
    work: list[list[GroupMicrobatch]] = []
    for part in dealt(batches, settings.optimizer_steps):
        flat = [
            (batch, SequenceRatios(policy, sampler, batch, settings) if by_sequence else None)
            for conditions in part
            for batch in conditions
        ]
        by_decision = [
            [
                microbatch
                for batch, sequence in flat
                for microbatch in _microbatches(
                    batch, index, policy, sampler, objective, reference, settings, sequence
                )
            ]
            for index in range(len(part[0][0].decisions))
        ]
        if settings.step_per_decision:
            work += by_decision
        else:
            work.append([microbatch for row in by_decision for microbatch in row])
    return update_parameters(
        optimizer,
        work,
        parameters=parameters,
        world=world,
        epochs=settings.epochs,
        max_grad_norm=settings.max_grad_norm,
        clip_range=settings.clip_range,
        loss_scale=loss_scale,
        growth_interval=settings.scale_growth_interval,
        on_policy=on_policy,
    )


def _microbatches(
    batch: GroupBatch,
    index: int,
    policy: Policy,
    sampler: Sampler,
    objective: GroupObjective,
    reference: Reference | None,
    settings: GroupUpdateSettings,
    sequence: SequenceRatios | None,
) -> Iterator[GroupMicrobatch]:
    """Cut one decision into microbatches, of which each is one network call."""
    first, ones = 0, (1,) * len(batch.objects)
    weights = batch.condition_weight or ones
    for decision in batch.decisions[index].split(settings.nodes_per_call):
        members = slice(first, first + decision.action.shape[1])
        yield GroupMicrobatch(
            policy=policy,
            sampler=sampler,
            decision=decision,
            conditioning=batch.conditioning,
            advantage=batch.advantage[index][:, members].transpose(0, 1),
            weight=tuple(batch.step_weight[index] * share for share in weights),
            repeats=batch.repeats or ones,
            share=batch.shares,
            members=members,
            first=index == 0 and members.start == 0,
            sequence=sequence,
            objects=batch.objects,
            objective=objective,
            reference=reference,
            settings=settings,
        )
        first = members.stop
