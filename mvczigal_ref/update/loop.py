"""One iteration's update: microbatches, optimiser steps and epochs."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ReplayMismatchError
from mvczigal_ref.policy import Policy
from mvczigal_ref.records import Trajectory
from mvczigal_ref.update.accumulate import GradientStats, accumulate_pairs, replay
from mvczigal_ref.update.batch import PairBatch, PairObjective, StepLogProb, UpdateSettings
from mvczigal_ref.update.step import locate_non_finite_gradient, optimizer_step

__all__ = ["check_on_policy", "update_policy"]


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
) -> dict[str, float]:
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

    Returns:
        Means over the update: loss, approx_kl (half the mean squared log-ratio),
        clip_fraction, grad_norm (before clipping) and replay_deviation (the largest
        log-ratio on the sampling parameters, as a share of the clip range; 0 on equal slices).

    Raises:
        ValueError: If the batches cannot be dealt out to the optimiser steps equally.
        NonFiniteError: If a number is not finite; names object, view and step.
        ReplayMismatchError: If the first ratio is not exactly 1 on equal slices.
    """
    per_step, left = divmod(len(batches), settings.optimizer_steps)
    if left or not batches:
        msg = (
            f"`batches` must be a positive multiple of the {settings.optimizer_steps} optimiser "
            f"steps of a pass; got {len(batches)} slices."
        )
        raise ValueError(msg)
    optimizer.zero_grad()  # what an update that was stopped half-way may have left
    totals: list[GradientStats] = []
    norms: list[float] = []
    deviations: list[Tensor] = []
    for optimizer_index in range(settings.epochs * settings.optimizer_steps):
        first = optimizer_index % settings.optimizer_steps * per_step
        work = _microbatches(batches[first : first + per_step], settings)
        on_policy = optimizer_index == 0
        count = sum(len(steps) * batch.advantage_gap.numel() for batch, steps in work)
        for batch, steps in work:
            stats = accumulate_pairs(
                policy,
                sampler,
                batch,
                steps,
                objective,
                weight=len(steps) * batch.advantage_gap.numel() / count,
                on_policy=on_policy,
                settings=settings,
            )
            totals.append(stats)
            if on_policy:
                equal_slices = len(steps) == 1 and any(batch is whole for whole in batches)
                check_on_policy(stats, batch, exact=equal_slices)
                deviations.append(stats.deviation)
        world.mean_gradients(parameters)
        norms.append(
            optimizer_step(
                optimizer,
                parameters,
                max_grad_norm=settings.max_grad_norm,
                locate=partial(
                    locate_non_finite_gradient,
                    work,
                    parameters,
                    partial(_replay_arm, policy, sampler, settings),
                ),
            )
        )
    return _metrics(totals, norms, torch.stack(deviations).max(), world, settings)


def check_on_policy(stats: GradientStats, batch: PairBatch, *, exact: bool) -> None:
    """Refuse a first replay that does not reproduce the sampled log-densities.

    Args:
        stats: Of a microbatch, on the sampling parameters.
        batch: What was replayed.
        exact: Whether slices are equal, so that the ratio must be exactly 1. If not, its
            deviation is only reported.

    Raises:
        ReplayMismatchError: If ``exact`` and a log-ratio is not 0; says what may differ.
    """
    if not exact:
        return
    deviation = float(stats.deviation)
    if deviation != 0.0:
        rollout = batch.rollout.zigzag
        msg = (
            f"the first ratio must be exactly 1 on equal slices; its logarithm deviates by "
            f"{deviation:.3g} in the slice that starts at object {batch.first_object} "
            f"(storage {rollout.state.dtype}, {rollout.state.shape[1]} objects of "
            f"{rollout.state.shape[2]} views). Something differs between sampling and replay: "
            "dropout or training mode, guidance or camera scale, reduction, a changed parameter, "
            "another slice size, autocast, or a non-deterministic kernel."
        )
        raise ReplayMismatchError(msg)


def _replay_arm(
    policy: Policy,
    sampler: Sampler,
    settings: UpdateSettings,
    batch: PairBatch,
    trajectory: Trajectory,
    steps: Sequence[int],
) -> StepLogProb:
    return replay(policy, sampler, batch, trajectory, steps, settings)


def _microbatches(
    batches: Sequence[PairBatch], settings: UpdateSettings
) -> list[tuple[PairBatch, Sequence[int]]]:
    """Cut slices into what one network call replays; a slice that is not cut is handed on whole."""
    size, length = settings.objects_per_microbatch, settings.steps_per_microbatch
    runs = [settings.steps[i : i + length] for i in range(0, len(settings.steps), length)]
    work: list[tuple[PairBatch, Sequence[int]]] = []
    for batch in batches:
        objects = batch.advantage_gap.shape[0]
        if size is None or size >= objects:
            pieces = [batch]
        else:
            pieces = [batch.objects(slice(i, i + size)) for i in range(0, objects, size)]
        work.extend((piece, run) for piece in pieces for run in runs)
    return work


def _metrics(
    totals: Sequence[GradientStats],
    norms: Sequence[float],
    deviation: Tensor,
    world: World,
    settings: UpdateSettings,
) -> dict[str, float]:
    """Average over microbatches and processes."""
    sums = torch.stack(
        [torch.stack([s.loss, s.log_ratio_square, s.clipped]).double() for s in totals]
    ).sum(0)
    loss, log_ratio_square, clipped = world.gather_objects(sums[None]).sum(0).tolist()
    count = sum(s.count for s in totals) * world.size
    worst = world.gather_objects(deviation[None]).max()
    return {
        "loss": loss / count,
        # Both arms count, and half the mean square is wanted.
        "approx_kl": log_ratio_square / (4 * count),
        "clip_fraction": clipped / (2 * count),
        "grad_norm": sum(norms) / len(norms),
        "replay_deviation": float(worst) / settings.clip_range,
    }
