"""The objective of groups as a configuration asks for it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.plugins import load_plugin
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.sampler import Sampler, Transition
from mvczigal_ref.method.plugin_loss import plugin_surrogate_loss
from mvczigal_ref.objective.clipped import (
    SurrogateStats,
    clipped_surrogate_loss,
    reference_kl,
    reference_kl_without_step_length,
    tempflow_step_weights,
)
from mvczigal_ref.objective.divergence import divergence_loss
from mvczigal_ref.objective.grpo_guard import guard_loss, guarded_log_ratio
from mvczigal_ref.objective.rectified import rectified_step_weights
from mvczigal_ref.objective.sequence import through_sequence
from mvczigal_ref.policy import step_transition
from mvczigal_ref.records import GroupDecision
from mvczigal_ref.shapes import Scalar
from mvczigal_ref.update.group_batch import GroupObjective, ReplayedDecision

__all__ = ["group_objective", "step_weights"]


def group_objective(config: TrainConfig, sampler: Sampler) -> GroupObjective:
    """Bind the settings of the loss.

    Args:
        config: The section ``objective`` is read.
        sampler: Knows how long its steps are, where it is a flow's.

    Returns:
        The loss of ``objective.kind``, or a plug-in's, with its divergence from the reference.
    """
    kind = config.objective.kind
    terms = load_plugin("group_objectives", kind) if config.objective.is_plugin else None
    return partial(_loss, config, sampler, terms)


def step_weights(
    config: TrainConfig, sampler: Sampler, decisions: tuple[GroupDecision, ...]
) -> tuple[float, ...]:
    """Weigh the trained steps.

    Args:
        config: ``objective.step_weight`` is read.
        sampler: Knows each step's noise.
        decisions: Decisions that are trained.

    Returns:
        One weight per decision, 1 on average [1].
    """
    if config.objective.step_weight == "equal":
        return (1.0,) * len(decisions)
    if config.objective.step_weight == "rectified":
        rollout, steps = config.rollout, [d.step for d in decisions]
        candidates = steps
        if rollout.window == "random":  # one iteration has one place of the window
            last = rollout.window_last_start + rollout.window_size
            candidates = list(range(rollout.window_start, last))
        gains = [_gains(sampler, chosen) for chosen in (steps, candidates)]
        return tuple(rectified_step_weights(gains[0], mean_over=gains[1]).tolist())
    spreads = [_transition(sampler, d.step, 0.0).std.flatten() for d in decisions]
    return tuple(tempflow_step_weights(torch.cat(spreads)).tolist())


def _transition(sampler: Sampler, step: int, velocity: float) -> Transition:
    """Take a step from a latent of 0; its spread and slope depend on nothing but the step."""
    zero = torch.zeros(1, 1, 1, 1, 1, 1, device=sampler.timesteps.device)
    steps = torch.tensor([step], device=zero.device)
    return step_transition(sampler, zero + velocity, zero, steps)


def _gains(sampler: Sampler, steps: Sequence[int]) -> Tensor:
    """Measure how many of its standard deviations a step's mean moves by a velocity of 1."""
    gains = []
    for step in steps:
        still, moved = (_transition(sampler, step, velocity) for velocity in (0.0, 1.0))
        gains.append((moved.mean - still.mean).abs().flatten() / still.std.flatten())
    return torch.cat(gains)


def _loss(
    config: TrainConfig,
    sampler: Sampler,
    terms: Callable[..., Any] | None,
    decision: ReplayedDecision,
) -> tuple[Scalar, SurrogateStats]:
    objective, length = config.objective, _step_length(sampler, decision)
    kl = None
    if decision.mean_reference is not None:
        settings: dict[str, Any] = {"std": decision.std, "reduction": objective.reduction}
        if objective.kl_form == "divergence" or length is None or not _spread_has_length(sampler):
            kl = reference_kl(decision.mean, decision.mean_reference, **settings)
        else:
            kl = reference_kl_without_step_length(
                decision.mean, decision.mean_reference, step_length=length, **settings
            )
    if kl is not None:
        kl = kl * decision.repeats
    clip_range = objective.clip_range if objective.clip else float("inf")
    penalty: dict[str, Any] = {"kl": kl, "kl_weight": objective.kl_weight}
    weight = decision.weight
    # Only where groups are left out: a product by 1 has another layout in memory, and other bits.
    if decision.share is not None:
        weight = weight * decision.share
        penalty["kl"] = None if kl is None else kl * decision.share
    if objective.kind == "divergence" and decision.mean_old is not None:
        return divergence_loss(
            decision.log_ratio, decision.advantage, mean=decision.mean,
            mean_old=decision.mean_old, std=decision.std, reduction=objective.reduction,
            divergence_range=objective.divergence_range, weight=weight, repeats=decision.repeats,
            **penalty,
        )  # fmt: skip
    shared: dict[str, Any] = {"clip_range": clip_range, **penalty}
    if terms is not None:
        clipped = decision.log_ratio
        loss, stats = plugin_surrogate_loss(
            terms, objective, clipped, decision.advantage, weight=weight, kl=penalty["kl"]
        )
    elif objective.kind == "guard" and length is not None and decision.mean_old is not None:
        loss, stats = guard_loss(
            decision.log_ratio,
            decision.advantage * weight,
            mean=decision.mean,
            mean_old=decision.mean_old,
            std=decision.std,
            step_length=length,
            reduction=objective.reduction,
            **shared,
        )
        clipped = guarded_log_ratio(
            decision.log_ratio, mean=decision.mean, mean_old=decision.mean_old, std=decision.std,
            reduction=objective.reduction,
        )  # fmt: skip
    else:
        clipped = decision.log_ratio
        if decision.sequence is not None:
            clipped = through_sequence(clipped, sequence=decision.sequence)
        loss, stats = clipped_surrogate_loss(clipped, decision.advantage, weight=weight, **shared)
    return loss, replace(stats, clip_fraction=_fraction(decision, clipped, clip_range))


@torch.no_grad()
def _fraction(decision: ReplayedDecision, log_ratio: Tensor, clip_range: float) -> Scalar:
    """Measure which part of the ratios lies beyond the range, each as often as it stands."""
    return ((log_ratio.expm1().abs() > clip_range) * decision.repeats).mean()


def _spread_has_length(sampler: Sampler) -> bool:
    """Check whether a step's spread grows with its length; CPS's is that of its noise level."""
    return isinstance(sampler, FlowSampler) and sampler.kernel != "cps"


def _step_length(sampler: Sampler, decision: ReplayedDecision) -> float | None:
    """Return how far a flow's noise level falls in this step."""
    if not isinstance(sampler, FlowSampler):
        return None
    return float(sampler.sigma_t[decision.step] - sampler.sigma_prev[decision.step])
