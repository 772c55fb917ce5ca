"""Loop of every update: microbatches, gradient norm, optimiser steps, epochs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mvczigal_ref.diffusion.precision import widest_dtype
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError, ReplayMismatchError, ZeroGradientError
from mvczigal_ref.models.memo import memo_scope
from mvczigal_ref.models.sharding import whole
from mvczigal_ref.shapes import Scalar
from mvczigal_ref.update.loss_scale import LossScale, loss_scale_step
from mvczigal_ref.update.parameters import Parameters, named_parameters

__all__ = [
    "GradientStats",
    "Microbatch",
    "asks_for_change",
    "check_on_policy",
    "dealt",
    "optimizer_step",
    "require_ratio_of_one",
    "update_parameters",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientStats:
    """Sums over the elements or log-ratios of one accumulation, detached."""

    loss: Scalar
    """Sum of the loss over elements [1]."""

    log_ratio_square: Scalar
    """Sum of squared log-ratios [(nats or nats/element)^2]."""

    clipped: Scalar
    """Log-ratios beyond the clip range [log-ratios]."""

    deviation: Scalar
    """Largest absolute log-ratio [nats or nats/element]."""

    asks: Bool[Tensor, ""]
    """Whether the loss asks for a change: not where all advantages are equal, or all clipped."""

    count: int
    """Elements, over which the loss is a mean."""

    num_log_ratios: int
    """Log-ratios: one per element, or one per arm of a pair."""

    extra: Mapping[str, Scalar] = field(default_factory=dict)
    """Further sums over elements, by the name of their metric."""


@runtime_checkable
class Microbatch(Protocol):
    """Some elements whose share of the gradient is computed at once."""

    @property
    def count(self) -> int:
        """Elements, over which the loss is a mean."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the network is called as in the rollout, so that a first ratio must be 1."""
        ...

    @property
    def place(self) -> str:
        """Part of the iteration that this is, for messages."""
        ...

    def accumulate(self, *, weight: float, on_policy: bool) -> GradientStats:
        """Add this microbatch's share of the loss gradient to the parameters.

        Args:
            weight: The share, times the loss scale [1].
            on_policy: Whether the parameters are those that sampled.

        Returns:
            Sums for the metrics.

        Raises:
            NonFiniteError: If a number is non-finite; names object, view and step.
        """
        ...


def asks_for_change(output: Tensor) -> Bool[Tensor, ""]:
    """Find out whether a loss asks for a change of a network's output, after its backward pass.

    Args:
        output: Output in the dtype of the loss, so that nothing has rounded away; it retains its
            gradient.

    Returns:
        Whether any derivative by it is not 0.
    """
    gradient = output.grad
    if gradient is None:
        return torch.zeros((), dtype=torch.bool, device=output.device)
    return gradient.any()


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    parameters: Parameters,
    *,
    max_grad_norm: float,
    loss_scale: float = 1.0,
    on_zero: Callable[[], None] | None = None,
) -> float:
    r"""Take the loss scale out, clip the gradient's norm, change the parameters.

    .. math:: g \leftarrow \frac{g}{s} \min\Big(1, \frac{c}{\lVert g / s \rVert_2}\Big)

    The gradient is forgotten.

    Source:
        Pascanu et al., arXiv:1211.5063; the scale is that of Micikevicius et al.,
        arXiv:1710.03740. No deviation.

    Args:
        optimizer: Holds ``parameters``.
        parameters: Trainable parameters, with their gradients; by name, so that an error can name
            one.
        max_grad_norm: :math:`c`, the largest Euclidean norm [gradient units]; positive.
        loss_scale: :math:`s`, a power of two that the gradient holds as a factor [1].
        on_zero: Called if every number of the gradient is exactly zero; raises if it should not be.

    Returns:
        Norm before clipping, without the scale [gradient units]; non-finite if a gradient that
        was scaled overflowed, and then parameters are unchanged.

    Raises:
        NonFiniteError: If a gradient is non-finite at a scale of 1; names its parameter.
            Parameters are unchanged.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer_step(torch.optim.SGD([weight], lr=1.0), [weight], max_grad_norm=1.0)
        5.0
        >>> weight.data
        tensor([-0.6000, -0.8000])
    """
    named = named_parameters(parameters)
    gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
    if loss_scale != 1.0:
        for gradient in gradients.values():
            gradient /= loss_scale
    norm = whole(get_total_norm(gradients.values()))
    if not math.isfinite(norm):
        optimizer.zero_grad()
        if loss_scale > 1.0:
            return float(norm)
        raise _non_finite(gradients, float(norm))
    clip_grads_with_norm_(named.values(), max_grad_norm, norm)
    # The norm of the smallest numbers rounds to 0.
    if norm == 0.0 and on_zero and not any(bool(whole(g).any()) for g in gradients.values()):
        on_zero()
    optimizer.step()
    # torch's fused optimisers do not say that they have changed a parameter.
    torch.autograd.graph.increment_version(named.values())
    optimizer.zero_grad()
    return float(norm)


def _non_finite(gradients: Mapping[str, Tensor], norm: float) -> NonFiniteError:
    """Name the first parameter whose gradient is non-finite, or the norm of finite ones."""
    for name, gradient in gradients.items():
        if not bool(whole(gradient).isfinite().all()):
            return NonFiniteError(f"gradient_norm of {name}", value=norm)
    return NonFiniteError("gradient_norm", value=norm)


Slice = TypeVar("Slice")


@memo_scope()
def update_parameters(
    optimizer: torch.optim.Optimizer,
    work: Sequence[Sequence[Microbatch]],
    *,
    parameters: Parameters,
    world: World,
    epochs: int,
    max_grad_norm: float,
    clip_range: float,
    loss_scale: LossScale | None = None,
    growth_interval: int = 2000,
    on_policy: bool = True,
) -> tuple[dict[str, float], LossScale | None]:
    """Go over one iteration's samples and change the parameters.

    The gradient of an optimiser step is that of the mean over its elements, however they are
    cut into microbatches and shared among processes.

    Args:
        optimizer: Optimiser over ``parameters``.
        work: This process's microbatches, optimiser step by optimiser step.
        parameters: Trainable parameters; by name, so that an error can name one.
        world: This process among all; gradients are averaged over it.
        epochs: Passes over ``work`` [1].
        max_grad_norm: Largest Euclidean norm of the gradient [gradient units].
        clip_range: Unit of the replay's deviation [nats or nats/element].
        loss_scale: Factor on the loss in the backward pass; None where gradients do not need it.
            An optimiser step whose scaled gradient is non-finite is left out.
        growth_interval: Finite optimiser steps after which it doubles [optimiser steps].
        on_policy: Whether the parameters are those that sampled: then the first ratio is checked.

    Returns:
        Metrics, and the loss scale of the next update. Metrics are means over this one: loss,
        grad_norm (before clipping), what the microbatches add, and where there are log-ratios
        approx_kl (half their mean square), clip_fraction and replay_deviation (the largest on the
        sampling parameters, as a share of the clip range; 0 on equal slices, none off policy).
        Beside them stand loss_scale and skipped_steps where there is a loss scale, and idle_steps,
        the optimiser steps in which the loss asked for no change, where there are some.

    Raises:
        NonFiniteError: If a number is non-finite; names object, view and step, or the parameter
            whose gradient it is.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If the first ratio is not exactly 1 on equal slices.
    """
    optimizer.zero_grad()  # what an update that was stopped half-way may have left
    totals: list[GradientStats] = []
    norms: list[float] = []
    deviations: list[Tensor] = []
    idle: list[int] = []
    skipped = 0
    for index, microbatches in enumerate(list(work) * epochs):
        first_step = on_policy and index == 0
        count = sum(microbatch.count for microbatch in microbatches)
        scale, first = 1.0 if loss_scale is None else loss_scale.scale, len(totals)
        for microbatch in microbatches:
            weight = scale * microbatch.count / count
            stats = microbatch.accumulate(weight=weight, on_policy=first_step)
            totals.append(stats)
            if first_step:
                check_on_policy(stats, microbatch)
                deviations.append(stats.deviation)
        world.mean_gradients(named_parameters(parameters).values())
        norm = optimizer_step(
            optimizer,
            parameters,
            max_grad_norm=max_grad_norm,
            loss_scale=scale,
            on_zero=partial(_note_zero, idle, index, totals[first:], world, scale),
        )
        finite = math.isfinite(norm)
        if finite:
            norms.append(norm)
        else:
            skipped += 1
        if loss_scale is not None:
            loss_scale = loss_scale_step(loss_scale, finite=finite, growth_interval=growth_interval)
    mean_norm = sum(norms) / len(norms) if norms else math.nan
    metrics = {**_means(totals, world), "grad_norm": mean_norm}
    if loss_scale is not None:
        metrics |= {"loss_scale": loss_scale.scale, "skipped_steps": float(skipped)}
    if idle:
        metrics["idle_steps"] = float(len(idle))
    if totals[0].num_log_ratios and deviations:
        worst = world.gather_objects(torch.stack(deviations).max()[None]).max()
        metrics["replay_deviation"] = float(worst) / clip_range
    return metrics, loss_scale


def dealt(batches: Sequence[Slice], optimizer_steps: int) -> list[Sequence[Slice]]:
    """Deal slices out to the optimiser steps of a pass, in order.

    Args:
        batches: This process's slices, optimiser step by optimiser step.
        optimizer_steps: Parameter changes per pass.

    Returns:
        One run of slices per optimiser step.

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
        stats: Sums of a microbatch on the sampling parameters.
        microbatch: The microbatch. Where its slices are not those of the rollout, the deviation is
            only reported.

    Raises:
        ReplayMismatchError: If slices are equal and a log-ratio is not 0; says what may differ.
    """
    if microbatch.exact:
        require_ratio_of_one(float(stats.deviation), microbatch.place)


def require_ratio_of_one(deviation: float, place: str) -> None:
    """Refuse a replay by the sampling policy that does not reproduce its log-densities.

    Args:
        deviation: Largest absolute log-ratio on equal slices [nats or nats/element].
        place: Part of the iteration, for the message.

    Raises:
        ReplayMismatchError: If it is not 0; says what may differ.
    """
    if deviation != 0.0:
        msg = (
            f"the first ratio must be exactly 1 on equal slices; its logarithm deviates by "
            f"{deviation:.3g} in {place}. Something differs between sampling and "
            "replay: dropout or training mode, guidance or camera scale, reduction, a changed "
            "parameter, another slice size, autocast, or a non-deterministic kernel."
        )
        raise ReplayMismatchError(msg)


def _note_zero(
    idle: list[int], step: int, totals: Sequence[GradientStats], world: World, scale: float
) -> None:
    """Note an idle step, or stop where a loss asked for a change and no gradient came of it."""
    if not world.anywhere(bool(torch.stack([stats.asks for stats in totals]).any())):
        idle.append(step)
        return
    msg = (
        "the gradient of all trainable parameters is exactly zero over a whole optimiser step, "
        f"though advantages differ: with a loss scale of {scale:g} all of it rounds away in the "
        "network's dtype, or the network's output is detached from the parameters. Set "
        '`optim.loss_scale` higher, or `model.dtype` to "bf16" or "fp32"; `mvczigal check` '
        "measures what survives."
    )
    raise ZeroGradientError(msg)


def _means(totals: Sequence[GradientStats], world: World) -> dict[str, float]:
    """Average over microbatches and processes, which hold as many elements each."""
    names = list(totals[0].extra)
    wide = widest_dtype(totals[0].loss.device)
    sums = torch.stack(
        [
            torch.stack([s.loss, s.log_ratio_square, s.clipped, *s.extra.values()]).to(wide)
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
