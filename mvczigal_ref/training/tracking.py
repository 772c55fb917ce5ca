"""Reports of a run: one JSON line per iteration, seconds and memory."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvczigal_ref.errors import CheckpointError, quoted
from mvczigal_ref.files import atomic_write, finite_values, writing

if TYPE_CHECKING:
    import torch

__all__ = [
    "MetricsLog",
    "StageTimer",
    "peak_memory",
    "read_metrics",
]


class MetricsLog:
    """A JSON Lines file with one line per iteration, each on the disk before the next begins.

    Args:
        path: The file; it need not exist.
        finished: Iterations of the checkpoint that the run goes on from, 0 for a new run. Lines
            past it are cut off, because the run writes them again; so is a torn last line.
    """

    def __init__(self, path: Path, *, finished: int = 0) -> None:
        self._path = path
        rows = [row for row in read_metrics(path) if row["iteration"] < finished]
        atomic_write(path, "".join(map(_line, rows)))
        self._next = finished

    def append(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Write one iteration's metrics.

        Args:
            iteration: Index of the iteration, 0 the first; one more than the last that was written.
            metrics: JSON values by name. A number that is not finite, for which JSON has no word,
                becomes null.

        Raises:
            ValueError: If the iteration is not the next.
        """
        if iteration != self._next:
            msg = f"`iteration` must be {self._next}, the next to write; got {iteration}."
            raise ValueError(msg)
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line({"iteration": iteration, **metrics}))
            file.flush()
            os.fsync(file.fileno())
        self._next += 1


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file; a last line that a kill tore off is left out.

    Args:
        path: The file; one that does not exist holds nothing.

    Returns:
        One dictionary per iteration, each with the key `iteration`.

    Raises:
        CheckpointError: If a line before the last is damaged, or an iteration is missing, repeated
            or out of order.
    """
    if not path.exists():
        return []
    # Bytes that are no UTF-8 make a line that is no JSON, or a text that no run writes.
    *lines, _torn = path.read_bytes().decode("utf-8", "replace").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({"iteration": int(row["iteration"]), **row})
        except (ValueError, TypeError, KeyError) as error:
            msg = (
                f"line {number} of {str(path)!r} must be an iteration's metrics; got "
                f"{quoted(line)}. Restore the file."
            )
            raise CheckpointError(msg) from error
        if rows[-1]["iteration"] != rows[0]["iteration"] + number - 1:
            msg = (
                f"line {number} of {str(path)!r} must be of iteration "
                f"{rows[0]['iteration'] + number - 1}, as one row follows another; got "
                f"{rows[-1]['iteration']}. Restore the file."
            )
            raise CheckpointError(msg)
    return rows


class StageTimer:
    """Seconds by stage, over one iteration.

    Args:
        device: Device of the stages; an accelerator is waited for at both ends of a stage.

    Examples:
        >>> timer = StageTimer()
        >>> with timer("rollout"):
        ...     pass
        >>> list(timer.take())
        ['seconds/rollout']
        >>> timer.take()
        {}
    """

    def __init__(self, device: "torch.device | None" = None) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time inside to a stage, however the inside ends.

        Args:
            stage: The stage's name.

        Yields:
            Nothing.
        """
        start = self._now()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + self._now() - start

    def take(self) -> dict[str, float]:
        """Give the seconds of each stage since the last call, and begin again.

        Returns:
            Seconds by `seconds/<stage>`, in the order in which the stages first ran.
        """
        taken = {f"seconds/{stage}": seconds for stage, seconds in self._seconds.items()}
        self._seconds = {}
        return taken

    def _now(self) -> float:
        if self._device is not None and self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def peak_memory(device: "torch.device") -> int | None:
    """Measure the most memory that this process has held.

    Args:
        device: A CUDA device for the tensors allocated there, else the whole process on the CPU.

    Returns:
        Peak since the process began [bytes]; None on the CPU under Windows, which does not tell.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # as on Windows
        return None
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite_values(row), allow_nan=False) + "\n"
