"""Files that a kill at any moment leaves whole, and text files as people save them."""

import codecs
import json
import os
from pathlib import Path

from mvczigal_ref.errors import ConfigError

__all__ = ["atomic_write", "decode_text", "read_text", "sync", "text_lines", "to_json"]

_MOST_TEXT = 2**26  # of a text file [bytes]
# UTF-32 first: its mark begins as UTF-16's does.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part.

    Args:
        path: File to write; its folder is made.
        content: Bytes, or text that is encoded as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Args:
        path: File or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: object) -> str:
    """Give a value as the one JSON text that equal values share.

    Args:
        value: JSON values; floats must be finite, and read back to the same bits.

    Returns:
        Indented text with sorted keys and a final newline.
    """
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_text(path: Path, *, most: int = _MOST_TEXT) -> str:
    """Read a text file in UTF-8; a byte-order mark at its beginning is no part of it.

    Args:
        path: File to read.
        most: Largest file that is read [bytes].

    Returns:
        The text.

    Raises:
        ConfigError: If it is larger, or no text in UTF-8.
        OSError: If it cannot be opened.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ConfigError(f"{str(path)!r} must hold at most {most} bytes of text; it holds more.")
    return decode_text(content, path)


def decode_text(content: bytes, path: Path) -> str:
    r"""Decode a text file's content from UTF-8, with or without a byte-order mark.

    Args:
        content: Bytes of the whole file.
        path: Of the file, for messages.

    Returns:
        The text, without the mark.

    Raises:
        ConfigError: If it is in another encoding; names the file, and the line of the first byte
            that is not UTF-8.

    Examples:
        >>> decode_text(b"\xef\xbb\xbfa red cube", Path("prompts.txt"))
        'a red cube'
    """
    name = repr(str(path))
    for mark, encoding in _OTHER_MARKS.items():
        if content.startswith(mark):
            msg = f"{name} must be text in UTF-8; it is in {encoding}. Save it as UTF-8."
            raise ConfigError(msg)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = text_lines(content[: error.start].decode("latin-1"))
        msg = (
            f"{name} must be text in UTF-8; line {len(before)} holds the byte "
            f"0x{content[error.start]:02x}, which is not, as in Latin-1 or Windows-1252. Save it "
            "as UTF-8."
        )
        raise ConfigError(msg) from error
    if "\0" in text:
        msg = f"{name} must be text in UTF-8; it holds NUL bytes, as UTF-16 does. Save it as UTF-8."
        raise ConfigError(msg)
    return text


def text_lines(text: str) -> list[str]:
    r"""Cut a text at its line ends: line feed, carriage return, or both, and nothing else.

    Args:
        text: Any.

    Returns:
        The lines without their ends; the last is empty where the text ends in a line end.

    Examples:
        >>> text_lines("a\r\nb\x0cc")
        ['a', 'b\x0cc']
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
