"""Run folder: its newest checkpoint, or the remains of another run."""

from pathlib import Path

from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.config.run_file import run_config
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.training.checkpoint import Checkpoint, load_checkpoint
from mvczigal_ref.training.checkpoint_folder import latest_checkpoint, load_state
from mvczigal_ref.training.identity import require_same_weights
from mvczigal_ref.training.places import in_places, run_difference

__all__ = ["SUMMARY", "find_checkpoint", "is_finished", "load_newest"]

SUMMARY = "summary.json"
"""File that a run which has ended leaves last; gone while it goes on."""


# A folder that holds one of these holds a run.
_WRITTEN = ("checkpoints", "evaluations", "metrics.jsonl", "policy", SUMMARY)


def find_checkpoint(folder: Path, config: TrainConfig) -> Checkpoint | None:
    """Read the newest checkpoint of a run folder, changing nothing.

    Args:
        folder: The run folder; it need not exist.
        config: The run.

    Returns:
        The checkpoint, or None if there is none yet.

    Raises:
        CheckpointError: If the folder holds another run, or a checkpoint that is damaged, of
            another run, of other base weights by another name, or past this run's end.

    Examples:
        >>> find_checkpoint(Path("absent"), TrainConfig()) is None
        True
    """
    _refuse_foreign(folder, config)
    newest = latest_checkpoint(folder / "checkpoints")
    if newest is None:
        return None
    checkpoint = load_checkpoint(newest, config=config)
    there = in_places(checkpoint.config, checkpoint.state.get("paths")).model
    here = in_places(config).model
    if (there.weights, there.sources) != (here.weights, here.sources):
        require_same_weights(config, checkpoint.state)
    if checkpoint.iteration > config.run.iterations:
        msg = (
            f"`run.iterations` must be at least {checkpoint.iteration}, what {str(newest)!r} has "
            f"finished; got {config.run.iterations}. Ask for more, or choose another folder."
        )
        raise CheckpointError(msg)
    return checkpoint


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Say whether a folder holds just this run, ended, so that nothing is left to do.

    Args:
        folder: The run folder; it need not exist.
        config: The run, all of its settings.

    Returns:
        True if it does; False where something is missing or was asked for differently.

    Raises:
        CheckpointError: If the folder holds another run.

    Examples:
        >>> is_finished(Path("absent"), TrainConfig())
        False
    """
    _refuse_foreign(folder, config)
    if not (folder / SUMMARY).is_file():
        return False
    saved = run_config(folder)
    return to_dict(in_places(saved)) == to_dict(in_places(config))


def load_newest(folder: Path) -> Checkpoint:
    """Read the newest checkpoint of a run folder to use it, whose run may go on meanwhile.

    Args:
        folder: Written by training.

    Returns:
        Content of the checkpoint without the optimiser's moments.

    Raises:
        CheckpointError: If the folder is no run, or its newest checkpoint is damaged.

    Examples:
        >>> load_newest(Path("absent"))
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: 'absent' holds no checkpoint. Pass a folder that \
training wrote.
    """
    path = latest_checkpoint(folder / "checkpoints")
    while path is not None:
        try:
            return load_checkpoint(path, learning=False)
        except (CheckpointError, OSError):
            newest = latest_checkpoint(folder / "checkpoints")
            if newest == path:
                raise
            path = newest  # the run has written it, and removed the one before
    msg = f"{str(folder)!r} holds no checkpoint. Pass a folder that training wrote."
    raise CheckpointError(msg)


def _refuse_foreign(folder: Path, config: TrainConfig) -> None:
    """Refuse a folder that holds another run, or files of a run that is not there."""
    path = folder / "config.json"
    if not path.is_file():
        remains = [name for name in _WRITTEN if (folder / name).exists()]
        if remains:
            msg = f"{str(folder)!r} holds {', '.join(remains)} of a run without its config.json. "
            raise CheckpointError(msg + "Restore that file, or choose another folder.")
        return
    saved = run_config(folder)
    there, here = in_places(saved), in_places(config)
    differing = run_difference(there, here, {})
    newest = latest_checkpoint(folder / "checkpoints") if differing else None
    if newest is not None:
        differing = run_difference(there, here, load_state(newest))
    if differing:
        msg = (
            f"{str(folder)!r} holds another run (recipe {saved.recipe!r}): {differing}. "
            "Choose another folder, or pass that run's own settings to go on with it. `--from "
            f"{folder}` with another `--out` begins a new run with its parameters."
        )
        raise CheckpointError(msg)
