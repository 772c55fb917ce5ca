"""Update from pairs: both arms replayed, one graph after the other or in one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.policy import Policy
from mvczigal_ref.records import Trajectory
from mvczigal_ref.update.loop import GradientStats, dealt, update_parameters
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.pair_batch import PairBatch
from mvczigal_ref.update.parameters import Parameters
from mvczigal_ref.update.replay import StepLogProb, UpdateSettings, replay_log_prob

__all__ = [
    "PairGradients",
    "PairMicrobatch",
    "PairObjective",
    "accumulate_pairs",
    "replay",
    "update_policy",
]


@runtime_checkable
class PairGradients(Protocol):
    """A pair objective's loss and its derivatives by both arms' log-probabilities."""

    @property
    def loss(self) -> Tensor:
        """Mean of the loss over the elements [1]."""
        ...

    @property
    def zigzag(self) -> Tensor:
        """Derivative of the loss by the first arm's log-probabilities."""
        ...

    @property
    def standard(self) -> Tensor:
        """Derivative of the loss by the second arm's log-probabilities."""
        ...


PairObjective = Callable[[Tensor, Tensor, Tensor], PairGradients]
"""From both log-ratios and the advantage gap, values alone, to loss and derivatives."""


def accumulate_pairs(
    policy: Policy,
    sampler: Sampler,
    batch: PairBatch,
    steps: Sequence[int],
    objective: PairObjective,
    *,
    weight: float,
    on_policy: bool,
    settings: UpdateSettings,
) -> GradientStats:
    r"""Add one microbatch's share of the loss gradient to the parameters.

    .. math::
        \nabla L = \sum_i \frac{\partial L}{\partial \ell^z_i} \nabla \log p_\theta(z_i)
        + \frac{\partial L}{\partial \ell^s_i} \nabla \log p_\theta(s_i)

    Source:
        The chain rule on the pair loss of arXiv:2505.20107; the released trainer holds both
        graphs, this does where both arms have one call.

    Args:
        policy: The network; its gradients grow.
        sampler: The kernel that sampled the pairs.
        batch: Some pairs.
        steps: Steps replayed together, in one network call per arm.
        objective: Gives the loss and both derivatives from numbers alone.
        weight: This microbatch's share of the whole loss, times the loss scale [1].
        on_policy: Whether the parameters are those that sampled. Then the
            second arm's stored log-density stands for its value; otherwise it is
            replayed once more, without gradient.
        settings: Guidance, reduction and clip range; and the step from which both arms have one
            call and one graph, where there is one.

    Returns:
        Sums for the metrics.

    Raises:
        NonFiniteError: If a log-density or the loss is non-finite; names object, view and step.
    """
    if settings.joint_from is not None and min(steps) >= settings.joint_from:
        return _accumulate_joint(policy, sampler, batch, steps, objective, weight, settings)
    index = list(steps)
    old_zigzag = batch.rollout.zigzag.log_prob[index]
    old_standard = batch.rollout.standard.log_prob[index]
    standard_value = old_standard
    if not on_policy:
        with torch.no_grad():
            standard_value = replay(policy, sampler, batch, batch.rollout.standard, steps, settings)
    zigzag = replay(policy, sampler, batch, batch.rollout.zigzag, steps, settings)
    zigzag_ratio, standard_ratio = zigzag.detach() - old_zigzag, standard_value - old_standard
    gradients = _gradients(objective, batch, steps, zigzag_ratio, standard_ratio)
    zigzag.backward(weight * gradients.zigzag)
    del zigzag
    standard = replay(policy, sampler, batch, batch.rollout.standard, steps, settings)
    standard_ratio = standard.detach() - old_standard
    _check_finite(gradients.loss, batch, steps, log_ratio_standard=standard_ratio)
    standard.backward(weight * gradients.standard)
    return _stats(gradients, zigzag_ratio, standard_ratio, settings)


def _accumulate_joint(
    policy: Policy,
    sampler: Sampler,
    batch: PairBatch,
    steps: Sequence[int],
    objective: PairObjective,
    weight: float,
    settings: UpdateSettings,
) -> GradientStats:
    """Replay both arms in one network call, side by side as the rollout sampled them."""
    trajectory = batch.rollout.both()
    pair = replace(batch, conditioning=batch.conditioning.repeat(2))
    both = replay(policy, sampler, pair, trajectory, steps, settings)
    zigzag_ratio, standard_ratio = (
        (both.detach() - trajectory.log_prob[list(steps)]).chunk(2, dim=1)
    )  # fmt: skip
    gradients = _gradients(objective, batch, steps, zigzag_ratio, standard_ratio)
    both.backward(weight * torch.cat([gradients.zigzag, gradients.standard], dim=1))
    return _stats(gradients, zigzag_ratio, standard_ratio, settings)


def _gradients(
    objective: PairObjective,
    batch: PairBatch,
    steps: Sequence[int],
    zigzag_ratio: StepLogProb,
    standard_ratio: StepLogProb,
) -> PairGradients:
    """Differentiate the objective by both log-densities, and name the first non-finite number."""
    gap = batch.advantage_gap.to(zigzag_ratio.dtype).expand_as(zigzag_ratio)
    if batch.reference is not None:  # ratios over another policy than the one that sampled
        index, rollout = list(steps), batch.rollout
        zigzag_ratio = zigzag_ratio + (rollout.zigzag.log_prob - batch.reference.zigzag)[index]
        standard_ratio = (
            standard_ratio + (rollout.standard.log_prob - batch.reference.standard)[index]
        )
    gradients = objective(zigzag_ratio, standard_ratio, gap)
    _check_finite(
        gradients.loss,
        batch,
        steps,
        log_ratio_zigzag=zigzag_ratio,
        log_ratio_standard=standard_ratio,
        advantage_gap=gap,
    )
    return gradients


def _stats(
    gradients: PairGradients, zigzag: StepLogProb, standard: StepLogProb, settings: UpdateSettings
) -> GradientStats:
    """Sum up one microbatch from both arms' log-ratios."""
    both = torch.stack([zigzag, standard])
    read = both.sum(-1, keepdim=True).expand_as(both) if settings.joint_density else both
    return GradientStats(
        loss=gradients.loss * zigzag.numel(),
        log_ratio_square=read.square().sum(),
        clipped=(read.abs() > settings.clip_range).sum().to(both.dtype),
        deviation=both.abs().max(),
        asks=gradients.zigzag.any() | gradients.standard.any(),
        count=zigzag.numel(),
        num_log_ratios=both.numel(),
    )


def replay(
    policy: Policy,
    sampler: Sampler,
    batch: PairBatch,
    trajectory: Trajectory,
    steps: Sequence[int],
    settings: UpdateSettings,
) -> StepLogProb:
    """Score one arm of a batch as its settings say; see :func:`replay_log_prob`.

    Args:
        policy: The network.
        sampler: The kernel that sampled the pairs.
        batch: Some pairs.
        trajectory: One arm of them.
        steps: Steps to score.
        settings: Guidance and reduction.

    Returns:
        Log-densities [nats or nats/element]. Gradient flows to the policy.
    """
    return replay_log_prob(
        policy,
        sampler,
        trajectory,
        steps,
        batch.conditioning,
        guidance_scale=settings.guidance_scale,
        camera_scale=settings.camera_scale,
        reduction=settings.reduction,
    )


def _check_finite(
    loss: Tensor, batch: PairBatch, steps: Sequence[int], **tables: StepLogProb
) -> None:
    """Name the first non-finite entry of the first table, or the entry that made the loss so."""
    finite = torch.stack([table.isfinite().all() for table in tables.values()])
    if bool(finite.all() & loss.isfinite()):
        return
    for name, table in tables.items():
        bad = (~table.isfinite()).nonzero().tolist()
        if bad:
            step, item, view = bad[0]
            raise NonFiniteError(
                name,
                object=batch.first_object + item,
                view=view,
                step=steps[step],
                value=float(table[step, item, view]),
            )
    # All entries are finite, and the square of the largest is not.
    table = torch.stack([table.abs() for table in tables.values()]).amax(0)
    step, item, view = (table == table.max()).nonzero().tolist()[0]
    raise NonFiniteError(
        "loss", object=batch.first_object + item, view=view, step=steps[step], value=float(loss)
    )


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
    """Steps replayed together, in one network call per arm."""

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
        """Slice that this is, for messages."""
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


def update_policy(
    policy: Policy,
    sampler: Sampler,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[PairBatch],
    objective: PairObjective,
    *,
    parameters: Parameters,
    world: World,
    settings: UpdateSettings,
    loss_scale: LossScale | None = None,
    on_policy: bool = True,
) -> tuple[dict[str, float], LossScale | None]:
    """Go over one iteration's pairs and change the parameters.

    The gradient of an optimiser step is that of the mean over its steps, objects and
    views, however they are cut into microbatches and shared among processes.

    Args:
        policy: The network.
        sampler: The kernel that sampled the pairs.
        optimizer: Optimiser over ``parameters``.
        batches: This process's pairs, one rollout slice each, optimiser step by
            optimiser step.
        objective: Gives a loss and both derivatives from numbers alone.
        parameters: Trainable parameters; by name, so that an error can name one.
        world: This process among all; gradients are averaged over it.
        settings: Cuts, guidance and reduction of the replay.
        loss_scale: Factor on the loss in the backward pass; None where gradients do not need it.
        on_policy: Whether the parameters are those that sampled.

    Returns:
        Means over the update, see :func:`update_parameters`, and the loss scale of the next.

    Raises:
        ValueError: If the batches cannot be dealt out to the optimiser steps equally.
        NonFiniteError: If a number is non-finite; names object, view and step, or the parameter
            whose gradient it is.
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
        on_policy=on_policy,
    )  # fmt: skip


def _pieces(batch: PairBatch, size: int | None) -> list[PairBatch]:
    """Cut a slice into pieces, of which each is one network call; one that fits stays whole."""
    objects = batch.advantage_gap.shape[0]
    if size is None or size >= objects:
        return [batch]
    return [batch.objects(slice(i, i + size)) for i in range(0, objects, size)]


def _runs(settings: UpdateSettings) -> list[Sequence[int]]:
    """Cut the steps into runs, of which each is one network call."""
    length, joint = settings.steps_per_microbatch, settings.joint_from
    first = max(settings.steps) + 1 if joint is None else joint
    apart = [step for step in settings.steps if step < first]
    together = [step for step in settings.steps if step >= first]
    return [
        steps[i : i + length] for steps in (apart, together) for i in range(0, len(steps), length)
    ]
