"""MVC-ZigAL: pairs of trajectories compared by their advantage gap. RDL and DPO on the same pairs.

A pair is a group of two, sample 0 the zigzag arm and sample 1 the standard one.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mvczigal_ref.advantage.pair import (
    PairAdvantages,
    advantage_gap,
    joint_share,
    pair_advantages,
    standardise_arms,
)
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method import noise_preference
from mvczigal_ref.method.pair_settings import pair_objective, pair_update_settings
from mvczigal_ref.method.protocol import Advantages, Experience, Iteration, Learned, Learner
from mvczigal_ref.records import PairedRollout, Samples
from mvczigal_ref.reward.aggregate import weighted_sum
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.system import System
from mvczigal_ref.update.pair_batch import PairBatch, PairedLogProb
from mvczigal_ref.update.pairs import replay, update_policy
from mvczigal_ref.update.replay import UpdateSettings

__all__ = [
    "compare",
    "joint_mean",
    "learn",
    "over_reference",
    "pair_update_settings",
    "reward_metrics",
]

ARMS = ("zigzag", "standard")
"""Names of a pair's samples, in order."""


def compare(
    rewards: RewardTable,
    samples: Sequence[Samples],
    iteration: Iteration,
    *,
    multiplier: float,
) -> Advantages:
    """Standardise both arms' rewards, and subtract the standard arm's from the zigzag arm's.

    Source:
        arXiv:2505.20107, the advantage of MVC-ZigAL: the multiplier of this iteration's
        constraint mixes the joint reward in.

    Args:
        rewards: Rewards of all pairs.
        samples: Not read.
        iteration: The sections ``reward`` and ``advantage`` are read, and the index by the control
            that shuffles.
        multiplier: Multiplier of the constraint [1].

    Returns:
        The gap of every pair and view [1].

    Raises:
        NonFiniteError: If a reward is non-finite.
    """
    config = iteration.config
    weight = joint_share(
        config.advantage.mode, multiplier=multiplier, joint_weight=config.advantage.joint_weight
    )
    return iteration.controlled([(advantage_gap(_advantages(rewards, config), share=weight),)])


def _advantages(rewards: RewardTable, config: TrainConfig) -> PairAdvantages:
    """Standardise the sum of the rewards, or each reward alone and add the results."""
    per_view, joint = _arms(rewards.per_view_total()), _arms(rewards.joint_total())
    combined = pair_advantages(
        per_view_zigzag=per_view[0],
        per_view_standard=per_view[1],
        joint_view_zigzag=joint[0],
        joint_view_standard=joint[1],
    )
    if config.reward.combine == "rewards":
        return combined
    apart = {f"joint_view_{arm}": getattr(combined, f"joint_view_{arm}") for arm in ARMS}
    for kind, tables in (("per_view", rewards.per_view), ("joint_view", rewards.joint)):
        if tables:
            arms = weighted_sum(
                {
                    name: torch.stack(standardise_arms(*_arms(table)))
                    for name, table in sorted(tables.items())
                },
                weights={name: rewards.weights[name] for name in tables},
            )
            apart |= {f"{kind}_{arm}": arms[place] for place, arm in enumerate(ARMS)}
    return PairAdvantages(**apart)


def learn(learner: Learner, experience: Experience, iteration: Iteration) -> Learned:
    """Replay both arms of every pair, and change the parameters.

    Args:
        learner: System whose trainable parameters change; ``old`` is not read.
        experience: Pairs, the prompts' own conditioning, and the gaps of all pairs.
        iteration: Iteration whose sections ``objective`` and ``optim`` are read.

    Returns:
        Means over the update, and the loss scale of the next.

    Raises:
        NonFiniteError: If a number is non-finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If replay does not reproduce the rollout on equal slices.
    """
    objective = iteration.config.objective
    if objective.kind == "preference" and objective.preference_form == "noise":
        return noise_preference.learn(learner, experience, iteration)
    system = learner.system
    gap = experience.advantages[0][0].to(system.device)
    settings = pair_update_settings(system, iteration.config)
    batches = [
        PairBatch(
            rollout=_pair(part),
            conditioning=condition.conditioning[0],
            advantage_gap=gap[objects.start : objects.stop],
            first_object=objects.start,
        )
        for objects, part, condition in zip(
            iteration.share.objects, experience.samples, experience.conditions, strict=True
        )
    ]
    if iteration.config.objective.reference == "frozen":
        with system.backbone.without_lora():
            batches = [over_reference(system, batch, settings) for batch in batches]
    metrics, loss_scale = update_policy(
        system.policy,
        system.sampler,
        learner.optimizer,
        batches,
        pair_objective(iteration.config),
        parameters=system.trained(),
        world=iteration.world,
        settings=settings,
        loss_scale=learner.loss_scale,
        on_policy=learner.behaviour is None,
    )
    return Learned(metrics=metrics, loss_scale=loss_scale)


@torch.no_grad()
def over_reference(system: System, batch: PairBatch, settings: UpdateSettings) -> PairBatch:
    """Score both arms' actions by the network as it is now, for ratios over a frozen policy.

    Source:
        arXiv:2311.13231 (D3PO) and 2305.18290 (DPO): the reference never moves, where MV-DPO's
        snapshot is the policy that sampled.

    Args:
        system: Network and sampler; the caller has put the reference's parameters in.
        batch: Some pairs.
        settings: Trained steps, guidance and reduction, as in the rollout.

    Returns:
        The pairs with their log-densities under the reference; 0 at steps that are not trained.
    """
    scores = []
    for arm in (batch.rollout.zigzag, batch.rollout.standard):
        table = torch.zeros_like(arm.log_prob)
        for step in settings.steps:
            table[step] = replay(system.policy, system.sampler, batch, arm, [step], settings)[0]
        scores.append(table)
    return replace(batch, reference=PairedLogProb(*scores))


def _pair(samples: Samples) -> PairedRollout:
    """Take the trajectories of a slice that was sampled to compare pairs."""
    if samples.pair is None:
        msg = "`samples` must hold the pairs of every slice; got a slice without. Sample pairs."
        raise ValueError(msg)
    return samples.pair


def reward_metrics(rewards: RewardTable) -> dict[str, float]:
    """Summarise the rewards of both arms.

    Args:
        rewards: Rewards of all pairs.

    Returns:
        Means of each arm and of their difference, and of every scorer.
    """
    metrics: dict[str, Tensor] = {}
    totals = {
        "per_view_reward": rewards.per_view_total(),
        "joint_view_reward": rewards.joint_total(),
    }
    for kind, table in totals.items():
        zigzag, standard = _arms(table)
        metrics[f"{kind}/zigzag"] = zigzag.mean()
        metrics[f"{kind}/standard"] = standard.mean()
        metrics[f"{kind}/gap"] = (zigzag - standard).mean()
    for name, table in (*rewards.per_view.items(), *rewards.joint.items()):
        for arm, reward in zip(ARMS, _arms(table), strict=True):
            metrics[f"reward/{name}/{arm}"] = reward.mean()
    return {name: float(value) for name, value in metrics.items()}


def joint_mean(rewards: RewardTable) -> float:
    """Average the joint reward over both arms and all pairs.

    Args:
        rewards: Rewards of all pairs.

    Returns:
        The mean that the constraint compares with its threshold [reward units].
    """
    return float(torch.cat(_arms(rewards.joint_total())).mean())


def _arms(table: Tensor) -> list[Tensor]:
    """Take both arms apart under the prompts; contiguous, for the bits of a sum depend on it."""
    return [arm.contiguous() for arm in table[0].unbind(1)]
