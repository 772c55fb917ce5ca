"""Stage 5: replay stored actions with gradients, and change the parameters.

The two arms of a pair never hold two graphs: the loss needs the other arm's
log-probability as a number alone, so each arm is replayed, multiplied by its
factor and sent backward before the next is built.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion import gaussian
from mvczigal_ref.diffusion.gaussian import Reduction
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError, ReplayMismatchError
from mvczigal_ref.policy import Policy, network_output, step_transition
from mvczigal_ref.records import Conditioning, PairedRollout, Trajectory
from mvczigal_ref.shapes import PerViewReward

__all__ = [
    "GradientStats",
    "PairBatch",
    "PairGradients",
    "UpdateSettings",
    "accumulate_pairs",
    "check_on_policy",
    "optimizer_step",
    "replay_log_prob",
    "update_policy",
]

StepLogProb = Float[Tensor, "step object view"]


class PairGradients(Protocol):
    """A pair objective's loss and its derivatives by both arms' log-probabilities."""

    @property
    def loss(self) -> Tensor:
        """Mean over its elements."""
        ...

    @property
    def zigzag(self) -> Tensor:
        """By the first arm's log-probabilities."""
        ...

    @property
    def standard(self) -> Tensor:
        """By the second arm's."""
        ...


PairObjective = Callable[[Tensor, Tensor, Tensor], PairGradients]
"""From both log-ratios and the advantage gap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """Pairs that are replayed together: one slice of objects."""

    rollout: PairedRollout
    """What was sampled."""

    conditioning: Conditioning
    """Of the same objects."""

    advantage_gap: PerViewReward
    """Zigzag minus standard [1]."""

    first_object: int
    """Index of the first object within the iteration, for messages."""

    def objects(self, index: slice) -> "PairBatch":
        """Narrow to some objects."""
        return PairBatch(
            rollout=self.rollout.objects(index),
            conditioning=self.conditioning.objects(index),
            advantage_gap=self.advantage_gap[index],
            first_object=self.first_object + index.start,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateSettings:
    """How stored pairs are cut up and replayed."""

    steps: Sequence[int]
    """Sampling steps whose actions are trained."""

    steps_per_microbatch: int = 1
    """Steps replayed in one network call."""

    objects_per_microbatch: int | None = None
    """Objects replayed in one network call; None is the rollout's slice."""

    epochs: int = 1
    """Passes over the pairs."""

    optimizer_steps: int = 1
    """Parameter changes a pass; divides the slices."""

    max_grad_norm: float = 5.0
    """Largest Euclidean norm of the gradient [gradient units]."""

    clip_range: float = 1e-2
    """Beyond it a log-ratio counts as clipped [nats or nats/element]."""

    guidance_scale: float
    """As in the rollout [1]."""

    camera_scale: float = 1.0
    """As in the rollout [1]."""

    reduction: Reduction = "mean"
    """As in the rollout."""


class GradientStats(NamedTuple):
    """What one accumulation saw, as sums to be divided by ``count``."""

    loss: Tensor
    """Sum of the loss over elements."""

    log_ratio_square: Tensor
    """Sum of squared log-ratios over both arms."""

    clipped: Tensor
    """Log-ratios beyond the clip range, of both arms."""

    deviation: Tensor
    """Largest absolute log-ratio [nats or nats/element]."""

    count: int
    """Elements: steps times objects times views."""


def replay_log_prob(
    policy: Policy,
    sampler: Sampler,
    trajectory: Trajectory,
    steps: Sequence[int],
    conditioning: Conditioning,
    *,
    guidance_scale: float,
    camera_scale: float = 1.0,
    reduction: Reduction = "mean",
) -> StepLogProb:
    """Score stored actions under the present parameters, with gradient.

    The Gaussian is made by the function that sampled the actions.

    Args:
        policy: The network.
        sampler: The kernel that sampled the trajectory.
        trajectory: Of the objects in ``conditioning``.
        steps: Which steps, all in one network call.
        conditioning: Of the objects.
        guidance_scale: As in the rollout [1].
        camera_scale: As in the rollout [1].
        reduction: As in the rollout.

    Returns:
        Log-densities [nats or nats/element]. Gradient flows to the policy.
    """
    index = torch.tensor(list(steps), device=trajectory.state.device)
    chosen = slice(steps[0], steps[-1] + 1) if _is_run(steps) else index
    state, action = trajectory.state[chosen], trajectory.action[chosen]
    output = network_output(
        policy, sampler, state, index, conditioning,
        guidance_scale=guidance_scale, camera_scale=camera_scale,
    )  # fmt: skip
    transition = step_transition(sampler, output, state, index)
    return gaussian.log_prob(
        action.to(transition.mean.dtype),
        mean=transition.mean,
        std=transition.std,
        reduction=reduction,
    )


def _is_run(steps: Sequence[int]) -> bool:
    return list(steps) == list(range(steps[0], steps[0] + len(steps)))


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

    Args:
        policy: The network.
        sampler: The kernel that sampled the pairs.
        batch: Some pairs.
        steps: Steps replayed together, in one network call an arm.
        objective: Gives the loss and both derivatives from numbers alone.
        weight: This microbatch's share of the whole loss [1].
        on_policy: Whether the parameters are those that sampled. Then the
            second arm's stored log-density stands for its value; otherwise it is
            replayed once more, without gradient.
        settings: Guidance, reduction and clip range.

    Returns:
        Sums for the metrics, detached.

    Raises:
        NonFiniteError: If a log-density or the loss is not finite; names object, view and step.
    """

    def replay(trajectory: Trajectory) -> StepLogProb:
        return _replay(policy, sampler, trajectory, steps, batch.conditioning, settings)

    index = list(steps)
    old_zigzag = batch.rollout.zigzag.log_prob[index]
    old_standard = batch.rollout.standard.log_prob[index]
    gap = batch.advantage_gap.to(old_zigzag.dtype).expand_as(old_zigzag)
    if on_policy:
        standard_value = old_standard
    else:
        with torch.no_grad():
            standard_value = replay(batch.rollout.standard)
    zigzag = replay(batch.rollout.zigzag)
    zigzag_ratio = zigzag.detach() - old_zigzag
    gradients = objective(zigzag_ratio, standard_value - old_standard, gap)
    _check_finite(zigzag_ratio, gap, gradients.loss, batch, steps)
    zigzag.backward(weight * gradients.zigzag)
    del zigzag
    standard = replay(batch.rollout.standard)
    standard_ratio = standard.detach() - old_standard
    _check_finite(standard_ratio, gap, gradients.loss, batch, steps)
    standard.backward(weight * gradients.standard)
    both = torch.stack([zigzag_ratio, standard_ratio])
    return GradientStats(
        loss=gradients.loss * gap.numel(),
        log_ratio_square=both.square().sum(),
        clipped=(both.abs() > settings.clip_range).sum().to(both.dtype),
        deviation=both.abs().max(),
        count=gap.numel(),
    )


def _replay(
    policy: Policy,
    sampler: Sampler,
    trajectory: Trajectory,
    steps: Sequence[int],
    conditioning: Conditioning,
    settings: UpdateSettings,
) -> StepLogProb:
    return replay_log_prob(
        policy,
        sampler,
        trajectory,
        steps,
        conditioning,
        guidance_scale=settings.guidance_scale,
        camera_scale=settings.camera_scale,
        reduction=settings.reduction,
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
) -> dict[str, float]:
    """Go over one iteration's pairs and change the parameters.

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
        Mean loss, approx_kl, clip_fraction, grad_norm and replay_deviation (the
        largest log-ratio of the first replay, as a share of the clip range).

    Raises:
        NonFiniteError: If a number is not finite; names object, view and step.
        ReplayMismatchError: If the first ratio is not exactly 1 on equal slices.
    """
    per_group = len(batches) // settings.optimizer_steps
    totals, norms, deviation, on_policy = [], [], None, True
    for _ in range(settings.epochs):
        for first in range(0, len(batches), per_group):
            work = _microbatches(batches[first : first + per_group], settings)
            count = sum(len(steps) * batch.advantage_gap.numel() for batch, steps in work)
            for batch, steps in work:
                share = len(steps) * batch.advantage_gap.numel() / count
                stats = accumulate_pairs(
                    policy, sampler, batch, steps, objective,
                    weight=share, on_policy=on_policy, settings=settings,
                )  # fmt: skip
                totals.append(stats)
                if deviation is None:
                    exact = settings.steps_per_microbatch == 1 and not settings.objects_per_microbatch
                    check_on_policy(stats, batch, exact=exact)
                    deviation = stats.deviation
            world.mean_gradients(parameters)
            locate = partial(
                locate_non_finite_gradient, work, parameters,
                partial(_replay, policy, sampler, settings=settings),
            )  # fmt: skip
            norms.append(
                optimizer_step(
                    optimizer, parameters, max_grad_norm=settings.max_grad_norm, locate=locate
                )
            )
            on_policy = False
    return _metrics(totals, norms, deviation, world, settings)


def _microbatches(
    batches: Sequence[PairBatch], settings: UpdateSettings
) -> list[tuple[PairBatch, Sequence[int]]]:
    """Cut slices into what one network call replays."""
    size, length = settings.objects_per_microbatch, settings.steps_per_microbatch
    runs = [settings.steps[i : i + length] for i in range(0, len(settings.steps), length)]
    work = []
    for batch in batches:
        objects = batch.advantage_gap.shape[0]
        for first in range(0, objects, size or objects):
            part = slice(first, min(first + (size or objects), objects))
            piece = batch if size is None or size >= objects else batch.objects(part)
            work.extend((piece, run) for run in runs)
    return work


def _metrics(
    totals: Sequence[GradientStats],
    norms: Sequence[float],
    deviation: Tensor | None,
    world: World,
    settings: UpdateSettings,
) -> dict[str, float]:
    """Average over microbatches and processes."""
    own = torch.stack(
        [sum(s.loss for s in totals), sum(s.log_ratio_square for s in totals),
         sum(s.clipped for s in totals)]
    ).double()  # fmt: skip
    summed = world.gather_objects(own[None]).sum(0)
    count = sum(s.count for s in totals) * world.size
    worst = world.gather_objects(torch.zeros(1) if deviation is None else deviation[None].cpu())
    return {
        "loss": float(summed[0]) / count,
        "approx_kl": float(summed[1]) / (4 * count),
        "clip_fraction": float(summed[2]) / (2 * count),
        "grad_norm": sum(norms) / len(norms),
        "replay_deviation": float(worst.max()) / settings.clip_range,
    }


def check_on_policy(stats: GradientStats, batch: PairBatch, *, exact: bool) -> None:
    """Refuse a first replay that does not reproduce the sampled log-densities.

    Args:
        stats: Of the first microbatch, on the sampling parameters.
        batch: What was replayed.
        exact: Whether slices are equal, so that the ratio must be exactly 1.

    Raises:
        ReplayMismatchError: If ``exact`` and a log-ratio is not 0; says what may differ.
    """
    deviation = float(stats.deviation)
    if exact and deviation != 0.0:
        rollout = batch.rollout.zigzag
        msg = (
            f"the first ratio must be exactly 1 on equal slices; its logarithm deviates by "
            f"{deviation:.3g} in the slice that starts at object {batch.first_object} "
            f"(storage {rollout.state.dtype}, {rollout.state.shape[1]} objects of "
            f"{rollout.state.shape[2]} views). Something differs between sampling and replay: "
            "dropout or training mode, guidance or camera scale, a changed parameter, another "
            "slice size, autocast, or a non-deterministic kernel."
        )
        raise ReplayMismatchError(msg)


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    *,
    max_grad_norm: float,
    locate: Callable[[], NonFiniteError] | None = None,
) -> float:
    """Clip the gradient's norm, change the parameters, forget the gradient.

    Args:
        optimizer: Holds ``parameters``.
        parameters: Trained parameters.
        max_grad_norm: Largest Euclidean norm [gradient units]; positive.
        locate: Finds out who made a non-finite gradient, called only then.

    Returns:
        Norm before clipping [gradient units].

    Raises:
        NonFiniteError: If the norm is not finite; parameters are unchanged.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not norm < float("inf"):
        optimizer.zero_grad()
        raise locate() if locate else NonFiniteError("gradient_norm", value=norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def locate_non_finite_gradient(
    batches: Iterable[tuple[PairBatch, Sequence[int]]],
    parameters: Sequence[Tensor],
    replay: Callable[[Trajectory, Sequence[int], Conditioning], StepLogProb],
) -> NonFiniteError:
    """Find the first object, view and step whose log-density has a non-finite gradient.

    Args:
        batches: The microbatches of the failed optimiser step.
        parameters: Trained parameters.
        replay: As :func:`replay_log_prob`, its settings bound.

    Returns:
        The error to raise.
    """
    for batch, steps in batches:
        for trajectory in (batch.rollout.zigzag, batch.rollout.standard):
            log_prob = replay(trajectory, steps, batch.conditioning)
            for place in torch.cartesian_prod(*(torch.arange(n) for n in log_prob.shape)).tolist():
                found = torch.autograd.grad(
                    log_prob[tuple(place)], parameters, retain_graph=True, allow_unused=True
                )
                if not all(g is None or bool(torch.isfinite(g).all()) for g in found):
                    step, item, view = place
                    return NonFiniteError(
                        "gradient", object=batch.first_object + item, view=view, step=steps[step]
                    )
    return NonFiniteError("gradient_norm")


def _check_finite(
    log_ratio: StepLogProb,
    gap: StepLogProb,
    loss: Tensor,
    batch: PairBatch,
    steps: Sequence[int],
) -> None:
    if bool(torch.isfinite(loss)) and bool(torch.isfinite(log_ratio).all()):
        return
    for name, table in (("log_ratio", log_ratio), ("advantage_gap", gap)):
        bad = (~torch.isfinite(table)).nonzero()
        if len(bad):
            step, item, view = bad[0].tolist()
            raise NonFiniteError(
                name,
                object=batch.first_object + item,
                view=view,
                step=steps[step],
                value=float(table[step, item, view]),
            )
    raise NonFiniteError("loss", object=batch.first_object, value=float(loss))
