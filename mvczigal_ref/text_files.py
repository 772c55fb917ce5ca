"""Text files as people save them: UTF-8 with or without a byte-order mark, any line ends."""

import codecs
from pathlib import Path

from mvczigal_ref.errors import ConfigError

__all__ = ["decode_text", "read_text", "text_lines"]

_MOST_TEXT = 2**26  # largest text file [bytes]


# UTF-32 first: its mark begins as UTF-16's does.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path, *, most: int = _MOST_TEXT) -> str:
    """Read a text file in UTF-8; a byte-order mark at its beginning is no part of it.

    Args:
        path: File to read.
        most: Largest file that is read [bytes].

    Returns:
        The text.

    Raises:
        ConfigError: If the file is larger, or not text in UTF-8.
        OSError: If the file cannot be opened.
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
        path: Place of the file, for messages.

    Returns:
        The text, without the mark.

    Raises:
        ConfigError: If the content is in another encoding; names the file, and the line of the
            first byte that is not UTF-8.

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
        text: Any text.

    Returns:
        The lines without their ends; the last is empty where the text ends in a line end.

    Examples:
        >>> text_lines("a\r\nb\x0cc")
        ['a', 'b\x0cc']
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
