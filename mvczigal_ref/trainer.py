"""The loop around the iterations: resume, evaluate, save, log, stop."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file, save

from mvczigal_ref.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from mvczigal_ref.config import TrainConfig, fingerprint, load_config, to_dict
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.evaluation import Evaluation, PairedGain, evaluate, paired_gain
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.iteration import prompt_batch, run_iteration
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.loading import load_strict
from mvczigal_ref.optimizer_state import join_optimizer_state, split_optimizer_state
from mvczigal_ref.slices import Share
from mvczigal_ref.system import System, build_system
from mvczigal_ref.tracking import MetricsLog, StageTimer, Trackers, peak_memory
from mvczigal_ref.world.grammar import split_prompts

__all__ = ["Events", "RunResult", "load_policy", "read_prompts", "train"]


class Events:
    """What a run tells whoever watches it; the base class says nothing."""

    def stage(self, text: str) -> None:
        """Something long begins."""

    def iteration(self, finished: int, total: int, metrics: Mapping[str, float | None]) -> None:
        """An iteration has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a finished run reports."""

    folder: Path
    """The run folder."""

    per_view: PairedGain
    """Held-out per-view score, before and after."""

    joint: PairedGain
    """Held-out joint score, before and after."""


def read_prompts(name: str) -> list[str]:
    """Find the prompts that a configuration names.

    Args:
        name: ``world.train``, ``world.held_out``, or the path of a text file
            with one prompt a line.

    Returns:
        The prompts, blank lines left out.

    Raises:
        ConfigError: If there is no such list or file, or it is empty.
    """
    train_prompts, held_out = split_prompts()
    named = {"world.train": train_prompts, "world.held_out": held_out}
    if name in named:
        return named[name]
    path = Path(name).expanduser()
    if not path.is_file():
        msg = f"`run.prompts` must be one of {sorted(named)} or a text file; got {name!r}."
        raise ConfigError(msg)
    prompts = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not prompts:
        msg = f"`run.prompts` must hold at least one prompt; {name!r} is empty."
        raise ConfigError(msg)
    return prompts


def train(
    config: TrainConfig,
    folder: Path,
    *,
    world: World,
    events: Events | None = None,
    components: Components | None = None,
    held_out: list[str] | None = None,
) -> RunResult:
    """Train from a configuration, or go on from a run folder's last whole checkpoint.

    Args:
        config: The run. On a resume it must be the run's own, but for its length,
            saving, evaluation and trackers.
        folder: Run folder; made if absent.
        world: This process among all.
        events: Told of progress, in the main process.
        components: Models already loaded.
        held_out: Prompts to evaluate on; the tiny world's held-out ones if absent.

    Returns:
        Held-out scores before and after, on paired noises.

    Raises:
        CheckpointError: If the folder holds another run, or a damaged checkpoint.
        ConfigError: If settings contradict the number of processes.
        NonFiniteError: If a number is not finite; the last checkpoint stays good.
    """
    tell = events if events is not None and world.is_main else Events()
    Share.of(config, world)  # refuse impossible slices before anything is loaded
    prompts, judged_on = read_prompts(config.run.prompts), held_out or read_prompts("world.held_out")
    _claim(folder, config, world)
    tell.stage("loading models")
    system = build_system(config, device=world.device, components=components)
    judge = _Judge(system, config, world, folder, judged_on)
    found = latest_checkpoint(folder / "checkpoints")
    checkpoint = None if found is None else load_checkpoint(found, config=config)
    tell.stage("scoring held-out prompts before training")
    judge("before", 0)
    state = _start(system, config, world, prompts, checkpoint)
    with _stop_on_terminate() as stopped:
        _loop(state, prompts, judge, folder, tell, stopped)
    tell.stage("scoring held-out prompts after training")
    before, after = judge("before", 0), judge("after", config.run.iterations)
    result = RunResult(
        folder=folder,
        per_view=paired_gain(before.per_view, after.per_view),
        joint=paired_gain(before.joint, after.joint),
    )
    if world.is_main:
        summary = {"per_view": asdict(result.per_view), "joint": asdict(result.joint)}
        atomic_write(folder / "summary.json", to_json(summary))
    world.barrier()
    return result


@dataclass(slots=True)
class _State:
    """What the loop changes."""

    system: System
    optimizer: torch.optim.Optimizer
    constraint: ConstraintState
    finished: int
    config: TrainConfig
    world: World

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Give everything a checkpoint stores as tensors."""
        optimizer, _ = split_optimizer_state(self.optimizer.state_dict())
        trained = {name: p.detach() for name, p in self.system.trained().items()}
        return {"policy": trained, "optimizer": optimizer}

    def numbers(self) -> dict[str, Any]:
        """Give the rest. Noise and prompts are functions of seed and iteration alone."""
        _, rest = split_optimizer_state(self.optimizer.state_dict())
        position = self.finished * self.config.run.objects_per_iteration
        return {
            "constraint": asdict(self.constraint),
            "optimizer": rest,
            "seed": self.config.run.seed,
            "prompt_position": position,
        }


def _start(
    system: System,
    config: TrainConfig,
    world: World,
    prompts: list[str],
    checkpoint: Checkpoint | None,
) -> _State:
    trained = system.trained()
    optimizer = torch.optim.AdamW(
        list(trained.values()),
        lr=config.optim.lr,
        betas=config.optim.betas,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
    )
    if checkpoint is None:
        constraint = _first_constraint(system, config, world, prompts)
        return _State(system, optimizer, constraint, 0, config, world)
    load_strict(trained, checkpoint.tensors["policy"], source="the checkpoint")
    saved = checkpoint.state["optimizer"]
    optimizer.load_state_dict(join_optimizer_state(checkpoint.tensors["optimizer"], saved))
    constraint = ConstraintState(**checkpoint.state["constraint"])
    return _State(system, optimizer, constraint, checkpoint.iteration, config, world)


def _first_constraint(
    system: System, config: TrainConfig, world: World, prompts: list[str]
) -> ConstraintState:
    wanted = config.constraint
    threshold = wanted.threshold_init
    if threshold is None and wanted.threshold_objects:
        chosen = prompt_batch(
            prompts, seed=config.run.seed, iteration=0, count=wanted.threshold_objects
        )
        scores = evaluate(
            system, chosen, config=config, world=world, num_noises=1, seed=config.run.seed,
            keep_images=0,
        )  # fmt: skip
        threshold = float(scores.joint.double().mean())
    return ConstraintState(
        multiplier=wanted.multiplier_init,
        threshold=threshold or 0.0,
        initialised=threshold is not None,
    )


def _loop(
    state: _State,
    prompts: list[str],
    judge: "_Judge",
    folder: Path,
    tell: Events,
    stopped: Callable[[], bool],
) -> None:
    """Run the iterations that are left."""
    config, world, system = state.config, state.world, state.system
    timer = StageTimer(world.device)
    log = MetricsLog(folder / "metrics.jsonl", finished=state.finished) if world.is_main else None
    trackers = Trackers(
        config.run.trackers if world.is_main else (), folder=folder, config=config,
        finished=state.finished,
    )  # fmt: skip
    if state.finished == 0:
        _save(state, folder)
    try:
        for iteration in range(state.finished, config.run.iterations):
            _warm_up(state.optimizer, iteration, config)
            batch = prompt_batch(
                prompts, seed=config.run.seed, iteration=iteration,
                count=config.run.objects_per_iteration,
            )  # fmt: skip
            result = run_iteration(
                system, state.optimizer, state.constraint, batch, iteration=iteration,
                config=config, world=world, timer=timer,
            )  # fmt: skip
            state.constraint, state.finished = result.constraint, iteration + 1
            metrics: dict[str, float | None] = {**result.metrics}
            every = config.run.evaluate_every
            if every and state.finished % every == 0 and state.finished < config.run.iterations:
                scores = judge(f"at_{state.finished:06d}", state.finished)
                metrics["held_out/per_view"] = float(scores.per_view.double().mean())
                metrics["held_out/joint"] = float(scores.joint.double().mean())
            metrics |= {**timer.take(), "peak_memory": peak_memory(world.device)}
            if log is not None:
                log.append(iteration, metrics)
                trackers.log(iteration, metrics)
            tell.iteration(state.finished, config.run.iterations, metrics)
            stop = world.anywhere(stopped())
            last = state.finished == config.run.iterations
            if stop or last or state.finished % config.run.checkpoint_every == 0:
                _save(state, folder)
            if stop:
                raise KeyboardInterrupt
    finally:
        trackers.close()


def _warm_up(optimizer: torch.optim.Optimizer, iteration: int, config: TrainConfig) -> None:
    """Set the learning rate of an iteration: a function of its index alone."""
    warmup = config.optim.warmup_iterations
    rate = config.optim.lr * min(1.0, (iteration + 1) / warmup) if warmup else config.optim.lr
    for group in optimizer.param_groups:
        group["lr"] = rate


def _save(state: _State, folder: Path) -> None:
    if state.world.is_main:
        save_checkpoint(
            folder / "checkpoints", state.finished, tensors=state.tensors(),
            state=state.numbers(), config=state.config,
        )  # fmt: skip
        prune_checkpoints(folder / "checkpoints", keep=state.config.run.keep_checkpoints)
    state.world.barrier()


@dataclass(frozen=True, slots=True)
class _Judge:
    """Held-out scores, each kept in a file so that a resume finds it."""

    system: System
    config: TrainConfig
    world: World
    folder: Path
    prompts: list[str]

    def __call__(self, name: str, iteration: int) -> Evaluation:
        """Read the scores of an occasion, or measure and keep them."""
        path = self.folder / "evaluations" / f"{name}_{iteration:06d}.safetensors"
        if path.is_file():
            return Evaluation(**load_file(path))
        scores = evaluate(
            self.system, self.prompts, config=self.config, world=self.world,
            num_noises=self.config.run.evaluation_noises,
        )  # fmt: skip
        self.world.barrier()
        if self.world.is_main:
            path.parent.mkdir(exist_ok=True)
            named = {"per_view": scores.per_view, "joint": scores.joint, "images": scores.images}
            atomic_write(path, save(named))
        self.world.barrier()
        return scores


def _claim(folder: Path, config: TrainConfig, world: World) -> None:
    """Make the folder this run's, or refuse a folder of another run."""
    path = folder / "config.json"
    if path.is_file():
        saved = load_config(file=path)
        if fingerprint(saved) != fingerprint(config):
            msg = (
                f"{str(folder)!r} holds a run with other settings (recipe {saved.recipe!r}). "
                "Choose another folder, or pass that run's own settings to go on with it."
            )
            raise CheckpointError(msg)
    world.barrier()
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, to_json(to_dict(config)))


@contextmanager
def _stop_on_terminate() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and the first Ctrl-C into a checkpoint and a clean stop."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are the caller's
        old = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def load_policy(folder: Path, *, device: torch.device) -> tuple[System, TrainConfig]:
    """Rebuild the trained system of a run folder.

    Args:
        folder: Written by :func:`train`.
        device: Where everything goes.

    Returns:
        The system with the newest checkpoint's parameters, and the run's configuration.

    Raises:
        CheckpointError: If the folder is no run, or its checkpoint is damaged.
    """
    found = latest_checkpoint(folder / "checkpoints")
    if found is None:
        msg = f"{str(folder)!r} holds no whole checkpoint. Pass a folder that training wrote."
        raise CheckpointError(msg)
    checkpoint = load_checkpoint(found)
    system = build_system(checkpoint.config, device=device)
    load_strict(system.trained(), checkpoint.tensors["policy"], source=str(found))
    return system, checkpoint.config
