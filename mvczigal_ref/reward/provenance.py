"""Which files a scorer was built from, and one hash of their contents."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

__all__ = ["content_hash", "files_read", "note"]

_FOUND: ContextVar[list[Path] | None] = ContextVar("_FOUND", default=None)


@contextmanager
def files_read() -> Iterator[list[Path]]:
    """Collect every file that decides scores and is read while inside; so do those around it.

    Yields:
        The files, in the order in which they were noted.

    Examples:
        >>> with files_read() as files:
        ...     path = note(Path("model.safetensors"))
        >>> [file.name for file in files]
        ['model.safetensors']
    """
    found: list[Path] = []
    token = _FOUND.set(found)
    try:
        yield found
    finally:
        _FOUND.reset(token)
        for path in found:
            note(path)


def note(path: Path) -> Path:
    """Tell whoever collects that a file decides scores.

    Args:
        path: About to be read.

    Returns:
        The same path.
    """
    found = _FOUND.get()
    if found is not None:
        found.append(path)
    return path


def content_hash(paths: Iterable[Path]) -> str:
    """Hash files by name and content, wherever they lie and whenever they were written.

    A file of the hub's cache is a link to one that is named by the hash of its content; that
    name stands for the content. Every other file is read to its end.

    Args:
        paths: Files that are there; their order and repetitions do not matter.

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
            with stored.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        parts.add(f"{path.name}\0{content}\n")
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()
