"""Rows beside the checkpoints, sealed by them: metrics and captions, one row per iteration."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import to_json
from mvczigal_ref.training.checkpoint_folder import latest_checkpoint, load_state
from mvczigal_ref.training.tracking import read_metrics

__all__ = ["check_rows", "require_rows", "seal_rows"]

_FILES = ("metrics.jsonl", "captions.jsonl")

# Seconds and bytes differ between two runs that are equal otherwise, as their checkpoints are.
_OF_THE_MACHINE = ("seconds/", "peak_memory")


def seal_rows(folder: Path, *, finished: int, logged: int) -> dict[str, dict[str, Any]]:
    """Digest the rows that a run has written, for its checkpoint.

    Args:
        folder: The run folder.
        finished: Iterations done, each with a row of captions where there are captions.
        logged: Iterations whose metrics are written.

    Returns:
        Number of rows and SHA-256 of each file that has them all; seconds and peak memory are left
        out.
    """
    seals = {}
    for name, count in zip(_FILES, (logged, finished), strict=True):
        rows = read_metrics(folder / name)
        if (folder / name).is_file() and len(rows) >= count:
            seals[name] = _seal(rows[:count])
    return seals


def require_rows(folder: Path, state: Mapping[str, Any]) -> None:
    """Refuse rows that are not those which a checkpoint has sealed.

    Args:
        folder: The run folder.
        state: JSON values of the checkpoint; those of an older version seal nothing.

    Raises:
        CheckpointError: If a file is cut, doubled, changed or of another run; names it.
    """
    _require_beginning(folder)
    for name, seal in state.get("records", {}).items():
        rows, count = read_metrics(folder / name), seal["rows"]
        if _seal(rows[:count]) != seal:
            reason = f"it holds {len(rows)}" if len(rows) < count else "it holds other rows"
            msg = (
                f"{str(folder / name)!r} must hold the {count} rows that the run wrote before its "
                f"newest checkpoint; {reason}. Restore the file, or begin a new run from the "
                "checkpoint by `--from`."
            )
            raise CheckpointError(msg)


def check_rows(folder: Path) -> None:
    """Compare a run's rows with what its newest checkpoint has sealed, if there is one.

    Args:
        folder: The run folder; its tensors are not read.

    Raises:
        CheckpointError: As :func:`require_rows`, or if the checkpoint is damaged.

    Examples:
        >>> check_rows(Path("absent"))
    """
    _require_beginning(folder)
    newest = latest_checkpoint(folder / "checkpoints")
    if newest is not None:
        require_rows(folder, load_state(newest))


def _require_beginning(folder: Path) -> None:
    """Refuse metrics whose first rows are missing."""
    path = folder / _FILES[0]
    rows = read_metrics(path)
    if rows and rows[0]["iteration"] != 0:
        msg = (
            f"line 1 of {str(path)!r} must be of iteration 0; got {rows[0]['iteration']}. Restore "
            "the file."
        )
        raise CheckpointError(msg)


def _seal(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    plain = [{k: v for k, v in row.items() if not k.startswith(_OF_THE_MACHINE)} for row in rows]
    text = to_json(json.loads(json.dumps(plain)))
    return {"rows": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}
