"""Files that a scorer was built from, and one hash of their contents."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from mvczigal_ref.files import file_digest

__all__ = ["content_hash", "files_read", "note"]

_FILES: ContextVar[list[Path] | None] = ContextVar("_FILES", default=None)


@contextmanager
def files_read() -> Iterator[list[Path]]:
    """Collect the files that decide scores and are read inside; outer collections get them too.

    Yields:
        The files, in the order in which they were noted.

    Examples:
        >>> with files_read() as files:
        ...     path = note(Path("model.safetensors"))
        >>> [file.name for file in files]
        ['model.safetensors']
    """
    files: list[Path] = []
    token = _FILES.set(files)
    try:
        yield files
    finally:
        _FILES.reset(token)
        for path in files:
            note(path)


def note(path: Path) -> Path:
    """Add a file that decides scores to the collection, if there is one.

    Args:
        path: File that is about to be read.

    Returns:
        Path that was given.
    """
    files = _FILES.get()
    if files is not None:
        files.append(path)
    return path


def content_hash(paths: Iterable[Path]) -> str:
    """Hash files by name and content, whatever their place and time.

    A file of the hub's cache is a link to one that is named by the hash of its content; that
    name stands for the content. Every other file is read to its end.

    Args:
        paths: Existing files; order and repetitions do not matter.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        OSError: If a file cannot be read.

    Examples:
        >>> content_hash([])[:8]
        'e3b0c442'
    """
    parts = set()
    for path in set(paths):
        stored = path.resolve()
        if path.is_symlink() and stored.parent.name == "blobs":
            content = stored.name
        else:
            content = file_digest(stored)
        parts.add(f"{path.name}\0{content}\n")
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()
