"""Errors of the parser of words, which draws a box, told in one line like every refusal."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from mvczigal_ref.errors import ConfigError

__all__ = ["in_one_line"]

_LONGEST = 1000  # characters of a message
_OTHERS = ("Unrecognized", "Perhaps", "Available", "For full")  # sections beside the first
_COLOURS = re.compile(r"\x1b\[[\d;]*m")  # of a terminal
_RULES = ("───", "-----")  # between sections; the latter where a terminal lacks "─"
_HELP = 8  # blanks before a line of help, which `--help` shows


@contextmanager
def in_one_line() -> Iterator[None]:
    """Raise what the parser refuses with its reason in one line, in place of its box.

    Yields:
        Nothing.

    Raises:
        ConfigError: If the parser has printed an error and would end the program.

    Examples:
        >>> import sys
        >>> with in_one_line():
        ...     print("Unrecognized options: --sed.", file=sys.stderr)
        ...     raise SystemExit(2)
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: Unrecognized options: --sed.
    """
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as end:
        if not end.code:  # help
            raise
        raise ConfigError(_sentence(box.getvalue())) from None


def _sentence(box: str) -> str:
    """Take the sections of a box that say what is wrong and what to do."""
    lines = _COLOURS.sub("", box).splitlines()
    framed = bool(lines) and lines[0].startswith("╭")
    sections: list[list[str]] = [[]]
    for line in lines[1:-1] if framed else lines[2:]:  # without its title
        text = line[2:].rstrip(" │")
        if text.startswith(_RULES):
            sections.append([])
        else:
            sections[-1].append(text)
    others = [section for section in sections[1:] if section and section[0].startswith(_OTHERS)]
    parts = [_paragraph(section) for section in [*sections[:1], *others]]
    text = " ".join(f"{part.rstrip('.')}." for part in parts if part) or " ".join(box.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _paragraph(section: list[str]) -> str:
    """Join the lines up to a blank one, without those of help."""
    end = section.index("") if "" in section else len(section)
    names = [line for line in section[:end] if not line.startswith(" " * _HELP)]
    listed = ", ".join(line.strip() for line in names if line.startswith("    "))
    return " ".join([*(line for line in names if not line.startswith("    ")), listed]).strip()
