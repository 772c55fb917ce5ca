"""Steps of an iteration that draw noise, and those that are trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.rollout.group_plan import GroupPlan
from mvczigal_ref.rollout.windows import (
    decaying_window,
    fixed_window,
    moving_steps,
    random_steps,
    random_window,
    sliding_window,
)
from mvczigal_ref.system.sampler import build_sampler

__all__ = [
    "Sampled",
    "check_grid",
    "check_steps",
    "num_acting_steps",
    "num_trained_decisions",
    "plan_of",
    "stochastic_steps",
    "trained_decisions",
]


@runtime_checkable
class Sampled(Protocol):
    """Anything with a sampling grid, such as a system."""

    @property
    def sampler(self) -> Sampler:
        """The grid."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """A grid without a network."""

    sampler: Sampler


def num_acting_steps(system: Sampled) -> int:
    """Count the steps from the first on whose noise an image can show."""
    sampler = system.sampler
    if isinstance(sampler, FlowSampler):
        return sampler.num_density_steps - (
            sampler.image_is_denoised and sampler.num_density_steps == sampler.num_steps
        )
    return sampler.num_steps - sampler.last_action_is_image_independent


def stochastic_steps(config: TrainConfig, *, most: int, iteration: int) -> tuple[int, ...]:
    """Choose the steps of an iteration that draw noise.

    Args:
        config: The section ``rollout`` is read.
        most: Steps from the first on that can.
        iteration: Index of the iteration.

    Returns:
        Increasing steps.

    Raises:
        ValueError: If the window does not fit, or no step can.

    Examples:
        >>> stochastic_steps(TrainConfig(), most=3, iteration=0)
        (0, 1, 2)
    """
    rollout = config.rollout
    if most < 1:
        msg = (
            "`sampler.num_steps` must leave a step whose noise the image shows; got "
            f"{config.sampler.num_steps}, of which none does. Add a step."
        )
        raise ValueError(msg)
    size: dict[str, Any] = {"size": rollout.window_size, "num_steps": most}
    moving: dict[str, Any] = {
        "iteration": iteration, "interval": rollout.window_interval,
        "stride": rollout.window_stride, "end": rollout.window_end, **size,
    }  # fmt: skip
    if rollout.window == "fixed":
        return fixed_window(start=rollout.window_start, spacing=rollout.window_spacing, **size)
    if rollout.window == "random":
        return random_window(
            seed=config.run.seed, iteration=iteration, first_start=rollout.window_start,
            last_start=rollout.window_last_start, **size,
        )  # fmt: skip
    if rollout.window == "sliding":
        return sliding_window(**moving)
    if rollout.window == "decaying":
        return decaying_window(
            decay=rollout.window_decay, decay_after=rollout.window_decay_after, **moving
        )
    return tuple(range(most))


def trained_decisions(
    config: TrainConfig, *, steps: Sequence[int], iteration: int
) -> tuple[int, ...]:
    """Choose which of the decisions that draw noise are trained.

    Args:
        config: ``objective.train_share`` is read, and ``rollout.pruned_steps`` of a tree.
        steps: Step of each decision of the iteration, increasing [step].
        iteration: Index of the iteration.

    Returns:
        Increasing places among them.

    Raises:
        ValueError: If every step of a tree is pruned.

    Examples:
        >>> trained_decisions(TrainConfig(), steps=(0, 1, 3), iteration=0)
        (0, 1, 2)
    """
    rollout, share, count = config.rollout, config.objective.train_share, len(steps)
    places = tuple(range(count))
    if rollout.kind == "tree" and rollout.pruned_steps:
        pruned = moving_steps(
            rollout.pruned_steps, iteration=iteration, interval=rollout.pruned_interval,
            first=rollout.pruned_first,
        )  # fmt: skip
        places = tuple(place for place in places if steps[place] not in pruned)
        if not places:
            msg = (
                f"`rollout.pruned_steps` must leave a noisy step to train, of {list(steps)}; got "
                f"{list(pruned)} in iteration {iteration}."
            )
            raise ValueError(msg)
    if share == 1.0 or not places or rollout.kind == "branches":
        return places
    chosen = random_steps(
        seed=config.run.seed,
        iteration=iteration,
        size=max(1, round(share * len(places))),
        num_steps=len(places),
    )
    return tuple(places[index] for index in chosen)


def num_trained_decisions(system: Sampled, config: TrainConfig, iteration: int) -> int:
    """Count the decisions of an iteration that are trained.

    Args:
        system: Sampled whose sampler's grid is read.
        config: The sections ``rollout`` and ``objective`` are read.
        iteration: Index of the iteration.

    Returns:
        Number of decisions [1].

    Raises:
        ValueError: If window, tree and grid do not fit.
    """
    if config.rollout.kind == "branches":
        most = num_acting_steps(system)
        return len(stochastic_steps(config, most=most, iteration=iteration))
    steps = plan_of(config, system, iteration).stochastic_steps
    return len(trained_decisions(config, steps=steps, iteration=iteration))


def plan_of(config: TrainConfig, system: Sampled, iteration: int) -> GroupPlan:
    """Plan an iteration's groups or trees.

    Args:
        config: The sections ``rollout`` and ``objective`` are read.
        system: System whose sampler's grid is read.
        iteration: Index of the iteration.

    Returns:
        The plan.

    Raises:
        ValueError: If window, tree and grid do not fit.
    """
    rollout, sampler = config.rollout, system.sampler
    steps = sampler.num_steps
    if config.objective.kind == "forward_process":
        chosen: tuple[int, ...] = ()
    else:
        chosen = stochastic_steps(config, most=num_acting_steps(system), iteration=iteration)
    if rollout.kind == "tree":
        first = min(rollout.split_steps)
        # A tree divides outside its window too, where it draws noise for that alone.
        able = {step for step in rollout.split_steps if step < num_acting_steps(system)}
        noisy = sorted({*(step for step in chosen if step >= first), *able})
        return GroupPlan.tree(
            dict.fromkeys(rollout.split_steps, rollout.split_width),
            stochastic_steps=noisy,
            num_steps=steps,
        )
    return GroupPlan.group(
        rollout.members, stochastic_steps=chosen, num_steps=steps, shared_noise=rollout.shared_noise
    )


def check_grid(config: TrainConfig) -> None:
    """Refuse windows and trees that do not fit the grid, before weights are read.

    Args:
        config: Any run; one of pairs has neither.

    Raises:
        ConfigError: If something does not fit; says what.

    Examples:
        >>> check_grid(TrainConfig())
    """
    if not config.objective.compares_pairs:
        check_steps(_Grid(build_sampler(config)), config)


def check_steps(system: Sampled, config: TrainConfig) -> None:
    """Refuse windows and trees that do not fit the grid, before any long work.

    Args:
        system: System whose sampler's grid is read.
        config: The sections ``rollout`` and ``sampler`` are read.

    Raises:
        ConfigError: If something does not fit; says what.
    """
    try:
        if config.rollout.kind == "branches":
            stochastic_steps(config, most=num_acting_steps(system), iteration=0)
        elif config.rollout.kind != "pair":
            plan = plan_of(config, system, 0)
            trained_decisions(config, steps=plan.stochastic_steps, iteration=0)
    except ValueError as error:
        raise ConfigError(f"`rollout` does not fit `sampler`: {error}") from error
