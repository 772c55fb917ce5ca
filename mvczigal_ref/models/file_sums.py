"""Checksums beside the files of an exported policy, in the form that `sha256sum -c` reads."""

from pathlib import Path

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import atomic_write, file_digest

__all__ = ["SUMS_FILE", "require_sum", "write_sums"]

SUMS_FILE = "SHA256SUMS"
"""Name of the list: one line per file, its SHA-256 in hexadecimal digits, two blanks, its name."""


def write_sums(folder: Path) -> None:
    r"""List the checksums of all files in a folder and below it.

    Args:
        folder: Folder with its files written.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a").write_text("text")
        4
        >>> write_sums(folder)
        >>> (folder / SUMS_FILE).read_text()[60:]
        'c9d1  a\n'
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS_FILE)
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    atomic_write(folder / SUMS_FILE, "".join(lines))


def require_sum(path: Path) -> None:
    """Refuse a file that is not what was written, where a list beside or above it names it.

    Args:
        path: File of an exported policy, or any other: without a list there is nothing to compare.

    Raises:
        CheckpointError: If the file was listed with another checksum; names both.
    """
    for folder in (path.parent, path.parent.parent):
        listed = folder / SUMS_FILE
        if not (listed.exists() and path.is_file()):
            continue
        name = path.relative_to(folder).as_posix()
        lines = listed.read_text("utf-8", errors="replace").splitlines()
        for line in lines:
            digest, _, place = line.partition("  ")
            if place == name and digest != file_digest(path):
                msg = (
                    f"`{path}` must be the file that {str(listed)!r} lists; it has changed since. "
                    "Restore it or export it again; remove the list if the change is meant."
                )
                raise CheckpointError(msg)
