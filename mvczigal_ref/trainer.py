"""The loop around the iterations: resume, evaluate, save, log, stop."""

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch

from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.evaluation import PairedGain, paired_gain
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.held_out import HeldOut
from mvczigal_ref.iteration import prompt_batch, run_iteration
from mvczigal_ref.models.components import Components
from mvczigal_ref.slices import Share
from mvczigal_ref.system import build_system
from mvczigal_ref.tracking import MetricsLog, StageTimer, Trackers, peak_memory
from mvczigal_ref.training_state import (
    TrainingState,
    begin,
    find_checkpoint,
    load_policy,
    resume,
)
from mvczigal_ref.world.grammar import split_prompts

__all__ = ["Events", "RunResult", "load_policy", "read_prompts", "train"]


class Events:
    """What a run tells whoever watches it; the base class says nothing."""

    def stage(self, text: str) -> None:
        """Hear that something long begins.

        Args:
            text: What it is.
        """

    def iteration(self, finished: int, total: int, metrics: Mapping[str, float | None]) -> None:
        """Hear that an iteration has ended.

        Args:
            finished: Iterations done, those before a resume too.
            total: Iterations of the whole run.
            metrics: What the metrics file says of it.
        """


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

    Examples:
        >>> len(read_prompts("world.held_out"))
        40
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
    """Train from a configuration, or go on from a run folder's newest checkpoint.

    SIGTERM or Ctrl-C ends the run after the iteration in hand, with a checkpoint; a second
    Ctrl-C at once. However a run ended, the same call goes on with it, to the same bits.

    Args:
        config: The run. On a resume it must be the run's own, but for its length,
            saving, evaluation and trackers.
        folder: Run folder; made if absent.
        world: This process among all. An exception in one process is raised in all.
        events: Told of progress, in the main process.
        components: Models already loaded, changed in place.
        held_out: Prompts to evaluate on; the tiny world's held-out ones if absent.

    Returns:
        Held-out scores before and after, on paired noises.

    Raises:
        CheckpointError: If the folder holds another run, or a damaged checkpoint; nothing
            in it is changed.
        ConfigError: If settings contradict the number of processes.
        NonFiniteError: If a number is not finite; the last checkpoint stays good.
        KeyboardInterrupt: After a stop that was asked for.

    Examples:
        >>> import tempfile
        >>> from mvczigal_ref.config import load_config
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> config = load_config(
        ...     overrides=[
        ...         "run.iterations=1",
        ...         "run.objects_per_iteration=2",
        ...         "run.objects_per_slice=1",
        ...         "run.evaluation_noises=1",
        ...         "sampler.num_steps=2",
        ...     ]
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(
        ...         config,
        ...         Path(folder),
        ...         world=World(),
        ...         components=tiny_components(
        ...             seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1)
        ...         ),
        ...         held_out=["a red ball with a white nose"],
        ...     )
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['checkpoints', 'config.json', 'evaluations', 'metrics.jsonl', 'summary.json']
    """
    tell = events if events is not None and world.is_main else Events()
    with world.together():
        Share.of(config, world)  # refuse impossible slices before anything is loaded
        prompts = read_prompts(config.run.prompts)
        checkpoint = find_checkpoint(folder, config)
        world.barrier()  # until all have read, nothing is written
        if world.is_main:
            atomic_write(folder / "config.json", to_json(to_dict(config)))
        tell.stage("loading models")
        system = build_system(config, device=world.device, components=components)
        judge = HeldOut(
            system=system, prompts=held_out or read_prompts("world.held_out"), folder=folder,
            config=config, world=world,
        )  # fmt: skip
        tell.stage("scoring held-out prompts before training")
        judge("before", 0)
        if checkpoint is None:
            state = begin(system, config, world, prompts)
        else:
            state = resume(system, config, prompts, checkpoint)
        with _stop_on_terminate() as stopped:
            _loop(state, judge, folder, tell, stopped, world)
        tell.stage("scoring held-out prompts after training")
        before, after = judge("before", 0), judge("after", config.run.iterations)
        result = RunResult(
            folder=folder,
            per_view=paired_gain(before.per_view, after.per_view),
            joint=paired_gain(before.joint, after.joint),
        )
        if world.is_main:
            atomic_write(folder / "summary.json", to_json(_summary(result)))
        world.barrier()
    return result


def _loop(
    state: TrainingState,
    judge: HeldOut,
    folder: Path,
    tell: Events,
    stopped: Callable[[], bool],
    world: World,
) -> None:
    """Run the iterations that are left."""
    config, every = state.config, state.config.run.evaluate_every
    timer = StageTimer(world.device)
    log = MetricsLog(folder / "metrics.jsonl", finished=state.finished) if world.is_main else None
    trackers = Trackers(
        config.run.trackers if world.is_main else (), folder=folder, config=config,
        finished=state.finished,
    )  # fmt: skip
    try:
        if state.finished == 0:
            _save(state, folder, world)
        for iteration in range(state.finished, config.run.iterations):
            _set_learning_rate(state.optimizer, iteration, config)
            batch = prompt_batch(
                state.prompts, seed=config.run.seed, iteration=iteration,
                count=config.run.objects_per_iteration,
            )  # fmt: skip
            result = run_iteration(
                state.system, state.optimizer, state.constraint, batch, iteration=iteration,
                config=config, world=world, timer=timer,
            )  # fmt: skip
            state.constraint, state.finished = result.constraint, iteration + 1
            last = state.finished == config.run.iterations
            metrics: dict[str, float | None] = {**result.metrics}
            if every and state.finished % every == 0:
                metrics |= judge.metrics("after" if last else "at", state.finished)
            metrics |= {**timer.take(), "peak_memory": peak_memory(world.device)}
            if log is not None:
                log.append(iteration, metrics)
                trackers.log(iteration, metrics)
            tell.iteration(state.finished, config.run.iterations, metrics)
            stop = world.anywhere(stopped())
            if stop or last or state.finished % config.run.checkpoint_every == 0:
                _save(state, folder, world)
            if stop:
                raise KeyboardInterrupt
    finally:
        trackers.close()


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, iteration: int, config: TrainConfig
) -> None:
    """Set the learning rate of an iteration: a function of its index alone."""
    warmup, decay = config.optim.warmup_iterations, config.optim.decay_iterations
    rate = config.optim.lr * min(1.0, (iteration + 1) / warmup) if warmup else config.optim.lr
    if decay:
        rate *= max(0.0, 1 - iteration / decay)
    for group in optimizer.param_groups:
        group["lr"] = rate


def _save(state: TrainingState, folder: Path, world: World) -> None:
    if world.is_main:
        state.save(folder)
    world.barrier()


def _summary(result: RunResult) -> dict[str, dict[str, float | None]]:
    """Give the result as JSON values; it has no word for an error that a single prompt leaves."""
    return {
        name: {k: v if math.isfinite(v) else None for k, v in asdict(gain).items()}
        for name, gain in (("per_view", result.per_view), ("joint", result.joint))
    }


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
