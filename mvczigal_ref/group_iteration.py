"""One iteration over groups, from rollout to update: the GRPO family on one screen."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from mvczigal_ref.condition.distinct import TextColumn, distinct_texts
from mvczigal_ref.condition.protocol import Caption, ConditionEnhancer
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import ConstraintState, constraint_step
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import IterationResult
from mvczigal_ref.method.caption import caption_record, drift_metrics
from mvczigal_ref.method.forward import learn_from_noised
from mvczigal_ref.method.groups import group_advantage_tables, learn_from_decisions
from mvczigal_ref.method.sample import GroupSamples, draw_groups
from mvczigal_ref.method.score import score_groups
from mvczigal_ref.method.slices import Share
from mvczigal_ref.objective.diffusion_nft import old_policy_decay
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.reward.table import GroupRewards
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.system import System
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.parameters import mixed_parameters, parameters_as

__all__ = ["run_group_iteration"]


def run_group_iteration(
    system: System,
    optimizer: torch.optim.Optimizer,
    constraint: ConstraintState,
    prompts: Sequence[str],
    *,
    iteration: int,
    config: TrainConfig,
    world: World,
    timer: StageTimer,
    enhancer: ConditionEnhancer | None = None,
    old: Mapping[str, Tensor] | None = None,
    loss_scale: LossScale | None = None,
) -> IterationResult:
    """Roll out groups, describe them, reward, constrain, compare, update.

    Source:
        arXiv:2505.05470 (Flow-GRPO) and its family, by the sections ``rollout``, ``advantage``
        and ``objective``; arXiv:2603.12648 (MV-GRPO) with an ``enhancer``: each sample is judged
        and learnt under its group's captions too. The constraint on the joint-view reward is
        that of arXiv:2505.20107, over all samples under their own prompts.

    Args:
        system: What acts; its trained parameters change.
        optimizer: Over the system's trained parameters.
        constraint: From the last iteration.
        prompts: This iteration's, one a group, over all processes.
        iteration: Its index; names its noise.
        config: Settings, handed on as plain numbers.
        world: This process among all.
        timer: Measures the stages.
        enhancer: Makes captions beside the prompts; None is plain GRPO.
        old: Trained parameters of the policy that samples, where it follows the one that learns
            (DiffusionNFT); None is the policy itself.
        loss_scale: From the last iteration; None where gradients do not need it.

    Returns:
        The new constraint state and loss scale, and the metrics, the same in every process.

    Raises:
        ValueError: If there is not one prompt a group, or window, tree and grid do not fit.
        CaptionError: If captions cannot be made.
        ConfigError: If the prompts cannot be shared out equally.
        NonFiniteError: If a reward, log-density, loss or gradient is not finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
        ReplayMismatchError: If replay does not reproduce the rollout.
    """
    share = Share.of(config, world)
    share.require(prompts)
    said = [[prompts[i] for i in part] for part in share.objects]
    with timer("rollout"):
        known = [system.conditioning(texts) for texts in said]
        with nullcontext() if old is None else parameters_as(system.trained(), old):
            samples = [
                draw_groups(
                    system, known[n], _noise(system, part, iteration, config),
                    config=config, iteration=iteration,
                )
                for n, part in enumerate(share.objects)
            ]  # fmt: skip
        images = [_decoded(system, part) for part in samples]
    with timer("condition"):
        captions = [
            _captions(enhancer, texts, views, seed=config.run.seed + iteration)
            for texts, views in zip(said, images, strict=True)
        ]
        conditions = [
            _conditions(system, own, _texts(texts, made))
            for own, texts, made in zip(known, said, captions, strict=True)
        ]
    with timer("reward"):
        own = [
            score_groups(system, views, _texts(texts, made))
            for views, texts, made in zip(images, said, captions, strict=True)
        ]
        rewards = _gathered(own, share, world)
        rewards.require_finite()  # the constraint's mean would not say whose it was
        constraint = constraint_step(
            constraint,
            float(rewards.joint_total()[0].mean()),
            step_size_violated=config.constraint.step_size_violated,
            step_size_satisfied=config.constraint.step_size_satisfied,
            multiplier_max=config.constraint.multiplier_max or math.inf,
            threshold_decay=config.constraint.threshold_decay,
            order=config.constraint.order,
        )
    with timer("advantage"):
        advantages = group_advantage_tables(
            rewards,
            samples[0],
            multiplier=constraint.multiplier,
            leaf_log_prob=_leaf_log_prob(samples, share, world),
            config=config,
            iteration=iteration,
        )
    with timer("update"):
        learn = learn_from_decisions
        if old is not None:
            learn = partial(learn_from_noised, iteration=iteration, old=old)
        (learned, loss_scale), drift = learn(
            system, optimizer, samples, conditions, advantages,
            share=share, config=config, world=world, loss_scale=loss_scale,
        )  # fmt: skip
    metrics, told = {**_metrics(rewards, constraint), **learned}, None
    if drift is not None:
        entries = torch.cat([table.flatten() for table in drift])
        metrics |= drift_metrics(entries)
        mine = [i for part in share.objects for i in part]
        told = caption_record(
            [text for texts in said for text in texts],
            [texts for made in captions for texts in made],
            rewards.per_view_total().mean(-1)[:, mine],
            entries,
            torch.stack([table[mine].flatten(2).mean(-1) for table in drift]),
        )
    return IterationResult(
        constraint,
        metrics,
        told=told,
        loss_scale=loss_scale,
        old=None if old is None else _followed(old, system, iteration, config),
    )


def _noise(system: System, part: range, iteration: int, config: TrainConfig) -> SeededNoise:
    return SeededNoise(
        seed=config.run.seed,
        iteration=iteration,
        objects=part,
        shape=system.latent_shape,
        device=system.device,
    )


def _decoded(system: System, samples: GroupSamples) -> Tensor:
    """Decode all that is judged, prompts first."""
    flat = system.images(samples.denoised.flatten(0, 1))
    return flat.reshape(*samples.denoised.shape[:2], *flat.shape[1:])


def _captions(
    enhancer: ConditionEnhancer | None, prompts: Sequence[str], images: Tensor, *, seed: int
) -> list[tuple[Caption, ...]]:
    if enhancer is None:
        return [() for _ in prompts]
    return enhancer(prompts, images.cpu() if enhancer.needs_images else None, seed=seed)


def _texts(prompts: Sequence[str], captions: Sequence[Sequence[Caption]]) -> list[list[str]]:
    """Give every condition one text a prompt, the prompts' own first."""
    return [list(prompts), *([c.caption for c in column] for column in zip(*captions, strict=True))]


def _conditions(
    system: System, own: Conditioning, texts: Sequence[Sequence[str]]
) -> list[tuple[TextColumn, Conditioning]]:
    """Encode what is said beside the prompts, equal texts of a prompt once."""
    first, *others = distinct_texts(texts)
    return [
        (first, own),
        *((column, system.conditioning(column.texts, remember=False)) for column in others),
    ]


def _gathered(own: Sequence[GroupRewards], share: Share, world: World) -> GroupRewards:
    """Collect every process's rewards, prompts in the iteration's order."""

    def whole(tables: Sequence[Tensor]) -> Tensor:
        return share.gather([table.transpose(0, 1) for table in tables], world).transpose(0, 1)

    return GroupRewards(
        per_view={name: whole([r.per_view[name] for r in own]) for name in own[0].per_view},
        joint={name: whole([r.joint[name] for r in own]) for name in own[0].joint},
        weights=own[0].weights,
    )


def _leaf_log_prob(samples: Sequence[GroupSamples], share: Share, world: World) -> Tensor | None:
    """Find how likely each leaf's path was, where that counts."""
    if not samples[0].config.advantage.fusion_inverse_temperature:
        return None
    own = [part.leaf_log_prob for part in samples if part.leaf_log_prob is not None]
    return share.gather(own, world)


def _metrics(rewards: GroupRewards, constraint: ConstraintState) -> dict[str, float]:
    per_view, joint = rewards.per_view_total(), rewards.joint_total()
    own = per_view[0].mean(-1)
    metrics = {
        "per_view_reward/mean": own.mean(),
        "per_view_reward/group_std": own.std(-1, correction=0).mean(),
        "joint_view_reward/mean": joint[0].mean(),
        "joint_view_reward/group_std": joint[0].std(-1, correction=0).mean(),
        # Groups that were all scored alike teach nothing.
        "groups_alike": (own.amax(-1) == own.amin(-1)).double().mean(),
    }
    if len(per_view) > 1:
        metrics["per_view_reward/under_captions"] = per_view[1:].mean()
    for name, table in (*rewards.per_view.items(), *rewards.joint.items()):
        metrics[f"reward/{name}"] = table[0].mean()
    found = {name: float(value) for name, value in metrics.items()}
    return {
        **found,
        "multiplier": constraint.multiplier,
        "threshold": constraint.threshold,
        "slack": constraint.slack(float(joint[0].mean())),
    }


def _followed(
    old: Mapping[str, Tensor], system: System, iteration: int, config: TrainConfig
) -> dict[str, Tensor]:
    """Let the policy that samples follow the one that has learnt."""
    forward, optim, count = config.forward, config.optim, iteration
    if forward.old_decay_unit == "optimizer_step":
        count = (iteration + 1) * optim.epochs_per_iteration * optim.optimizer_steps_per_epoch
    kept = old_policy_decay(count, rate=forward.old_decay_rate, largest=forward.old_decay_largest)
    return mixed_parameters(old, system.trained(), kept=kept)
