"""One iteration, from rollout to update: every algorithm on one screen."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.condition.protocol import ConditionEnhancer
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import ConstraintState, constraint_step
from mvczigal_ref.distributed import World
from mvczigal_ref.method import method_of
from mvczigal_ref.method.ahead import Ahead
from mvczigal_ref.method.caption import caption_log
from mvczigal_ref.method.judged import judged_slices
from mvczigal_ref.method.protocol import Experience, Iteration, Learner
from mvczigal_ref.method.slices import Share
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.system import System
from mvczigal_ref.update.loss_scale import LossScale

__all__ = ["IterationResult", "Listener", "run_iteration"]


class Listener:
    """Hears of what an iteration makes, and changes none of it; this one ignores it."""

    def rollout(self, prompts: Sequence[str], images: Tensor) -> None:
        """Hear that a slice has been sampled and decoded."""

    def rewards(self, rewards: RewardTable) -> None:
        """Hear the rewards of all processes."""


_NOBODY = Listener()


@dataclass(frozen=True, slots=True)
class IterationResult:
    """State that an iteration hands to the next, and its measurements."""

    constraint: ConstraintState
    """Multiplier and threshold."""

    metrics: dict[str, float]
    """Numbers of the metrics file."""

    captions: dict[str, Any] | None = None
    """Captions of the iteration, their rewards, and how they move densities; None where samples
    are judged under their prompts alone."""

    old: dict[str, Tensor] | None = None
    """Trainable parameters of the policy that samples next, where it is not the one that learns."""

    loss_scale: LossScale | None = None
    """Factor on the loss in the next backward pass; None where gradients do not need it."""

    ahead: Ahead | None = None
    """Rollout of the next iteration, by the policy of before this update; None where the next one
    is sampled after it."""


def run_iteration(
    system: System,
    optimizer: torch.optim.Optimizer,
    constraint: ConstraintState,
    prompts: Sequence[str],
    *,
    iteration: int,
    config: TrainConfig,
    world: World,
    timer: Callable[[str], AbstractContextManager[None]],
    enhancer: ConditionEnhancer | None = None,
    old: Mapping[str, Tensor] | None = None,
    loss_scale: LossScale | None = None,
    ahead: Ahead | None = None,
    next_prompts: Sequence[str] = (),
    listener: Listener = _NOBODY,
) -> IterationResult:
    """Roll out, describe, reward, constrain, compare, update.

    Source:
        arXiv:2505.20107 (MVC-ZigAL) over pairs, arXiv:2505.05470 (Flow-GRPO) and its family over
        groups, arXiv:2603.12648 (MV-GRPO) with an enhancer, arXiv:2509.16117 (DiffusionNFT) on
        the forward process. As in the first paper's released trainer the constraint steps right
        after the rewards, and this iteration's advantages use its new multiplier; ``order`` of
        the constraint says which of its two numbers moves first.

    Args:
        system: Networks, sampler and scorers; the trainable parameters change.
        optimizer: Optimiser over the system's trainable parameters.
        constraint: Multiplier and threshold of the last iteration.
        prompts: Prompts of this iteration, one per object, over all processes.
        iteration: Index of the iteration; names its noise.
        config: Settings, handed on as plain numbers.
        world: This process among all.
        timer: Measures the stages.
        enhancer: Makes captions beside the prompts; None is the prompts alone.
        old: Trainable parameters of the policy that samples, where it follows the one that learns
            (DiffusionNFT); None is the policy itself.
        loss_scale: Factor on the loss in the backward pass; None where gradients do not need it.
        ahead: Rollout of this iteration, where it is from before the last update.
        next_prompts: Prompts of the next iteration, which ``rollout.ahead`` samples while this one
            is judged; none of the last.
        listener: Hears of samples and rewards as they are made; the default ignores them.

    Returns:
        The new constraint state and loss scale, the next rollout where it has begun, and the
        metrics, the same in every process.

    Raises:
        ValueError: If there is not one prompt per object, or window, tree and grid do not fit.
        CaptionError: If captions cannot be made.
        ConfigError: If the objects cannot be shared out equally.
        NonFiniteError: If a reward, log-density, loss or gradient is non-finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If replay does not reproduce the rollout on equal slices.
    """
    here = Iteration(config=config, world=world, share=Share.of(config, world), index=iteration)
    method, parts = method_of(config), here.share.parts(prompts)
    judged = judged_slices(
        system, enhancer, parts, here, timer=timer, rollout=listener.rollout, old=old, ahead=ahead,
        later=here.share.parts(next_prompts) if next_prompts else (),
    )  # fmt: skip
    with timer("reward"):
        rewards = here.share.gather_rewards(judged.scores, world)
        listener.rewards(rewards)
        joint_mean = method.joint_mean(rewards)
        constraint = constraint_step(constraint, joint_mean, **_constraint_settings(config))
    with timer("advantage"):
        advantages = method.compare(rewards, judged.samples, here, multiplier=constraint.multiplier)
    with timer("update"):
        learner = Learner(
            system=system, optimizer=optimizer, old=old, loss_scale=loss_scale,
            behaviour=None if ahead is None else ahead.behaviour,
        )  # fmt: skip
        experience = Experience(judged.samples, judged.conditions, advantages)
        learned = method.learn(learner, experience, here)
    return IterationResult(
        metrics=method.reward_metrics(rewards) | _metrics(constraint, joint_mean) | learned.metrics,
        constraint=constraint, old=learned.old, loss_scale=learned.loss_scale, ahead=judged.ahead,
        captions=caption_log(parts, judged.conditions, rewards, learned.drift),
    )  # fmt: skip


def _constraint_settings(config: TrainConfig) -> dict[str, Any]:
    return {
        "step_size_violated": config.constraint.step_size_violated,
        "step_size_satisfied": config.constraint.step_size_satisfied,
        "multiplier_max": config.constraint.multiplier_max or math.inf,
        "threshold_decay": config.constraint.threshold_decay,
        "order": config.constraint.order,
    }


def _metrics(constraint: ConstraintState, joint_mean: float) -> dict[str, float]:
    return {
        "multiplier": constraint.multiplier,
        "threshold": constraint.threshold,
        "slack": constraint.slack(joint_mean),
    }
