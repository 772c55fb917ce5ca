"""Rows of a list of prompts: a text file, a column of JSON lines or CSV, or a Python list."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.text_files import read_text, text_lines

__all__ = ["Rows", "file_rows", "list_rows", "split_column"]

_MARK = "\ufeff"  # inside a file it is left of another file that was joined to it
_TABLES = (".jsonl", ".csv")
_OTHER_FILES = {
    "version https://git-lfs": "a Git LFS pointer: the file itself was never fetched",
    **dict.fromkeys(("<!doctype", "<html", "<head", "<body"), "a web page"),
    "<?xml": "XML",
    "%pdf": "a PDF",
    "{\\rtf": "rich text",
}
# Files of other formats, whose lines are no prompts.
_OTHERS = (
    ".json", ".tsv", ".tab", ".parquet", ".arrow", ".feather", ".xls", ".xlsx", ".ods", ".yaml",
    ".yml", ".toml", ".xml", ".html", ".py", ".zip", ".gz",
)  # fmt: skip


class Rows(NamedTuple):
    """Texts of a list and their places, blank ones included."""

    texts: Sequence[tuple[int, str]]
    """Number of each row, counted from 1, and its text without surrounding blanks."""

    place: str = "line"
    """Word for a row's number."""


def split_column(name: str) -> tuple[Path, str | None]:
    """Split ``file.csv:column`` or ``file.jsonl:column``; any other colon is the path's.

    Args:
        name: Path of a text file, or of a table with a column.

    Returns:
        The path, and the column if there is one. Of several ways to read a name, the one whose
        file exists, with the longest path.

    Examples:
        >>> split_column("C:/lists/a.csv:prompt")[1], split_column("C:/lists/a.txt")[1]
        ('prompt', None)
    """
    whole = Path(name).expanduser()
    ways = [
        (Path(name[:place]).expanduser(), name[place + 1 :])
        for place, letter in enumerate(name)
        if letter == ":" and name[:place].lower().endswith(_TABLES) and name[place + 1 :]
    ]
    if os.path.isfile(whole) or not ways:  # which a name too long is not either
        return whole, None
    return next((way for way in reversed(ways) if os.path.isfile(way[0])), ways[0])


def file_rows(path: Path, column: str | None, *, setting: str) -> Rows:
    """Read the rows of a file.

    Args:
        path: File that exists: a table where its name ends in .csv or .jsonl, else one prompt per
            line.
        column: Column of a table.
        setting: Name of the setting, for messages.

    Returns:
        Rows of the list, numbered from 1.

    Raises:
        ConfigError: If the file is in another encoding or damaged, or the column is not in it; the
            columns that exist are named.
    """
    kind = path.suffix.lower()
    if kind in _OTHERS:
        msg = (
            f"`{setting}` must be a text file with one prompt per line, or a column of a .jsonl or "
            f".csv file; got {str(path)!r}. Write its prompts to one of these."
        )
        raise ConfigError(msg)
    text = read_text(path).rstrip()  # a row that is there and holds no prompt is told of
    _refuse_other_files(text, path)
    if kind not in _TABLES:
        lines = enumerate(text_lines(text), 1)
        return Rows([(number, line.strip().strip(_MARK).strip()) for number, line in lines])
    read = _json_lines if kind == ".jsonl" else _csv
    columns, rows = read(text, path)
    if column is None or column not in columns:
        names = ", ".join(quoted(name) for name in columns) or "none"
        got = "no column" if column is None else quoted(column)
        msg = (
            f"`{setting}` must name a column of {str(path)!r}, as in `{path.name}:COLUMN`; got "
            f"{got}. Its columns: {names}."
        )
        raise ConfigError(msg)
    return Rows([(number, _text(row.get(column), number, path)) for number, row in rows])


def list_rows(prompts: Iterable[object], *, setting: str) -> Rows:
    """Number the prompts of a Python list.

    Args:
        prompts: Texts.
        setting: Name of the argument, for messages.

    Returns:
        Rows of the list, numbered from 1.

    Raises:
        ConfigError: If one is no text.

    Examples:
        >>> list_rows(["a cat ", ""], setting="prompts").texts
        [(1, 'a cat'), (2, '')]
    """
    rows = []
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):
            msg = f"`{setting}` must hold texts; item {number} is {quoted(prompt)}."
            raise ConfigError(msg)
        _require_characters(prompt, f"item {number} of `{setting}`")
        rows.append((number, prompt.strip()))
    return Rows(rows, "item")


def _refuse_other_files(text: str, path: Path) -> None:
    """Refuse what a failed download leaves, and JSON where lines of text are meant."""
    start = text[:200].lstrip().lower()
    kind = next((kind for mark, kind in _OTHER_FILES.items() if start.startswith(mark)), None)
    if kind is None and path.suffix.lower() not in _TABLES and start.startswith(("{", "[")):
        first = text.lstrip().partition("\n")[0] if start.startswith("{") else text
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            return
        kind = "JSON, which a .jsonl file holds, one object per line, with :COLUMN after its name"
    if kind is not None:
        msg = f"{str(path)!r} must hold prompts; it is {kind}. Download or save it again."
        raise ConfigError(msg)


_Table = tuple[list[str], list[tuple[int, dict[str, object]]]]


def _json_lines(text: str, path: Path) -> _Table:
    """Read one object per line; columns are those of any."""
    columns: dict[str, None] = {}
    rows: list[tuple[int, dict[str, object]]] = []
    for number, line in enumerate(text_lines(text), 1):
        if not line.strip():
            rows.append((number, {}))
            continue
        try:
            row = json.loads(line.strip().strip(_MARK))
        except (ValueError, RecursionError) as error:
            msg = f"line {number} of {str(path)!r} must be JSON; got {quoted(line)}."
            raise ConfigError(msg) from error
        if not isinstance(row, dict):
            msg = (
                f"line {number} of {str(path)!r} must be a JSON object, as in "
                f'{{"prompt": "a red cube"}}; got {quoted(line)}.'
            )
            raise ConfigError(msg)
        columns |= dict.fromkeys(row)
        rows.append((number, row))
    return list(columns), rows


def _csv(text: str, path: Path) -> _Table:
    """Read a table whose first row names the columns; a quoted cell may hold line ends."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, dict[str, object]]] = []
    try:
        columns = [name.strip() for name in next(reader, [])]
        before = reader.line_num
        for cells in reader:
            if any(cell.strip() for cell in cells[len(columns) :]):
                msg = (
                    f"line {before + 1} of {str(path)!r} must hold at most {len(columns)} cells, "
                    f'one per column; got {quoted(cells)}. Put a prompt with a comma in "quotes".'
                )
                raise ConfigError(msg)
            rows.append((before + 1, dict(zip(columns, cells, strict=False))))
            before = reader.line_num
    except csv.Error as error:
        msg = f"line {reader.line_num} of {str(path)!r} must be CSV: {error}."
        raise ConfigError(msg) from error
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        msg = f"{str(path)!r} must name each column once; it names {sorted(repeated)} again."
        raise ConfigError(msg)
    return columns, rows


def _text(value: object, number: int, path: Path) -> str:
    """Take a cell's text; one that is absent or null is blank."""
    if value is None:
        return ""
    if not isinstance(value, str):
        msg = f"line {number} of {str(path)!r} must hold a text as prompt; got {quoted(value)}."
        raise ConfigError(msg)
    _require_characters(value, f"line {number} of {str(path)!r}")
    return value.strip()


def _require_characters(prompt: str, place: str) -> None:
    """Refuse what JSON and Python can spell and no text file can hold."""
    faults = [letter for letter in prompt if letter == "\0" or "\ud800" <= letter <= "\udfff"]
    if faults:
        msg = f"{place} must be Unicode text; it holds {faults[0]!a}, half a character or NUL."
        raise ConfigError(f"{msg} Take it out.")
