"""State that a training run changes: made at its beginning, saved, and made again."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.evaluate import evaluate
from mvczigal_ref.evaluation.guard import GuardState
from mvczigal_ref.files import finite_values
from mvczigal_ref.method.ahead import Ahead
from mvczigal_ref.method.steps import num_trained_decisions
from mvczigal_ref.models.loading import load_strict
from mvczigal_ref.models.sharding import shard_world
from mvczigal_ref.system import System
from mvczigal_ref.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from mvczigal_ref.training.checkpoint_folder import checkpoint_name
from mvczigal_ref.training.met_prompts import met_prompts_digest, prompts_digest
from mvczigal_ref.training.optimizer import build_optimizer, set_rate
from mvczigal_ref.training.optimizer_state import restore_optimizer, split_optimizer_state
from mvczigal_ref.training.places import absolute_paths
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.saved_state import REQUIRED, restored
from mvczigal_ref.training.sealed_rows import seal_rows
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.parameters import follow_parameters, parameter_copies, parameters_as

__all__ = ["TrainingState", "begin", "initial_loss_scale", "resume"]

_BEST = "best"  # folder of the guard's own checkpoint, out of the reach of pruning


@dataclass(slots=True)
class TrainingState:
    """Everything that an iteration changes.

    Noise and prompts are functions of the seed and the iteration's index, so there is no
    generator to keep.
    """

    system: System
    """Network, sampler and scorers; the trained parameters change."""

    optimizer: torch.optim.Optimizer
    """Over the trained parameters."""

    constraint: ConstraintState
    """Multiplier and threshold."""

    finished: int
    """Iterations done."""

    prompts: Sequence[str]
    """All training prompts, in order."""

    config: TrainConfig
    """The run's settings."""

    old: dict[str, torch.Tensor] | None = None
    """Parameters of the policy that samples, where it is not the one that learns."""

    ahead: Ahead | None = None
    """Rollout of the next iteration, where the policy before the last update samples it."""

    average: dict[str, torch.Tensor] | None = None
    """Average of the parameters, where one is evaluated and kept in their place."""

    loss_scale: LossScale | None = None
    """Factor on the loss in the next backward pass; None where gradients do not need it."""

    guard: GuardState | None = None
    """Memory of the held-out guard; None before its first check."""

    pending: dict[str, float | None] | None = None
    """Metrics of the last iteration while something is still to be measured after it."""

    weights: dict[str, str] | None = None
    """Place and digest of the base weights; None where the networks were handed over loaded."""

    origin: dict[str, Any] | None = None
    """Record of the run or LoRA with whose parameters the run began; None of the base weights."""

    rewards: dict[str, dict[str, str | None]] | None = None
    """Places and hashes of the user's functions that score; None where there are none."""

    @property
    def logged(self) -> int:
        """Iterations whose metrics are written."""
        return self.finished - (self.pending is not None)

    @property
    def ended(self) -> bool:
        """Whether no iteration is left, or the guard has ended the run."""
        fired = self.guard is not None and self.guard.fired
        return fired or self.finished >= self.config.run.iterations

    def set_learning_rate(self) -> None:
        """Set the learning rate of the next iteration: a function of its index alone."""
        optim, iteration = self.config.optim, self.finished
        warmup, decay = optim.warmup_iterations, optim.decay_iterations
        rate = optim.lr * min(1.0, (iteration + 1) / warmup) if warmup else optim.lr
        if decay:
            rate *= max(0.0, 1 - iteration / decay)
        set_rate(self.optimizer, rate)

    def follow(self) -> None:
        """Let the average follow the parameters, if it is time after the last iteration."""
        optim = self.config.optim
        if self.average is None or self.finished % optim.average_every:
            return
        steps = self.finished * optim.epochs_per_iteration * optim.optimizer_steps_per_epoch
        if optim.step_per_decision:
            steps *= num_trained_decisions(self.system, self.config, self.finished - 1)
        self.average = follow_parameters(
            self.average, self.system.trained(), decay=optim.average_decay, steps=steps
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Put the average in the parameters' place, for a while: it is evaluated and exported.

        Returns:
            Gives the average its turn; changes nothing where there is none.
        """
        if self.average is None:
            return nullcontext()
        return parameters_as(self.system.trained(), self.average)

    def return_to_best(self, folder: Path) -> None:
        """Take back what the guard's best check was made of; iterations done stay done.

        Args:
            folder: The run folder.

        Raises:
            CheckpointError: If the best checkpoint is damaged, or none was kept.
        """
        best = 0 if self.guard is None else self.guard.best.iteration
        with self._here.agreed():
            checkpoint = load_checkpoint(folder / _BEST / checkpoint_name(best), config=self.config)
            best_state = resume(self.system, self.config, self.prompts, checkpoint)
        self.optimizer, self.constraint = best_state.optimizer, best_state.constraint
        self.old, self.average = best_state.old, best_state.average
        self.loss_scale = best_state.loss_scale
        self.ahead = None  # by a policy that is left behind

    def save(self, folder: Path) -> Path:
        """Write a checkpoint and remove old ones.

        For the main process alone, or where parameters are sharded for all of them.

        Args:
            folder: The run folder.

        Returns:
            Folder of the checkpoint.
        """
        self._write(folder, "checkpoints")
        with self._here.agreed():
            if self._here.is_main:
                self._prune(folder)
        return folder / "checkpoints" / checkpoint_name(self.finished)

    def _prune(self, folder: Path) -> None:
        prune_checkpoints(folder / "checkpoints", keep=self.config.run.keep_checkpoints)
        best = "" if self.guard is None else checkpoint_name(self.guard.best.iteration)
        for path in (folder / _BEST).glob("iteration_*"):
            if path.name != best:  # which the checkpoint just written does not need any more
                shutil.rmtree(path)

    def keep_best(self, folder: Path) -> None:
        """Write the state of the guard's best check; older ones go with the next `save`.

        Args:
            folder: The run folder.
        """
        self._write(folder, _BEST)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the parameters, so that all of them must save."""
        return self._here.size > 1

    @property
    def _here(self) -> World:
        return shard_world({"policy": self.system.trained()})

    def _write(self, folder: Path, name: str) -> None:
        tensors, rest = split_optimizer_state(self.optimizer.state_dict())
        with self._here.agreed():  # only the first process reads what is beside the checkpoints
            numbers = self._numbers(folder, rest) if self._here.is_main else {}
        trained = {name: p.detach() for name, p in self.system.trained().items()}
        groups: dict[str, Mapping[str, torch.Tensor] | None]
        groups = {"policy": trained, "optimizer": tensors, "old": self.old, "average": self.average}
        groups["ahead"] = None if self.ahead is None else self.ahead.behaviour
        save_checkpoint(
            folder / name, self.finished, config=self.config, state=numbers,
            tensors={group: named for group, named in groups.items() if named is not None},
        )  # fmt: skip

    def _numbers(self, folder: Path, rest: dict[str, Any]) -> dict[str, Any]:
        """Collect what is saved as JSON."""
        return {
            "constraint": asdict(self.constraint),
            "optimizer": rest,
            "loss_scale": None if self.loss_scale is None else asdict(self.loss_scale),
            "prompts": prompts_digest(self.prompts),
            "prompts_met": met_prompts_digest(self.prompts, self.config, self.finished),
            "prompt_position": self.finished * self.config.run.objects_per_iteration,
            "guard": None if self.guard is None else self.guard.as_json(),
            "pending": None if self.pending is None else finite_values(self.pending),
            "records": seal_rows(folder, finished=self.finished, logged=self.logged),
            "weights": self.weights,
            "paths": absolute_paths(self.config),
            "origin": self.origin,
            **({"rewards": self.rewards} if self.rewards else {}),
        }


def begin(
    system: System, config: TrainConfig, world: World, prompts: Sequence[str]
) -> TrainingState:
    """Make the state of a new run.

    Args:
        system: System that is to be trained.
        config: The run.
        world: This process among all.
        prompts: All training prompts; some are sampled where ``constraint.threshold_objects``
            asks for it.

    Returns:
        A state with no iteration done.

    Raises:
        NonFiniteError: If a reward that the threshold is made of is not finite.

    Examples:
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> from mvczigal_ref.system import build_system
        >>> config = TrainConfig()
        >>> system = build_system(
        ...     config, device=torch.device("cpu"), components=tiny_components(seed=0)
        ... )
        >>> begin(system, config, World(), ["a red ball with a white nose"]).constraint.multiplier
        0.0
    """
    settings = config.constraint
    threshold = settings.threshold_init
    if threshold is None and settings.threshold_objects:
        chosen = prompt_batch(
            prompts, seed=config.run.seed, iteration=0, count=settings.threshold_objects
        )
        scores = evaluate(
            system, chosen, config=config, world=world, num_noises=1, seed=config.run.seed,
            keep_images=0,
        )  # fmt: skip
        threshold = float(scores.joint.double().mean())
    constraint = ConstraintState(
        multiplier=settings.multiplier_init,
        threshold=threshold or 0.0,
        initialised=threshold is not None,
    )
    trained, follows = system.trained(), config.objective.kind == "forward_process"
    return TrainingState(
        system, build_optimizer(trained, config.optim), constraint, 0, prompts, config,
        old=parameter_copies(trained) if follows else None,
        average=parameter_copies(trained) if config.optim.average_decay else None,
        loss_scale=initial_loss_scale(config),
    )  # fmt: skip


def resume(
    system: System, config: TrainConfig, prompts: Sequence[str], checkpoint: Checkpoint
) -> TrainingState:
    """Make the state that a checkpoint holds.

    Args:
        system: As at the run's beginning; its trained parameters are overwritten.
        config: The run.
        prompts: All training prompts, see
            :func:`~mvczigal_ref.training.met_prompts.require_same_prompts`.
        checkpoint: Read by :func:`~mvczigal_ref.training.run_folder.find_checkpoint`.

    Returns:
        The state, bit for bit as it was saved.

    Raises:
        CheckpointError: If tensors are not this run's.
    """
    for name in REQUIRED:
        restored(name, partial(checkpoint.state.__getitem__, name))
    load_strict(system.trained(), checkpoint.tensors["policy"], source="the checkpoint")
    optimizer = build_optimizer(system.trained(), config.optim)
    restored(
        "optimizer", lambda: restore_optimizer(optimizer, checkpoint.tensors, checkpoint.state)
    )
    constraint = restored("constraint", lambda: ConstraintState(**checkpoint.state["constraint"]))
    guard, scale = checkpoint.state.get("guard"), checkpoint.state.get("loss_scale")
    behaviour = _saved_values(system, checkpoint, "ahead", present="ahead" in checkpoint.tensors)
    return TrainingState(
        system, optimizer, constraint, checkpoint.iteration, prompts, config,
        guard=restored("guard", lambda: None if guard is None else GuardState.from_json(guard)),
        pending=checkpoint.state.get("pending"),
        weights=checkpoint.state.get("weights"),
        ahead=None if behaviour is None else Ahead(behaviour=behaviour),
        origin=checkpoint.state.get("origin"),
        # Runs of before there was one begin with it where they are.
        loss_scale=restored(
            "loss_scale", lambda: LossScale(**scale) if scale else initial_loss_scale(config)
        ),
        old=_saved_values(
            system, checkpoint, "old", present=config.objective.kind == "forward_process"
        ),
        average=_saved_values(
            system, checkpoint, "average", present=config.optim.average_decay > 0
        ),
    )  # fmt: skip


def initial_loss_scale(config: TrainConfig) -> LossScale | None:
    """Choose the loss scale that a run begins with.

    Args:
        config: The run.

    Returns:
        That of ``optim.loss_scale``; without one, 2^16 for a network in fp16. None where it is 1,
        and stays so.

    Examples:
        >>> initial_loss_scale(TrainConfig()) is None
        True
    """
    scale = config.optim.loss_scale
    if scale is None and config.model.dtype == "fp16":
        return LossScale()
    return None if scale in (None, 1.0) else LossScale(scale=scale)


def _saved_values(
    system: System, checkpoint: Checkpoint, name: str, *, present: bool
) -> dict[str, torch.Tensor] | None:
    """Read parameters beside those that learn, where the run has some."""
    if not present:
        return None
    values = parameter_copies(system.trained())
    load_strict(values, checkpoint.tensors.get(name, {}), source=f"the checkpoint's {name} policy")
    return values
