"""TrainConfig, the whole configuration of a run, and the rules between its sections."""

import dataclasses
import math
from collections.abc import Iterable

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from mvczigal_ref.config.method import (
    AdvantageConfig,
    ConditionConfig,
    ConstraintConfig,
    ForwardConfig,
    ObjectiveConfig,
    RewardConfig,
    RolloutConfig,
    ZigzagConfig,
)
from mvczigal_ref.config.method_rules import method_contradictions
from mvczigal_ref.config.recomputation import recomputation_contradictions
from mvczigal_ref.config.run import GuardConfig, OptimConfig, RunConfig
from mvczigal_ref.config.sampling_rules import grid_contradictions, sampling_contradictions
from mvczigal_ref.config.sharding import sharding_contradictions
from mvczigal_ref.config.system import FlowConfig, ModelConfig, SamplerConfig
from mvczigal_ref.config.types import SETTINGS, Name

__all__ = ["TrainConfig", "contradictions"]


def contradictions(config: "TrainConfig") -> Iterable[str]:
    """Find sections that exclude each other, which no single setting can show.

    Args:
        config: Every setting is valid by itself.

    Yields:
        One sentence per problem, with the remedy.
    """
    steps, run = config.sampler.num_steps, config.run
    if config.zigzag.steps > steps:
        yield (
            f"`zigzag.steps` must be at most `sampler.num_steps` = {steps}; got "
            f"{config.zigzag.steps}. Set it to {steps} to zigzag every step."
        )
    if not config.sampler.is_flow and steps == 1 and not config.objective.train_last_action:
        yield (
            "`sampler.num_steps` must be at least 2 where the last action, which the image does "
            "not show, is not trained; got 1, which leaves no action to train. Set "
            "`objective.train_last_action` or add a step."
        )
    cap = config.constraint.multiplier_max
    if cap is not None and config.constraint.multiplier_init > cap:
        yield (
            "`constraint.multiplier_init` must be at most `constraint.multiplier_max` = "
            f"{cap}; got {config.constraint.multiplier_init}."
        )
    decay = config.optim.decay_iterations
    if 0 < decay < run.iterations:
        yield (
            f"`optim.decay_iterations` must be at least `run.iterations` = {run.iterations}, or 0 "
            f"for a rate that does not fall; got {decay}, after which nothing would be learnt. Set "
            f"it to {run.iterations}. A run keeps the value that it began with: where it has "
            "ended, `--from RUN` begins a new one with its parameters."
        )
    yield from grid_contradictions(config)
    yield from _length_contradictions(config)
    yield from _guard_contradictions(config)
    yield from sampling_contradictions(config)
    yield from _objective_contradictions(config)
    yield from _condition_contradictions(config)
    yield from method_contradictions(config)
    yield from sharding_contradictions(config.model, config.run)
    yield from recomputation_contradictions(config.model, config.run)
    if config.advantage.shuffle and run.objects_per_iteration < 2:
        yield "`run.objects_per_iteration` must be at least 2 to shuffle advantages; got 1."
    slices = [("run.objects_per_slice", run.objects_per_slice)]
    if run.replay_objects_per_slice is not None:
        slices.append(("run.replay_objects_per_slice", run.replay_objects_per_slice))
    for path, size in slices:
        if run.objects_per_iteration % size:
            nearest = _nearest_divisor(run.objects_per_iteration, size)
            yield (
                f"`{path}` must divide `run.objects_per_iteration` = "
                f"{run.objects_per_iteration}; got {size}. The nearest valid value is {nearest}."
            )


def _length_contradictions(config: "TrainConfig") -> Iterable[str]:
    """Find events that would come after the end of the run."""
    optim, iterations = config.optim, config.run.iterations
    for name, length, acts, remedy in (
        ("optim.warmup_iterations", optim.warmup_iterations, True, "0 for none"),
        ("optim.average_every", optim.average_every, optim.average_decay > 0, ""),
        ("guard.every", config.guard.every, True, "0 for no guard"),
        ("run.evaluate_every", config.run.evaluate_every, True, "0 for before and after only"),
    ):
        if acts and length > iterations:
            other = f", or to {remedy}" if remedy else ", or `optim.average_decay` to 0"
            yield (
                f"`{name}` must be at most `run.iterations` = {iterations}; got {length}, which "
                f"the run does not reach. Set it to {iterations}{other}."
            )


def _guard_contradictions(config: "TrainConfig") -> Iterable[str]:
    guard = config.guard
    # Alone, one reward leaves the other to be watched.
    alone = config.advantage.mode in ("joint", "per_view")
    if guard.every and not (guard.per_view or guard.joint or guard.diversity or alone):
        yield (
            "`guard.every` needs something to watch: name scorers in `guard.per_view` or "
            "`guard.joint`, or set `guard.diversity`."
        )
    if guard.every and guard.diversity and guard.noises < 2:
        yield "`guard.noises` must be at least 2 where `guard.diversity` counts; got 1."


def _nearest_divisor(whole: int, size: int) -> int:
    small = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    return min(sorted({*small, *(whole // n for n in small)}), key=lambda n: abs(n - size))


def _objective_contradictions(config: "TrainConfig") -> Iterable[str]:
    objective, rollout, flow = config.objective, config.rollout, config.sampler.is_flow
    paired = objective.compares_pairs
    if paired and rollout.kind != "pair":
        yield (
            f'`objective.kind` = "{objective.kind}" compares two trajectories; got '
            f'`rollout.kind` = "{rollout.kind}". Set it to "pair", or the objective to '
            '"policy_gradient".'
        )
    if objective.kind in ("guard", "forward_process") and not flow:
        yield (
            f'`objective.kind` = "{objective.kind}" is defined on the noise levels of a flow; got '
            f'`sampler.kind` = "{config.sampler.kind}". Take "policy_gradient".'
        )
    if objective.kind == "forward_process" and rollout.kind != "group":
        yield (
            '`objective.kind` = "forward_process" learns from samples alone; got `rollout.kind` '
            f'= "{rollout.kind}". Set it to "group".'
        )
    if objective.kind == "forward_process" and rollout.shared_noise:
        yield (
            '`rollout.shared_noise` must be False where `objective.kind` = "forward_process": '
            "without noise on the way the members would be equal."
        )
    if objective.kl_weight > 0.0 and paired:
        yield (
            f'`objective.kl_weight` must be 0 with `objective.kind` = "{objective.kind}", '
            f"which has no such term; got {objective.kl_weight}."
        )
    if objective.kl_weight > 0.0 and config.model.finetune == "full":
        yield (
            "`objective.kl_weight` needs a reference, which is the network without its LoRA; "
            'got `model.finetune` = "full". Train a LoRA, or set the weight to 0.'
        )
    if objective.kl_form == "without_step_length" and not flow:
        yield (
            '`objective.kl_form` = "without_step_length" is defined on the noise levels of a '
            f'flow; got `sampler.kind` = "{config.sampler.kind}".'
        )
    yield from _update_contradictions(config)


def _update_contradictions(config: "TrainConfig") -> Iterable[str]:
    """Find settings of the update that its kind would not read."""
    objective, rollout, optim = config.objective, config.rollout, config.optim
    paired = objective.compares_pairs
    chosen = (objective.step_weight, objective.train_share, optim.step_per_decision)
    if not objective.is_policy_gradient and chosen != ("equal", 1.0, False):
        yield (
            "`objective.step_weight`, `objective.train_share` and `optim.step_per_decision` are "
            f'for policy gradients; got `objective.kind` = "{objective.kind}".'
        )
    if objective.kind == "forward_process" and rollout.window != "all":
        yield (
            '`rollout.window` must be "all" with `objective.kind` = "forward_process", whose '
            f"samples follow the ODE throughout; got {rollout.window!r}."
        )
    if rollout.kind == "branches" and objective.train_share < 1.0:
        yield (
            '`objective.train_share` must be 1 with `rollout.kind` = "branches", which samples '
            f"no step that it does not train; got {objective.train_share}. Choose a window."
        )
    if not paired and config.run.replay_objects_per_slice is not None:
        yield (
            "`run.replay_objects_per_slice` is for objectives that compare the arms of pairs: "
            "others replay in the slices of the rollout. Cut them by `rollout.nodes_per_call`, "
            "or choose smaller slices."
        )
    if not paired and config.run.arms_per_call > 1:
        yield (
            "`run.arms_per_call` is for objectives that compare the arms of pairs: groups sample "
            f"all members of a state by one call; got {config.run.arms_per_call}. Set it to 1."
        )
    if not paired and optim.steps_per_microbatch > 1:
        yield (
            "`optim.steps_per_microbatch` is for objectives that compare the arms of pairs: "
            f"others replay each step by itself; got {optim.steps_per_microbatch}."
        )


def _condition_contradictions(config: "TrainConfig") -> Iterable[str]:
    condition, rollout = config.condition, config.rollout
    if condition.enhancer == "none":
        return
    if rollout.kind == "pair" or config.objective.kind == "forward_process":
        yield (
            f'`condition.enhancer` = "{condition.enhancer}" needs groups that are learnt by their '
            f'log-probabilities; got `rollout.kind` = "{rollout.kind}" and `objective.kind` = '
            f'"{config.objective.kind}". Pairs have no group to judge anew, and the forward '
            "process no ratio."
        )
    needed = {"stored": ("file",), "chat": ("url", "model"), "local": ("model",)}
    for name in needed.get(condition.enhancer, ()):
        if getattr(condition, name) is None:
            yield (
                f"`condition.{name}` must be given where `condition.enhancer` = "
                f'"{condition.enhancer}"; got None.'
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class TrainConfig:
    """Settings of a training run, all sections together."""

    recipe: Name = "custom"
    """Name of the recipe that this configuration started from."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """Network and trained weights."""
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    """Sampling grid, and guidance along it."""
    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    """Noise of a flow model's steps."""
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    """Samples of a prompt."""
    zigzag: ZigzagConfig = dataclasses.field(default_factory=ZigzagConfig)
    """Zigzag arm of a pair."""
    condition: ConditionConfig = dataclasses.field(default_factory=ConditionConfig)
    """Captions beside the prompt."""
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    """Scorers."""
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    """Held-out scores that are watched."""
    advantage: AdvantageConfig = dataclasses.field(default_factory=AdvantageConfig)
    """From rewards to advantages."""
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    """Loss over pairs or groups."""
    forward: ForwardConfig = dataclasses.field(default_factory=ForwardConfig)
    """Loss on the forward process."""
    constraint: ConstraintConfig = dataclasses.field(default_factory=ConstraintConfig)
    """Multiplier and threshold."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """Optimiser."""
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """Length, slices and files."""

    @model_validator(mode="after")
    def _check_together(self) -> "TrainConfig":
        for problem in contradictions(self):
            raise ValueError(problem)
        return self
