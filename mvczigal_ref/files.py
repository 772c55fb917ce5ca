"""Files that stay whole if the process is killed, in a folder with one writer at a time."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from mvczigal_ref.errors import CheckpointError, RunFolderInUseError

__all__ = [
    "atomic_write",
    "discard",
    "file_digest",
    "finite_values",
    "is_hub_id",
    "owned",
    "replacing",
    "require_readable",
    "require_run",
    "sweep",
    "sync",
    "sync_files",
    "to_json",
    "to_nothing",
    "usual_mode",
    "writing",
]

_LOCK = ".lock"  # names the owner while there is one
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
_ASIDE = re.compile(r"\..+\.(\d+|gone|replaced)\.tmp")  # names that this package's writers give
_WINDOWS = os.name == "nt"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?P<revision>@[\w./-]+)?")

_WAIT = 1.0  # seconds for an owner that is about to end, as after a killed launcher


def is_hub_id(source: str, *, revision: bool = False) -> bool:
    """Tell whether a text has the form of a hub id; a relative path may have it too.

    Args:
        source: Place of weights.
        revision: Whether ``@revision`` may follow.

    Returns:
        Whether it has.

    Examples:
        >>> is_hub_id("stabilityai/sdxl-turbo"), is_hub_id("../sdxl-turbo"), is_hub_id("a/b@c")
        (True, False, False)
    """
    match = _HUB_ID.fullmatch(source)
    return match is not None and (revision or match["revision"] is None)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part.

    Args:
        path: File to write; its folder is made if absent.
        content: Bytes, or text that is encoded as UTF-8.
    """
    with replacing(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a hidden file that takes the name of another once it is whole and on the disk.

    Args:
        path: File to write; its folder is made if absent.

    Yields:
        Path of the hidden file, which is to be written; nothing of it is left after an error.

    Raises:
        OSError: The error of the disk, with the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield aside
            sync(aside)
            aside.replace(path)
            sync(path.parent)
    finally:
        discard(aside)


@contextmanager
def writing(path: Path, *, aside: Path | None = None) -> Iterator[None]:
    """Name the file in an error of the disk, and leave no part of it.

    Args:
        path: File or folder that is written.
        aside: Temporary place of its content until it takes its name; removed after an error.

    Yields:
        Nothing.

    Raises:
        OSError: The error of the disk, with the path.

    Examples:
        >>> with writing(Path("run/state.json")):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'run/state.json'
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if aside is not None:
            discard(aside)
        code = error.errno if isinstance(error, OSError) else _system_error(error)
        if code is None or _is_elsewhere(error, path):
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Be the only process that writes a run folder, while the context lasts.

    The ownership ends with its process, however that ends. Reading needs no ownership.

    Args:
        folder: The run folder; made if absent, and removed again if nothing was written.

    Yields:
        Nothing.

    Raises:
        RunFolderInUseError: If another process owns it; it is named.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, owned(Path(folder)):
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['.lock']
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=_WAIT, poll_interval=0.05)
    except Timeout:
        raise RunFolderInUseError(_in_use(folder)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        text = f"the disk of {str(folder)!r} has no locks: let no other process train into it."
        warnings.warn(text, stacklevel=3)
    try:
        with writing(path), suppress(PermissionError):  # on Windows nobody writes a locked file
            path.write_text(to_json({"process": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        with suppress(OSError):  # on Windows nobody removes a locked file
            path.unlink(missing_ok=True)  # before the release: whoever waits then makes a new one
        lock.release()
        for parent in absent:
            with suppress(OSError):  # something was written
                parent.rmdir()


def sweep(folder: Path) -> None:
    """Remove half-written files of killed writers, in a folder and in those directly below.

    Args:
        folder: Folder in which no other process writes; it need not exist.
    """
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        if _ASIDE.fullmatch(path.name):
            discard(path)


def discard(path: Path) -> None:
    """Remove a file or folder as far as that can be; nothing is raised.

    Args:
        path: Superfluous file or folder; it need not exist. One that was made read-only goes too.
    """
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            path.unlink()
        return
    for name, _, _ in os.walk(path):  # links to folders are not followed
        with suppress(OSError):
            Path(name).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def require_readable(path: Path) -> None:
    """Refuse a file that is there and may not be read, which some libraries call absent.

    Args:
        path: File; it need not exist.

    Raises:
        PermissionError: If it may not be read.
    """
    if path.exists() and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def require_run(folder: Path) -> Path:
    """Refuse a folder that no training has written.

    Args:
        folder: Folder that was named as a run's.

    Returns:
        File of the run's configuration.

    Raises:
        CheckpointError: If it holds no run, or is a checkpoint of one.

    Examples:
        >>> require_run(Path("absent"))
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: 'absent' is no run folder: it holds no config.json. \
Pass a folder that `mvczigal train` wrote.
    """
    path = folder / "config.json"
    if not path.is_file():
        msg = (
            f"{str(folder)!r} is no run folder: it holds no config.json. Pass a folder that "
            "`mvczigal train` wrote."
        )
        raise CheckpointError(msg)
    if (folder / "manifest.json").is_file():
        run = folder.absolute().parent.parent
        named = f", {str(run)!r}" if (run / "config.json").is_file() else ""
        msg = f"{str(folder)!r} is a checkpoint, not a run. Pass the folder of its run{named}."
        raise CheckpointError(msg)
    return path


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Args:
        path: File or folder; on Windows, which opens no folders, a folder is not waited for.
    """
    if _WINDOWS and path.is_dir():
        return
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Wait until a folder with all that is in it is on the disk.

    Args:
        folder: Folder of files and folders.
    """
    for path in (*folder.rglob("*"), folder):
        sync(path)


def to_nothing(*descriptors: int) -> None:
    """Let what is written to open descriptors go nowhere.

    Args:
        *descriptors: Descriptors of streams, such as 1 of standard output.
    """
    with open(os.devnull, "wb") as nothing:
        for descriptor in descriptors:
            os.dup2(nothing.fileno(), descriptor)


def file_digest(path: Path) -> str:
    """Digest a file's content, without holding it in memory.

    Args:
        path: The file.

    Returns:
        SHA-256 in hexadecimal digits.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def usual_mode(path: Path) -> None:
    """Let whoever may read a process's other new files read its tensors, which are written 0600.

    Args:
        path: A file, or a folder whose safetensors files are meant, at any depth.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    for file in path.rglob("*.safetensors") if path.is_dir() else (path,):
        file.chmod(0o666 & ~mask)


def to_json(value: object) -> str:
    """Give a value as JSON text, the same text for equal values.

    Args:
        value: JSON values; floats must be finite, and read back to the same bits.

    Returns:
        Indented text with sorted keys and a final newline.
    """
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def finite_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put None in the place of each non-finite number, for which JSON has no word.

    Args:
        values: JSON values by name.

    Returns:
        The others as they are.

    Examples:
        >>> finite_values({"gain": 1.0, "standard_error": float("nan"), "name": "joint"})
        {'gain': 1.0, 'standard_error': None, 'name': 'joint'}
    """
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _system_error(error: SafetensorError) -> int | None:
    """Read the operating system's error number out of the library's message."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else int(number[1])


def _is_elsewhere(error: OSError | SafetensorError, path: Path) -> bool:
    """Say whether an error names a file that is read, and not the one that is written."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | os.PathLike):
        return False
    place, target = Path(name).absolute(), path.absolute()
    hidden = any(part.startswith(f".{path.name}.") for part in place.parts)
    return not (hidden or place in (target, target.parent) or target in place.parents)


def _in_use(folder: Path) -> str:
    """Write the message that names the owner of a run folder."""
    owner = "another process"
    with suppress(OSError, ValueError, KeyError, TypeError):  # it may just have come
        record = json.loads((folder / _LOCK).read_text("utf-8"))
        owner = f"process {record['process']} on host {record['host']}"
    remedy = "Wait for its end, stop it, or choose another folder."
    return f"{str(folder)!r} is in use by {owner}. {remedy}"
