"""Microbatches, optimiser steps and epochs: the loop of every update."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ReplayMismatchError, ZeroGradientError
from mvczigal_ref.update.loss_scale import LossScale, loss_scale_step
from mvczigal_ref.update.microbatch import GradientStats, Microbatch
from mvczigal_ref.update.step import locate_non_finite_gradient, optimizer_step

__all__ = ["check_on_policy", "dealt", "update_parameters"]

Slice = TypeVar("Slice")


def update_parameters(
    optimizer: torch.optim.Optimizer,
    work: Sequence[Sequence[Microbatch]],
    *,
    parameters: Sequence[Tensor],
    world: World,
    epochs: int,
    max_grad_norm: float,
    clip_range: float,
    loss_scale: LossScale | None = None,
    growth_interval: int = 2000,
) -> tuple[dict[str, float], LossScale | None]:
    """Go over one iteration's samples and change the parameters.

    The gradient of an optimiser step is that of the mean over its elements, however they are
    cut into microbatches and shared among processes.

    Args:
        optimizer: Over ``parameters``.
        work: This process's microbatches, optimiser step by optimiser step.
        parameters: What trains.
        world: This process among all; gradients are averaged over it.
        epochs: Passes over ``work``.
        max_grad_norm: Largest Euclidean norm of the gradient [gradient units].
        clip_range: Unit of the replay's deviation [nats or nats/element].
        loss_scale: Factor on the loss in the backward pass; None where gradients do not need it.
            An optimiser step whose scaled gradient is not finite is left out.
        growth_interval: Finite optimiser steps after which it doubles [optimiser steps].

    Returns:
        Metrics, and the loss scale of the next update. Metrics are means over this one: loss,
        grad_norm (before clipping), what the microbatches add, and where there are log-ratios
        approx_kl (half their mean square), clip_fraction and replay_deviation (the largest on the
        sampling parameters, as a share of the clip range; 0 on equal slices). Beside them stand
        loss_scale and skipped_steps where there is a loss scale, and idle_steps, the optimiser
        steps in which the loss asked for no change, where there are some.

    Raises:
        NonFiniteError: If a number is not finite; names object, view and step.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If the first ratio is not exactly 1 on equal slices.
    """
    optimizer.zero_grad()  # what an update that was stopped half-way may have left
    totals: list[GradientStats] = []
    norms: list[float] = []
    deviations: list[Tensor] = []
    skipped = idle = 0
    for index, microbatches in enumerate(list(work) * epochs):
        on_policy = index == 0
        count = sum(microbatch.count for microbatch in microbatches)
        scale, first = 1.0 if loss_scale is None else loss_scale.scale, len(totals)
        for microbatch in microbatches:
            weight = scale * microbatch.count / count
            stats = microbatch.accumulate(weight=weight, on_policy=on_policy)
            totals.append(stats)
            if on_policy:
                check_on_policy(stats, microbatch)
                deviations.append(stats.deviation)
        world.mean_gradients(parameters)
        tables = chain.from_iterable(microbatch.scores() for microbatch in microbatches)
        norm = optimizer_step(
            optimizer,
            parameters,
            max_grad_norm=max_grad_norm,
            loss_scale=scale,
            locate=partial(locate_non_finite_gradient, tables, parameters),
            refuse_zero=partial(_refuse_zero, totals[first:], world, scale),
        )
        finite = math.isfinite(norm)
        if finite:
            norms.append(norm)
            idle += norm == 0.0
        else:
            skipped += 1
        if loss_scale is not None:
            loss_scale = loss_scale_step(loss_scale, finite=finite, growth_interval=growth_interval)
    found = {**_means(totals, world), "grad_norm": sum(norms) / len(norms) if norms else math.nan}
    if loss_scale is not None:
        found |= {"loss_scale": loss_scale.scale, "skipped_steps": float(skipped)}
    if idle:
        found["idle_steps"] = float(idle)
    if totals[0].num_log_ratios:
        worst = world.gather_objects(torch.stack(deviations).max()[None]).max()
        found["replay_deviation"] = float(worst) / clip_range
    return found, loss_scale


def dealt(batches: Sequence[Slice], optimizer_steps: int) -> list[Sequence[Slice]]:
    """Deal slices out to the optimiser steps of a pass, in order.

    Args:
        batches: This process's, optimiser step by optimiser step.
        optimizer_steps: Parameter changes a pass.

    Returns:
        One run of slices an optimiser step.

    Raises:
        ValueError: If they cannot be dealt out equally.

    Examples:
        >>> dealt("abcd", 2)
        ['ab', 'cd']
    """
    per_step, left = divmod(len(batches), optimizer_steps)
    if left or not batches:
        msg = (
            f"`batches` must be a positive multiple of the {optimizer_steps} optimiser "
            f"steps of a pass; got {len(batches)} slices."
        )
        raise ValueError(msg)
    return [batches[first : first + per_step] for first in range(0, len(batches), per_step)]


def check_on_policy(stats: GradientStats, microbatch: Microbatch) -> None:
    """Refuse a first replay that does not reproduce the sampled log-densities.

    Args:
        stats: Of a microbatch, on the sampling parameters.
        microbatch: What was replayed. Where its slices are not those of the rollout, the
            deviation is only reported.

    Raises:
        ReplayMismatchError: If slices are equal and a log-ratio is not 0; says what may differ.
    """
    if not microbatch.exact:
        return
    deviation = float(stats.deviation)
    if deviation != 0.0:
        msg = (
            f"the first ratio must be exactly 1 on equal slices; its logarithm deviates by "
            f"{deviation:.3g} in {microbatch.place}. Something differs between sampling and "
            "replay: dropout or training mode, guidance or camera scale, reduction, a changed "
            "parameter, another slice size, autocast, or a non-deterministic kernel."
        )
        raise ReplayMismatchError(msg)


def _refuse_zero(totals: Sequence[GradientStats], world: World, scale: float) -> None:
    """Stop where a loss asked for a change and no gradient came of it."""
    if not world.anywhere(bool(torch.stack([stats.asks for stats in totals]).any())):
        return
    msg = (
        "the gradient of all that trains is exactly zero over a whole optimiser step, though "
        f"advantages differ: with a loss scale of {scale:g} all of it rounds away in the network's "
        "dtype, or the network's output is detached from what trains. Set `optim.loss_scale` "
        'higher, or `model.dtype` to "bf16" or "fp32"; `mvczigal check` measures what survives.'
    )
    raise ZeroGradientError(msg)


def _means(totals: Sequence[GradientStats], world: World) -> dict[str, float]:
    """Average over microbatches and processes, which hold as many elements each."""
    names = list(totals[0].extra)
    sums = torch.stack(
        [
            torch.stack([s.loss, s.log_ratio_square, s.clipped, *s.extra.values()]).double()
            for s in totals
        ]
    ).sum(0)
    loss, log_ratio_square, clipped, *extra = world.gather_objects(sums[None]).sum(0).tolist()
    count = sum(s.count for s in totals) * world.size
    ratios = sum(s.num_log_ratios for s in totals) * world.size
    return {
        "loss": loss / count,
        **(
            {"approx_kl": log_ratio_square / (2 * ratios), "clip_fraction": clipped / ratios}
            if ratios
            else {}
        ),
        **{name: value / count for name, value in zip(names, extra, strict=True)},
    }
