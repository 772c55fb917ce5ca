"""Output of commands that print a table: as JSON, or not at all."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from tyro.conf import arg

from mvczigal_ref.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "STANDARD_OUTPUT",
    "Printed",
    "Quiet",
    "console_of",
    "json_alone",
    "require_json",
    "say",
    "write_json",
]

_OUTPUT: ContextVar[TextIO | None] = ContextVar("_OUTPUT", default=None)

STANDARD_OUTPUT = Path("-")
"""Name for standard output, in a file's place."""


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """Output of a command that shows progress."""

    quiet: bool = False
    """Print no table and no progress; warnings, errors and JSON alone."""


@dataclass(frozen=True, kw_only=True)
class Printed(Quiet):
    """Output of a command that prints a table."""

    json: Annotated[
        Path | None, arg(metavar="[FILE]", help_behavior_hint="(default: a table alone)")
    ] = None
    """Also write it as JSON to this file; without a name, at the end of the line, print JSON in the
    table's place."""


def console_of(command: Quiet, *, shown: bool = True) -> "Console":
    """Make the console that a command's table and progress go to.

    Args:
        command: Any command with progress or a table.
        shown: Whether this process prints at all.

    Returns:
        A console, silent where the command is quiet or prints JSON.

    Examples:
        >>> console_of(Printed(quiet=True)).quiet
        True
    """
    from rich.console import Console

    as_json = isinstance(command, Printed) and command.json == STANDARD_OUTPUT
    return Console(quiet=command.quiet or as_json or not shown)


def say(console: "Console", text: str) -> None:
    """Print text as it stands: names in it are no markup, and no line of it is broken.

    Args:
        console: Place for it.
        text: One line, or more.
    """
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def require_json(command: object) -> None:
    """Refuse a file for JSON that could not be written, before the work that it would tell of.

    Args:
        command: Any command.

    Raises:
        ConfigError: If the file is a folder, or no file can be made beside it.

    Examples:
        >>> require_json(Printed(json=Path(".")))
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: `--json` must be a file; got the folder '.'.
    """
    path = command.json if isinstance(command, Printed) else None
    if path is None or path == STANDARD_OUTPUT:
        return
    if path.is_dir():
        raise ConfigError(f"`--json` must be a file; got the folder {str(path)!r}.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        msg = f"`--json` must be a file that can be written; {str(above)!r} is no folder that takes"
        raise ConfigError(f"{msg} files. Choose another.")


@contextmanager
def json_alone(command: object) -> Iterator[None]:
    """Keep standard output for JSON where it goes there: what else is printed goes to the errors.

    Args:
        command: Any command; a reward of the user's own or a library may print in it.

    Yields:
        Nothing.

    Examples:
        >>> with json_alone(Printed(json=STANDARD_OUTPUT)):
        ...     print("loading")
        ...     write_json(Printed(json=STANDARD_OUTPUT), {"gain": 1})
        {
          "gain": 1
        }
    """
    if not isinstance(command, Printed) or command.json != STANDARD_OUTPUT:
        yield
        return
    token = _OUTPUT.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _OUTPUT.reset(token)


def write_json(command: Printed, content: Any) -> None:  # noqa: ANN401 - whatever JSON can say
    """Write a command's result as JSON where it asks for that.

    Args:
        command: The command.
        content: JSON values.
    """
    if command.json is None:
        return
    from mvczigal_ref.files import atomic_write, to_json

    if command.json == STANDARD_OUTPUT:
        print(to_json(content), end="", file=_OUTPUT.get() or sys.stdout)
    else:
        atomic_write(command.json, to_json(content))
