"""Write files that a kill at any moment leaves whole: the old content or the new."""

import json
import os
from pathlib import Path

__all__ = ["atomic_write", "sync", "to_json"]


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
