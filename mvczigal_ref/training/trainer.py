"""The loop around the iterations: resume, evaluate, save, log, stop."""

import errno
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mvczigal_ref.condition.protocol import ConditionEnhancer
from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import (
    DiskFullError,
    ProcessLostError,
    ServiceUnavailableError,
)
from mvczigal_ref.evaluation.guard import GuardState
from mvczigal_ref.evaluation.held_out import HeldOut
from mvczigal_ref.evaluation.scores import PairedGain, paired_gain
from mvczigal_ref.evaluation.watch import Watch
from mvczigal_ref.files import atomic_write, finite_values, owned, sweep, to_json
from mvczigal_ref.method.slices import Share
from mvczigal_ref.method.steps import check_grid, check_steps
from mvczigal_ref.models.backbone import AnyComponents
from mvczigal_ref.models.policy_files import trained_lora
from mvczigal_ref.models.sharding import gathered
from mvczigal_ref.system import System, build_system
from mvczigal_ref.system.enhancer import build_enhancer
from mvczigal_ref.system.scorers import check_judges
from mvczigal_ref.training.checkpoint import Checkpoint
from mvczigal_ref.training.checkpoint_folder import latest_checkpoint
from mvczigal_ref.training.events import Events
from mvczigal_ref.training.exporting import export_policy
from mvczigal_ref.training.identity import require_same_weights, weights_identity
from mvczigal_ref.training.loop import TrainingLoop, run_view
from mvczigal_ref.training.low_bit import check_optimizer
from mvczigal_ref.training.met_prompts import require_same_prompts
from mvczigal_ref.training.origin import begin_from, origin_of, read_origin, write_origin
from mvczigal_ref.training.places import in_places
from mvczigal_ref.training.prompts import run_prompts, warn_of_cut_prompts
from mvczigal_ref.training.rewards import require_same_rewards, reward_sources, unhashed
from mvczigal_ref.training.run_folder import SUMMARY, find_checkpoint
from mvczigal_ref.training.sealed_rows import require_rows
from mvczigal_ref.training.starts import recorded
from mvczigal_ref.training.state import TrainingState, begin, resume
from mvczigal_ref.training.stops import stop_on_terminate
from mvczigal_ref.training.trackers import Trackers, check_trackers

__all__ = ["RunResult", "train"]

POLICY = "policy"
"""Sub-folder of a run that has ended: its trained parameters, as other tools load them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """Outcome of a finished run."""

    folder: Path
    """The run folder."""

    per_view: PairedGain
    """Held-out per-view score, before and after."""

    joint: PairedGain
    """Held-out joint score, before and after."""

    guard: GuardState | None = None
    """State of the held-out guard at the end; None without one."""


def train(
    config: TrainConfig,
    folder: Path,
    *,
    world: World,
    events: Events | None = None,
    components: AnyComponents | None = None,
    held_out: list[str] | None = None,
    start: str | Path | None = None,
) -> RunResult:
    """Train from a configuration, or go on from a run folder's newest checkpoint.

    SIGTERM, SIGHUP or Ctrl-C ends the run after the iteration in hand, with a checkpoint; a second
    Ctrl-C at once. Where the settings ask for it, a guard looks at held-out scores that are not
    trained on, and ends the run when they fall. However a run ended, the same call goes on with
    it, to the same bits. A run that ended leaves what it trained in the sub-folder ``policy``, as
    PEFT and diffusers load it: whole, or not at all; see
    :func:`~mvczigal_ref.training.exporting.export_policy`.

    Args:
        config: The run. On a resume it must be the run's own, but for its length,
            saving, evaluation and trackers.
        folder: Run folder; made if absent.
        world: This process among all. An exception in one process is raised in all.
        events: Told of progress, in the main process.
        components: Models already loaded, changed in place.
        held_out: Prompts to evaluate on; those that ``run.held_out`` names if absent.
        start: Run folder, ``RUN@ITERATION``, or exported LoRA with whose parameters a new run
            begins, in place of the base weights'; optimiser, constraint and iterations begin anew.
            A resume may leave it out. See :func:`~mvczigal_ref.training.origin.read_origin`.

    Returns:
        Held-out scores before and after, on paired noises.

    Raises:
        CheckpointError: If the folder holds another run, or a damaged checkpoint or file beside
            it, the base weights have changed, or ``start`` does not fit; nothing is changed.
        ConfigError: If settings contradict the number of processes, prompts are refused, or a
            tracker cannot start; nothing is loaded then.
        DiskFullError: If the disk is full; names what was written and the last checkpoint.
        NonFiniteError: If a number is not finite; the last checkpoint stays good.
        ServiceUnavailableError: If a scorer's or a caption model's service is out; what was
            finished is saved first.
        KeyboardInterrupt: After a stop that was asked for.
        RunFolderInUseError: If another process trains into the folder.

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
        ['checkpoints', 'config.json', 'evaluations', 'metrics.jsonl', 'policy', 'starts.json', \
'summary.json']
    """
    if world.size > 1:
        sharded = config.run.sharding == "full"
        world = replace(world, sharded=sharded, reduction=config.run.reduction)
    tell = events if events is not None and world.is_main else Events()
    run = _Run(
        config=config, folder=folder, world=world, tell=tell, components=components,
        held_out=held_out, start=start,
    )  # fmt: skip
    with ExitStack() as ownership:
        try:
            with world.together():
                if world.is_main:
                    ownership.enter_context(owned(folder))
                world.barrier()  # until the folder is ours
                return _train(run, ownership)
        except ServiceUnavailableError:
            # Captions and scores come before changes: the state is the last finished iteration's.
            # All processes have agreed on this error, so that parts can be saved, too.
            if run.state is not None and (world.is_main or run.state.sharded):
                with suppress(OSError):  # the service is what is told of; nothing there is lost
                    run.state.save(folder)
            with suppress(ProcessLostError):  # a launcher ends all as soon as one has ended
                world.barrier()
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(_no_room(error, folder)) from error
            raise


@dataclass(kw_only=True, slots=True)
class _Run:
    """Arguments of a run, and its state as soon as there is one."""

    config: TrainConfig
    folder: Path
    world: World
    tell: Events
    components: AnyComponents | None
    held_out: list[str] | None
    start: str | Path | None
    state: TrainingState | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ready:
    """Everything that a run needs, loaded and checked; nothing has been computed yet."""

    system: System
    judge: HeldOut
    watch: Watch
    enhancer: ConditionEnhancer | None
    prompts: Sequence[str]
    checkpoint: Checkpoint | None
    sources: dict[str, dict[str, str | None]]
    weights: dict[str, str] | None
    origin: dict[str, Any] | None


def _train(run: _Run, ownership: ExitStack) -> RunResult:
    """Train, whole or from the newest checkpoint on."""
    config, folder, world, tell = run.config, run.folder, run.world, run.tell
    with world.agreed():
        ready = _prepare(run, ownership)
    tell.stage("scoring held-out prompts before training")
    before = ready.judge("before", 0)  # of the parameters that the run begins with
    run.state = state = _first_state(run, ready)
    with ExitStack() as stack:
        with world.agreed():
            tell.begin(run_view(state, folder))
            tell.evaluation(run_view(state, folder), "before", before.means())
            names = config.run.trackers if world.is_main else ()
            trackers = stack.enter_context(
                Trackers(names, folder=folder, config=config, finished=state.logged)
            )
            if state.logged == 0:
                trackers.log_sheet(0, "held_out/before", before.images)
        with stop_on_terminate() as stopped:
            TrainingLoop(
                state, ready.judge, ready.watch, folder, tell, world, trackers, ready.enhancer
            ).run(stopped)
        tell.stage("scoring held-out prompts after training")
        with state.averaged():
            after = ready.judge("after", state.finished)
        with world.agreed():
            trackers.log_sheet(max(state.finished - 1, 0), "held_out/after", after.images)
            tell.evaluation(run_view(state, folder), "after", after.means())
    result = RunResult(
        folder=folder,
        per_view=paired_gain(before.per_view, after.per_view),
        joint=paired_gain(before.joint, after.joint),
        guard=state.guard,
    )
    with state.averaged(), gathered(ready.system.backbone.network), world.agreed():
        if world.is_main:
            policy: Any = ready.system.policy
            export_policy(trained_lora(policy) or policy, config, folder / POLICY)
            atomic_write(folder / SUMMARY, to_json(_summary(result)))
    world.barrier()
    tell.end(run_view(state, folder))
    return result


def _prepare(run: _Run, ownership: ExitStack) -> _Ready:
    """Check and load everything, and claim the folder once no process refuses."""
    config, folder, world, tell = run.config, run.folder, run.world, run.tell
    Share.of(config, world)  # refuse impossible slices before anything is loaded
    check_grid(config)
    with warnings.catch_warnings():
        if not world.is_main:
            warnings.simplefilter("ignore")  # the main process warns
        prompts, chosen = run_prompts(config, held_out=run.held_out)
    checkpoint = find_checkpoint(folder, config)
    origin = None if run.start is None else read_origin(run.start, config)
    record = origin_of(folder, origin, checkpoint)
    weights = None if run.components is not None else weights_identity(config)
    if checkpoint is not None:
        require_rows(folder, checkpoint.state)
        require_same_prompts(prompts, config, checkpoint)
        if weights is not None:
            require_same_weights(config, checkpoint.state, weights)
        require_same_rewards(config, checkpoint.state)
    check_judges(config)
    check_optimizer(config)
    if world.is_main:
        check_trackers(config.run.trackers)
    enhancer = None
    if not config.objective.compares_pairs:
        enhancer = build_enhancer(config.condition, device=world.device, prompts=prompts)
    world.barrier()  # until all have read, nothing is written
    tell.stage("loading models")
    sources = reward_sources(config)  # of the scorers, which are built next, before any network
    system = build_system(config, device=world.device, components=run.components, world=world)
    if weights is not None:
        weights = weights_identity(config)  # the commit of what has just been downloaded, too
        require_same_weights(config, {} if checkpoint is None else checkpoint.state, weights)
    if world.is_main:
        warn_of_cut_prompts(system.components, prompts, setting="run.prompts")
        warn_of_cut_prompts(system.components, chosen, setting="run.held_out")
    judge = HeldOut(
        system=system, prompts=chosen, folder=folder, config=config, world=world,
        progress=tell.progress,
    )  # fmt: skip
    judge.refuse_other_prompts()
    judge.refuse_damaged(("before", 0), ("after", config.run.iterations))
    first = begin_from(folder, system, origin, record)
    if not config.objective.compares_pairs:
        check_steps(system, config)
    world.barrier()  # until nobody refuses any more
    if world.is_main:
        sweep(folder)
        (folder / SUMMARY).unlink(missing_ok=True)  # the run goes on: it has not ended
    if first is not None and record is None:
        write_origin(folder, first, system.trained(), world)
    if world.is_main:
        atomic_write(folder / "config.json", to_json(to_dict(in_places(config))))
    if checkpoint is None or checkpoint.iteration < config.run.iterations:
        ownership.enter_context(recorded(folder, world))
    if origin is not None and record is None:
        for line in origin.lines:
            tell.note(line)
    for name in unhashed(sources):
        tell.note(
            f"the source of {name!r} cannot be read: a resumed run cannot tell whether it is the "
            "same function."
        )
    return _Ready(
        system=system, judge=judge, enhancer=enhancer, prompts=prompts, checkpoint=checkpoint,
        watch=Watch(system=system, prompts=chosen, config=config, world=world),
        sources=sources, weights=weights, origin=first,
    )  # fmt: skip


def _first_state(run: _Run, ready: _Ready) -> TrainingState:
    """Make a new run's state, or the one that the checkpoint holds."""
    config, prompts = run.config, ready.prompts
    if ready.checkpoint is None:
        state = begin(ready.system, config, run.world, prompts)
    else:
        with run.world.agreed():
            state = resume(ready.system, config, prompts, ready.checkpoint)
    state.weights = state.weights if ready.weights is None else ready.weights
    state.origin, state.rewards = ready.origin, ready.sources
    return state


def _no_room(error: OSError, folder: Path) -> str:
    """Say what could not be written, and from where the run will go on."""
    newest = latest_checkpoint(folder / "checkpoints")
    place = f"cannot write {str(error.filename or folder)!r}: {error.strerror}."
    text = f"{place} Make room and start again; the run "
    return text + ("begins anew." if newest is None else f"goes on from {str(newest)!r}.")


def _summary(result: RunResult) -> dict[str, Any]:
    """Give the result as JSON values; it has no word for an error that a single prompt leaves."""
    gains: dict[str, Any] = {
        name: finite_values(asdict(gain))
        for name, gain in (("per_view", result.per_view), ("joint", result.joint))
    }
    if result.guard is not None:
        gains["guard"] = result.guard.as_json()
    return gains
