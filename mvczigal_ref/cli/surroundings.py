"""Surroundings of a command: streams, terminal, current folder and variables as they really are."""

import os
import select
import sys
from contextlib import suppress

from mvczigal_ref.errors import ConfigError

__all__ = ["adapt", "reader_gone", "require_current_folder"]

_NARROWEST = 20  # characters; tyro lays out no help in fewer, and rich prints nothing in 0


def adapt() -> None:
    """Make the streams and variables of this process such that a command can print and draw.

    A closed stream takes and drops what is printed. A character that its encoding lacks is escaped.
    A terminal counts as 20 characters wide at least. Nothing opens a window, so that a backend
    of matplotlib that a notebook has named, and that may be installed beside the notebook alone, is
    not asked for.

    Examples:
        >>> adapt()
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by a shell's `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - to the end
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # which a test's stream may lack
    if reconfigure is not None and sys.stdout.errors in ("strict", "surrogateescape"):
        reconfigure(errors="backslashreplace")
    columns = os.environ.get("COLUMNS", "")
    narrow = int(columns) < _NARROWEST if columns.isdecimal() else _terminal() < _NARROWEST
    if narrow:
        os.environ["COLUMNS"] = str(_NARROWEST)
    if os.environ.get("MPLBACKEND", "").startswith("module://"):
        os.environ["MPLBACKEND"] = "agg"


def _terminal() -> int:
    """Width of the terminal on standard output; wide enough where it is none."""
    with suppress(OSError, ValueError):  # no terminal, or a stream of no file
        return os.get_terminal_size(sys.stdout.fileno()).columns
    return _NARROWEST


def require_current_folder() -> None:
    """Refuse a current folder that has been deleted, from which no path can be found.

    Raises:
        ConfigError: If it is gone.

    Examples:
        >>> require_current_folder()
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        msg = "the current folder must exist; it has been deleted or moved. `cd` to another."
        raise ConfigError(msg) from error


def reader_gone() -> bool:
    """Tell whether standard output is a pipe that nobody reads any more, as after `| head`.

    Returns:
        Whether its reader has gone; False where the system cannot tell.

    Examples:
        >>> reader_gone()
        False
    """
    with suppress(AttributeError, OSError, ValueError):  # no such call, or no stream of a file
        polled = select.poll()
        polled.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in polled.poll(0))
    return False
