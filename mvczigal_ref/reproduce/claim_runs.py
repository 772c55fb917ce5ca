"""Runs of the claims: planned, trained where they are missing, and read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from time import sleep

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import RunFolderInUseError
from mvczigal_ref.files import owned
from mvczigal_ref.reproduce.arms import ArmRuns, read_arm
from mvczigal_ref.reproduce.claims import ARM_SETS, CLAIMS
from mvczigal_ref.reproduce.plans import PlannedRun, planned_runs, runs_there
from mvczigal_ref.training.events import Events
from mvczigal_ref.training.run_folder import is_finished
from mvczigal_ref.training.trainer import train

__all__ = ["arms_of", "claim_runs", "finished_arms", "train_missing"]

_PAUSE = 5.0  # between looks at runs that other processes train [s]


def arms_of(letters: Collection[str]) -> set[str]:
    """Name the arms that some claims need.

    Args:
        letters: Letters of claims; all if empty.

    Returns:
        Names of arms.

    Examples:
        >>> sorted(arms_of("ab"))
        ['tiny', 'tiny_per_view']
    """
    return {arm for one in CLAIMS if not letters or one.letter in letters for arm in one.arms}


def claim_runs(
    folder: Path,
    *,
    arms: Collection[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    progress: Callable[[], None] = lambda: None,
    keep_counts: bool = True,
) -> tuple[PlannedRun, ...]:
    """Plan the runs of some arms, seed by seed, so that claims get all their arms early.

    Args:
        folder: Holds one run folder per arm and seed.
        arms: Names of arms.
        seeds: Seeds of the runs.
        overrides: Settings of all arms, as ``section.name=value``.
        progress: Called after each arm that was counted.
        keep_counts: Whether counts of network calls are written into the folder, for the next
            command; those that are there are read in any case.

    Returns:
        The runs, the first seed of all arms first.

    Raises:
        CheckpointError: If a run folder holds a run of other settings.
        ConfigError: If a setting is refused.
    """
    planned = [
        planned_runs(
            one, folder, seeds=seeds, overrides=overrides, arms=arms, progress=progress,
            memory=folder / "calls.json", keep=keep_counts,
        )
        for one in ARM_SETS.values()
        if any(row.arm in arms for row in one.methods)
    ]  # fmt: skip
    return tuple(chain.from_iterable(zip(*chain.from_iterable(planned), strict=True)))


def train_missing(
    runs: Sequence[PlannedRun],
    *,
    tell: Callable[[PlannedRun], AbstractContextManager[Events]],
    done: Callable[[int], None] = lambda _: None,
) -> None:
    """Train every run that has not finished, but those that another process trains.

    Those are waited for, and taken over should their process end early: any number of processes
    may share one folder.

    Args:
        runs: Planned runs.
        tell: Gives the listener of each run.
        done: Called with the number of finished runs, whenever it may have changed.
    """
    left = list(runs)
    while left:
        waiting = []
        for run in left:
            if is_finished(run.folder, run.config):
                continue
            try:
                with owned(run.folder):
                    pass
                with tell(run) as events:
                    train(run.config, run.folder, world=World(), events=events)
            except RunFolderInUseError:
                waiting.append(run)
            done(sum(is_finished(one.folder, one.config) for one in runs))
        if waiting == left:
            sleep(_PAUSE)
        left = waiting


def finished_arms(
    folder: Path, *, seeds: Sequence[int], overrides: Sequence[str] = ()
) -> Mapping[str, ArmRuns]:
    """Read the runs that have finished, of all arms.

    Args:
        folder: Holds one run folder per arm and seed.
        seeds: Seeds that are looked for.
        overrides: Settings of all arms, as :func:`claim_runs` takes them.

    Returns:
        Runs by arm; arms without any are left out.

    Raises:
        CheckpointError: If a run folder holds a run of other settings.
    """
    folders: dict[str, dict[int, Path]] = {}
    for methods in ARM_SETS.values():
        for run in runs_there(methods, folder, seeds=seeds, overrides=overrides):
            if is_finished(run.folder, run.config):
                folders.setdefault(run.method.arm, {})[run.config.run.seed] = run.folder
    return {name: read_arm(by_seed) for name, by_seed in folders.items()}
