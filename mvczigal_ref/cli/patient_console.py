"""Console of a long run, whose reader may go before the run has ended."""

import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from mvczigal_ref.errors import printable
from mvczigal_ref.files import to_nothing

__all__ = ["PatientConsole", "end_unread", "place_of_stop"]

_READER_GONE = 1  # as rich ends


class PatientConsole(Console):
    """Console that falls silent when nobody reads it any more, where rich's ends the process.

    Examples:
        >>> PatientConsole().reader_gone
        False
    """

    reader_gone: bool = False
    """Whether a pipe has lost its reader, as after `| head`."""

    def on_broken_pipe(self) -> None:
        """Fall silent, and let what others still print there go nowhere."""
        self.quiet = self.reader_gone = True
        to_nothing(self.file.fileno())


def end_unread(folder: Path, way_on: str) -> NoReturn:
    """End the process of a run that has stopped since nobody reads its output any more.

    Args:
        folder: Run folder.
        way_on: Sentence that says how to go on; printed on standard error.

    Raises:
        SystemExit: Always, with status 1.
    """
    text = printable(f"nobody reads the output any more: {place_of_stop(folder)}. {way_on}")
    print(f"mvczigal: {text}", file=sys.stderr, flush=True)
    raise SystemExit(_READER_GONE)


def place_of_stop(folder: Path) -> str:
    """Say where a run that has stopped is saved.

    Args:
        folder: Run folder.

    Returns:
        Clause for a message.

    Examples:
        >>> place_of_stop(Path("absent"))
        'stopped before anything was saved'
    """
    from mvczigal_ref.training.checkpoint_folder import latest_checkpoint

    newest = latest_checkpoint(folder / "checkpoints")
    return "stopped before anything was saved" if newest is None else f"stopped; saved in {newest}"
