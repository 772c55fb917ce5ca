"""One iteration, from rollout to update: the whole algorithm on one screen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.advantage.pair import PairAdvantages, advantage_gap, joint_share, pair_advantages
from mvczigal_ref.advantage.standardise import check_rewards, standardise
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import ConstraintState, constraint_step
from mvczigal_ref.distributed import World
from mvczigal_ref.method.sample import draw_pair
from mvczigal_ref.method.slices import Share
from mvczigal_ref.objective.preference import preference_gradients
from mvczigal_ref.objective.reward_difference import reward_difference_gradients
from mvczigal_ref.records import PairedRollout
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.table import RewardTable, ScorerRewards
from mvczigal_ref.rollout.noise import SeededNoise, derived_generator
from mvczigal_ref.system import System
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.pairs import PairBatch, PairObjective, update_policy
from mvczigal_ref.update.replay import UpdateSettings

__all__ = ["IterationResult", "run_iteration", "update_settings"]

_ARMS = ("zigzag", "standard")


@dataclass(frozen=True, slots=True)
class IterationResult:
    """What an iteration hands to the next, and what it measured."""

    constraint: ConstraintState
    """Multiplier and threshold."""

    metrics: dict[str, float]
    """Numbers of the metrics file."""

    told: dict[str, Any] | None = None
    """Captions of the iteration, what was made of them, and how they move densities; none
    where samples are judged under their prompts alone."""

    old: dict[str, Tensor] | None = None
    """Trained parameters of the policy that samples next, where it is not the one that learns."""

    loss_scale: LossScale | None = None
    """Factor on the loss in the next backward pass; None where gradients do not need it."""


def run_iteration(
    system: System,
    optimizer: torch.optim.Optimizer,
    constraint: ConstraintState,
    prompts: Sequence[str],
    *,
    iteration: int,
    config: TrainConfig,
    world: World,
    timer: StageTimer,
    loss_scale: LossScale | None = None,
) -> IterationResult:
    """Roll out, reward, constrain, compare, update.

    Source:
        arXiv:2505.20107, MVC-ZigAL. As in the released trainer the constraint steps right
        after the rewards, and this iteration's gap uses its new multiplier; ``order`` of the
        constraint says which of its two numbers moves first.

    Args:
        system: What acts; its trained parameters change.
        optimizer: Over the system's trained parameters.
        constraint: From the last iteration.
        prompts: This iteration's, one an object, over all processes.
        iteration: Its index; names its noise.
        config: Settings, handed on as plain numbers.
        world: This process among all.
        timer: Measures the stages.
        loss_scale: From the last iteration; None where gradients do not need it.

    Returns:
        The new constraint state and loss scale, and the metrics, the same in every process.

    Raises:
        ValueError: If there is not one prompt an object.
        ConfigError: If the objects cannot be shared out equally.
        NonFiniteError: If a reward, log-density, loss or gradient is not finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If replay does not reproduce the rollout on equal slices.
    """
    share = Share.of(config, world)
    share.require(prompts)
    with timer("rollout"):
        pairs = [_rollout(system, prompts, part, iteration, config) for part in share.objects]
    with timer("reward"):
        own = [
            _reward(system, [prompts[i] for i in part], pair)
            for part, pair in zip(share.objects, pairs, strict=True)
        ]
        rewards = share.gather_rewards(own, world)
    with timer("advantage"):
        advantages = _advantages(rewards, system, config)  # names a reward that is not finite
        constraint = constraint_step(
            constraint,
            _joint_mean(rewards),
            step_size_violated=config.constraint.step_size_violated,
            step_size_satisfied=config.constraint.step_size_satisfied,
            multiplier_max=config.constraint.multiplier_max or math.inf,
            threshold_decay=config.constraint.threshold_decay,
            order=config.constraint.order,
        )
        gap = _gap(advantages, constraint, iteration, config).to(system.device)
    with timer("update"):
        batches = [
            PairBatch(
                rollout=pair,
                conditioning=system.conditioning([prompts[i] for i in part]),
                advantage_gap=gap[part.start : part.stop],
                first_object=part.start,
            )
            for part, pair in zip(share.objects, pairs, strict=True)
        ]
        learned, loss_scale = update_policy(
            system.policy,
            system.sampler,
            optimizer,
            batches,
            _objective(config),
            parameters=list(system.trained().values()),
            world=world,
            settings=update_settings(system, config),
            loss_scale=loss_scale,
        )
    metrics = {**_reward_metrics(rewards, constraint), **learned}
    return IterationResult(constraint, metrics, loss_scale=loss_scale)


def _rollout(
    system: System, prompts: Sequence[str], part: range, iteration: int, config: TrainConfig
) -> PairedRollout:
    noise = SeededNoise(
        seed=config.run.seed,
        iteration=iteration,
        objects=part,
        shape=system.latent_shape,
        device=system.device,
    )
    return draw_pair(system, system.conditioning([prompts[i] for i in part]), noise, config=config)


def _mixtures(system: System) -> dict[str, Mixture]:
    found = {"per_view": Mixture.of(system.per_view, "per_view")}
    if system.joint is not None:
        found["joint_view"] = Mixture.of(system.joint, "joint_view")
    return found


def _reward(system: System, prompts: Sequence[str], pair: PairedRollout) -> RewardTable:
    images = {
        "zigzag": system.images(pair.zigzag.denoised),
        "standard": system.images(pair.standard.denoised),
    }
    totals: dict[str, Tensor] = {}
    parts: dict[str, dict[str, ScorerRewards]] = {"joint_view": {}}
    for kind, scorer in _mixtures(system).items():
        raw = {arm: scorer.tables(views, prompts) for arm, views in images.items()}
        totals |= {f"{kind}_{arm}": scorer.total(tables) for arm, tables in raw.items()}
        parts[kind] = {
            name: ScorerRewards(zigzag=raw["zigzag"][name], standard=raw["standard"][name])
            for name in scorer.scorers
        }
    if system.joint is None:
        totals |= {f"joint_view_{arm}": totals[f"per_view_{arm}"].mean(-1) for arm in images}
    return RewardTable(
        **totals, per_view_parts=parts["per_view"], joint_view_parts=parts["joint_view"]
    )


def _advantages(rewards: RewardTable, system: System, config: TrainConfig) -> PairAdvantages:
    """Standardise the sum of the rewards, or each reward alone and add the results."""
    kinds = {"per_view": rewards.per_view_parts, "joint_view": rewards.joint_view_parts}
    for parts in kinds.values():
        if len(parts) > 1:  # the sum would not say whose it was
            check_rewards(**{f"reward/{name}/zigzag": p.zigzag for name, p in parts.items()})
            check_rewards(**{f"reward/{name}/standard": p.standard for name, p in parts.items()})
    combined = pair_advantages(
        per_view_zigzag=rewards.per_view_zigzag,
        per_view_standard=rewards.per_view_standard,
        joint_view_zigzag=rewards.joint_view_zigzag,
        joint_view_standard=rewards.joint_view_standard,
    )
    if config.reward.combine == "rewards":
        return combined
    told = {f"joint_view_{arm}": getattr(combined, f"joint_view_{arm}") for arm in _ARMS}
    for kind, scorer in _mixtures(system).items():
        both = scorer.total(
            {
                name: standardise(torch.stack([p.zigzag, p.standard]))
                for name, p in kinds[kind].items()
            }
        )
        told |= {f"{kind}_zigzag": both[0], f"{kind}_standard": both[1]}
    return PairAdvantages(**told)


def _joint_mean(rewards: RewardTable) -> float:
    """Average over both arms and all objects."""
    return float(torch.cat([rewards.joint_view_zigzag, rewards.joint_view_standard]).mean())


def _gap(
    advantages: PairAdvantages, constraint: ConstraintState, iteration: int, config: TrainConfig
) -> Tensor:
    weight = joint_share(
        config.advantage.mode,
        multiplier=constraint.multiplier,
        joint_weight=config.advantage.joint_weight,
    )
    gap = advantage_gap(advantages, share=weight)
    if config.advantage.shuffle:
        generator = derived_generator(config.run.seed, iteration, "shuffle")
        gap = gap[torch.randperm(len(gap), generator=generator)]
    return gap


def _objective(config: TrainConfig) -> PairObjective:
    objective = config.objective
    if objective.kind == "preference":
        return partial(
            preference_gradients,
            scale=objective.preference_scale,
            clip_range=objective.clip_range,
        )
    return partial(
        reward_difference_gradients,
        clip_range=objective.clip_range if objective.clip else float("inf"),
        temperature=objective.temperature,
    )


def update_settings(system: System, config: TrainConfig) -> UpdateSettings:
    """Choose how stored pairs are cut up and replayed, as a configuration says.

    Args:
        system: Its sampler says whether the image depends on the last action.
        config: The sections ``optim``, ``run``, ``objective`` and ``sampler`` are read.

    Returns:
        The settings of the update.
    """
    steps = list(range(system.sampler.num_steps))
    if system.sampler.last_action_is_image_independent and not config.objective.train_last_action:
        steps.pop()
    return UpdateSettings(
        steps=steps,
        steps_per_microbatch=config.optim.steps_per_microbatch,
        objects_per_microbatch=config.run.replay_objects_per_slice,
        epochs=config.optim.epochs_per_iteration,
        optimizer_steps=config.optim.optimizer_steps_per_epoch,
        max_grad_norm=config.optim.max_grad_norm,
        scale_growth_interval=config.optim.loss_scale_growth_interval,
        clip_range=config.objective.clip_range,
        guidance_scale=config.sampler.guidance_scale,
        camera_scale=config.sampler.camera_scale,
        reduction=config.objective.reduction,
    )


def _reward_metrics(rewards: RewardTable, constraint: ConstraintState) -> dict[str, float]:
    metrics: dict[str, Tensor | float] = {
        "per_view_reward/zigzag": rewards.per_view_zigzag.mean(),
        "per_view_reward/standard": rewards.per_view_standard.mean(),
        "per_view_reward/gap": (rewards.per_view_zigzag - rewards.per_view_standard).mean(),
        "joint_view_reward/zigzag": rewards.joint_view_zigzag.mean(),
        "joint_view_reward/standard": rewards.joint_view_standard.mean(),
        "joint_view_reward/gap": (rewards.joint_view_zigzag - rewards.joint_view_standard).mean(),
        "multiplier": constraint.multiplier,
        "threshold": constraint.threshold,
        "slack": constraint.slack(_joint_mean(rewards)),
    }
    for name, part in (*rewards.per_view_parts.items(), *rewards.joint_view_parts.items()):
        metrics[f"reward/{name}/zigzag"] = part.zigzag.mean()
        metrics[f"reward/{name}/standard"] = part.standard.mean()
    return {name: float(value) for name, value in metrics.items()}
