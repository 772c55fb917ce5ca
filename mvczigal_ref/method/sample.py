"""What is sampled of prompts to be compared within groups, whatever the shape of the groups."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.branches import fuse_leaf_rewards, granular_advantages
from mvczigal_ref.advantage.group import combined_group_advantages
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.records import BranchTrajectory, GroupDecision, GroupTrajectory, PairedRollout
from mvczigal_ref.rollout.branches import branched_rollout
from mvczigal_ref.rollout.group import group_rollout
from mvczigal_ref.rollout.group_plan import GroupPlan
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.pair import paired_rollout
from mvczigal_ref.rollout.windows import (
    decaying_window,
    fixed_window,
    random_steps,
    random_window,
    sliding_window,
)
from mvczigal_ref.system import System
from mvczigal_ref.system.networks import DTYPES

__all__ = [
    "GroupSamples",
    "check_groups",
    "draw_groups",
    "draw_pair",
    "plan_of",
    "stochastic_steps",
    "trained_decisions",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSamples:
    """One slice's samples, and how rewards belong to what was drawn."""

    decisions: tuple[GroupDecision, ...]
    """What is trained; none where the samples alone are."""

    denoised: Float[Tensor, "prompt sample view c h w"]
    """Final latents of everything that is judged [1]."""

    config: TrainConfig
    """The section ``rollout`` is read."""

    branching: tuple[int, ...] = (1,)
    """Of a tree, or of a group, which is one of a single depth."""

    leaf_log_prob: Float[Tensor, "prompt sample"] | None = None
    """Log-density of every leaf's whole path, trained or not, over steps and views [nats]; None
    where nothing divides on the way."""

    def advantages(
        self,
        rewards: Mapping[str, Float[Tensor, "*view prompt sample"]],
        *,
        weights: Mapping[str, float],
        leaf_log_prob: Float[Tensor, "prompt sample"] | None = None,
    ) -> tuple[Float[Tensor, "*view prompt member"], ...]:
        """Turn rewards into one advantage for each member of each decision.

        Each reward is compared by itself; their weighted sum is clipped, once.

        Args:
            rewards: By scorer, of everything judged [reward units], of the same prompts or of
                more.
            weights: One for every name in ``rewards`` [1].
            leaf_log_prob: Of a tree's leaves, where likelier ones count more [nats].

        Returns:
            A table a decision; one alone where there are none.
        """
        rollout, wanted = self.config.rollout, self.config.advantage
        if rollout.kind == "branches":
            shape = (len(self.decisions), len(rollout.strides), rollout.trunks, -1)
            each = granular_advantages(
                {
                    name: table.unflatten(-1, shape).transpose(-3, -2)
                    for name, table in rewards.items()
                },
                weights=weights, ddof=wanted.ddof, delta=wanted.delta, clip=wanted.clip,
            )  # fmt: skip
            return tuple(each.flatten(-2).movedim(-2, 0))
        fused = {
            name: fuse_leaf_rewards(
                table,
                branching=self.branching,
                leaf_log_prob=None if leaf_log_prob is None else leaf_log_prob.expand_as(table),
                inverse_temperature=wanted.fusion_inverse_temperature,
            )
            for name, table in rewards.items()
        }
        by_depth = [
            combined_group_advantages(
                {name: rows[depth] for name, rows in fused.items()},
                weights=weights, spread=wanted.spread, ddof=wanted.ddof, delta=wanted.delta,
                clip=wanted.clip,
            )
            for depth in range(len(self.branching))
        ]  # fmt: skip
        return tuple(by_depth[d.depth] for d in self.decisions) or (by_depth[-1],)


def stochastic_steps(config: TrainConfig, *, most: int, iteration: int) -> tuple[int, ...]:
    """Choose the steps of an iteration that draw noise.

    Args:
        config: The section ``rollout`` is read.
        most: Steps from the first on that can.
        iteration: Its index.

    Returns:
        Increasing steps.

    Raises:
        ValueError: If the window does not fit, or no step can.

    Examples:
        >>> stochastic_steps(TrainConfig(), most=3, iteration=0)
        (0, 1, 2)
    """
    wanted = config.rollout
    if most < 1:
        msg = (
            "`sampler.num_steps` must leave a step whose noise the image shows; got "
            f"{config.sampler.num_steps}, of which none does. Add a step."
        )
        raise ValueError(msg)
    size: dict[str, Any] = {"size": wanted.window_size, "num_steps": most}
    moving: dict[str, Any] = {
        "iteration": iteration, "interval": wanted.window_interval,
        "stride": wanted.window_stride, "end": wanted.window_end, **size,
    }  # fmt: skip
    if wanted.window == "fixed":
        return fixed_window(start=wanted.window_start, spacing=wanted.window_spacing, **size)
    if wanted.window == "random":
        return random_window(
            seed=config.run.seed, iteration=iteration, first_start=wanted.window_start,
            last_start=wanted.window_last_start, **size,
        )  # fmt: skip
    if wanted.window == "sliding":
        return sliding_window(**moving)
    if wanted.window == "decaying":
        return decaying_window(
            decay=wanted.window_decay, decay_after=wanted.window_decay_after, **moving
        )
    return tuple(range(most))


def trained_decisions(config: TrainConfig, *, count: int, iteration: int) -> tuple[int, ...]:
    """Choose which of the decisions that draw noise are trained.

    Args:
        config: ``objective.train_share`` is read.
        count: Decisions of the iteration [1].
        iteration: Its index.

    Returns:
        Increasing places among them.

    Examples:
        >>> trained_decisions(TrainConfig(), count=3, iteration=0)
        (0, 1, 2)
    """
    share = config.objective.train_share
    if share == 1.0 or count == 0 or config.rollout.kind == "branches":
        return tuple(range(count))
    return random_steps(
        seed=config.run.seed,
        iteration=iteration,
        size=max(1, round(share * count)),
        num_steps=count,
    )


def plan_of(config: TrainConfig, system: System, iteration: int) -> GroupPlan:
    """Plan an iteration's groups or trees.

    Args:
        config: The sections ``rollout`` and ``objective`` are read.
        system: Its sampler's grid.
        iteration: Its index.

    Returns:
        The plan.

    Raises:
        ValueError: If window, tree and grid do not fit.
    """
    wanted, sampler = config.rollout, system.sampler
    steps = sampler.num_steps
    if config.objective.kind == "forward_process":
        chosen: tuple[int, ...] = ()
    else:
        chosen = stochastic_steps(config, most=num_acting_steps(system), iteration=iteration)
    if wanted.kind == "tree":
        first = min(wanted.split_steps)
        return GroupPlan.tree(
            dict.fromkeys(wanted.split_steps, wanted.split_width),
            stochastic_steps=[step for step in chosen if step >= first],
            num_steps=steps,
        )
    return GroupPlan.group(
        wanted.members, stochastic_steps=chosen, num_steps=steps, shared_noise=wanted.shared_noise
    )


def check_groups(system: System, config: TrainConfig) -> None:
    """Refuse windows and trees that do not fit the grid, before any long work.

    Args:
        system: Its sampler's grid.
        config: The sections ``rollout`` and ``sampler`` are read.

    Raises:
        ConfigError: If something does not fit; says what.
    """
    try:
        if config.rollout.kind == "branches":
            stochastic_steps(config, most=num_acting_steps(system), iteration=0)
        elif config.rollout.kind != "pair":
            plan_of(config, system, 0)
    except ValueError as error:
        raise ConfigError(f"`rollout` does not fit `sampler`: {error}") from error


def draw_groups(
    system: System,
    conditioning: Conditioning,
    noise: SeededNoise,
    *,
    config: TrainConfig,
    iteration: int,
) -> GroupSamples:
    """Sample one slice of prompts.

    Args:
        system: Network and sampler.
        conditioning: Of the prompts that ``noise`` names.
        noise: Initial and step noise.
        config: Sampling, guidance and precision are read.
        iteration: Its index, for windows that move.

    Returns:
        The samples and what was drawn on the way, without gradient.

    Raises:
        ValueError: If window, tree and grid do not fit.
    """
    rollout, dtype = config.rollout, DTYPES[config.model.storage_dtype]
    shared: dict[str, Any] = {
        "guidance_scale": config.sampler.guidance_scale,
        "camera_scale": config.sampler.camera_scale,
        "storage_dtype": dtype,
        "reduction": config.objective.reduction,
    }
    nodes: dict[str, Any] = {
        "nodes_per_call": rollout.nodes_per_call,
        "keep_mean": config.objective.kind == "guard",
    }
    if rollout.kind == "pair":
        pair = draw_pair(system, conditioning, noise, config=config)
        samples = _of_pair(pair, system, config)
    elif rollout.kind == "branches" and isinstance(system.sampler, FlowSampler):
        chosen = stochastic_steps(config, most=num_acting_steps(system), iteration=iteration)
        samples = _of_branches(
            branched_rollout(
                system.policy, system.sampler, conditioning, noise, steps=chosen,
                branches=rollout.members, num_trunks=rollout.trunks, strides=rollout.strides,
                fine_steps=rollout.fine_steps, **shared, **nodes,
            ),
            config,
        )  # fmt: skip
    else:
        plan = plan_of(config, system, iteration)
        samples = _of_group(
            group_rollout(
                system.policy, system.sampler, conditioning, noise, plan, **shared, **nodes
            ),
            config,
        )
    return _thinned(samples, iteration)


def num_acting_steps(system: System) -> int:
    """Count the steps from the first on whose noise an image can show."""
    sampler = system.sampler
    if isinstance(sampler, FlowSampler):
        return sampler.num_density_steps - (
            sampler.image_is_denoised and sampler.num_density_steps == sampler.num_steps
        )
    return sampler.num_steps - sampler.last_action_is_image_independent


def _of_pair(pair: PairedRollout, system: System, config: TrainConfig) -> GroupSamples:
    """Hold both arms of each pair as a group of two, its states apart."""
    last = system.sampler.num_steps
    if system.sampler.last_action_is_image_independent and not config.objective.train_last_action:
        last -= 1
    arms = (pair.zigzag, pair.standard)

    def both(name: str, step: int) -> Tensor:
        return torch.stack([getattr(arm, name)[step] for arm in arms], dim=1)

    return GroupSamples(
        decisions=tuple(
            GroupDecision(
                step=step,
                depth=0,
                state=both("state", step),
                action=both("action", step),
                log_prob=both("log_prob", step),
            )
            for step in range(last)
        ),
        denoised=torch.stack([arm.denoised for arm in arms], dim=1),
        config=config,
        branching=(2,),
    )


def _of_group(found: GroupTrajectory, config: TrainConfig) -> GroupSamples:
    return GroupSamples(
        decisions=found.decisions,
        denoised=found.denoised,
        config=config,
        branching=found.branching,
        leaf_log_prob=found.leaf_log_prob().sum((0, -1)),
    )


def _of_branches(found: BranchTrajectory, config: TrainConfig) -> GroupSamples:
    """Lay everything that is judged along one axis: by step, grid and branch."""
    return GroupSamples(
        decisions=found.decisions,
        denoised=found.denoised.movedim(2, 0).flatten(1, 3),
        config=config,
    )


def _thinned(samples: GroupSamples, iteration: int) -> GroupSamples:
    """Keep the share of the decisions that is trained; the same in every process."""
    kept = trained_decisions(samples.config, count=len(samples.decisions), iteration=iteration)
    return replace(samples, decisions=tuple(samples.decisions[index] for index in kept))


def draw_pair(
    system: System,
    conditioning: Conditioning,
    noise: SeededNoise,
    *,
    config: TrainConfig,
    policy: Policy | None = None,
) -> PairedRollout:
    """Sample pairs as a configuration says.

    Args:
        system: Network and sampler.
        conditioning: What the network is told of the objects.
        noise: Of the same objects.
        config: Pairing, guidance, camera scales, zigzag, storage dtype and reduction are read.
        policy: Called in place of the system's, if given.

    Returns:
        Both arms of every pair.
    """
    return paired_rollout(
        system.policy if policy is None else policy,
        system.sampler,
        noise.initial(),
        conditioning,
        noise,
        pairing=config.objective.pairing,
        guidance_scale=config.sampler.guidance_scale,
        inversion_guidance_scale=config.zigzag.inversion_guidance_scale,
        camera_scale=config.sampler.camera_scale,
        inversion_camera_scale=config.zigzag.inversion_camera_scale,
        zigzag_steps=config.zigzag.steps,
        zigzag_rounds=config.zigzag.rounds,
        storage_dtype=DTYPES[config.model.storage_dtype],
        reduction=config.objective.reduction,
    )
