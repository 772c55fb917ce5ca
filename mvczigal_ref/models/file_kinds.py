"""Kinds of files that lie where weights are meant, each told by its first bytes."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mvczigal_ref.errors import ConfigError, first_line, printable

__all__ = [
    "conversion",
    "describe_file",
    "plain_name",
    "require_conversion",
    "summary",
    "tensor_names",
]

_HEAD = 512  # bytes that tell a kind
_LONGEST_HEADER = 100_000_000  # bytes, as in the format's own library
_SHOWN = 4  # names in a message
_LONGEST_NAME = 120  # characters of one

# First bytes of files that are no weights, and of weights in other formats.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was never fetched"),
    *((bytes((0x80, protocol)), "a pickle") for protocol in range(2, 6)),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"RIFF", "a picture or a sound"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"#!", "a script"),
)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<!--")


def describe_file(path: Path) -> str:
    """Say what a file is, from its first bytes and its size alone; nothing of it is run.

    Args:
        path: File.

    Returns:
        A noun phrase: an absent or empty file, a web page, a server's answer, a Git LFS pointer,
        a pickle, an archive, a cut or whole safetensors file, text, or unknown bytes.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> path.write_text("<!DOCTYPE html><html>Sign in</html>") > 0
        True
        >>> describe_file(path)
        'a web page'
    """
    try:
        if not path.is_file():
            other = "neither a file nor a folder" if path.exists() else "absent"
            return "a folder" if path.is_dir() else other
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        return f"not to be read ({first_line(error)})"
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return _archive(path)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= _LONGEST_HEADER:
        return _safetensors(path, size, length)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGES):
        return "a web page"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character may be cut by the reading itself
            return "bytes of no known format"
    shown = " ".join(head[:60].decode("utf-8", "replace").split())
    if b"\x00" in head:
        return "bytes of no known format"
    if text.startswith((b"{", b"[")):
        return f"JSON text, such as a server's answer ({shown!r})"
    return f"text ({shown!r})"


def tensor_names(path: Path) -> list[str] | None:
    """List the tensors of a safetensors file; torch is not imported.

    Args:
        path: File; its tensors are not read.

    Returns:
        Names, in no order; None if it is no whole safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (OSError, SafetensorError):
        return None


def conversion(path: Path) -> str:
    """Say how a pickle becomes a safetensors file.

    Args:
        path: The pickle.

    Returns:
        The remedy, without a capital and a full stop.

    Examples:
        >>> conversion(Path("a.pt"))
        'convert it once by `mvczigal convert-reward a.pt a.safetensors`'
    """
    source, first = path, ""
    if path.suffix == ".safetensors":  # whose name the converted file takes
        source = path.with_suffix(".pt")
        first = f"rename it {source.name}, and "
    return (
        f"{first}convert it once by `mvczigal convert-reward {source} "
        f"{path.with_suffix('')}.safetensors`"
    )


def summary(names: Sequence[str], *, shown: int = _SHOWN) -> str:
    """Give the first of many names, and the number of the others.

    Args:
        names: Names of tensors, files or faults.
        shown: Number of names that are given.

    Returns:
        One text.

    Examples:
        >>> summary(["a", "b", "c"], shown=2)
        'a, b and 1 more'
    """
    more = len(names) - shown
    return ", ".join(map(plain_name, names[:shown])) + (f" and {more} more" if more > 0 else "")


def plain_name(name: str) -> str:
    r"""Give a name out of a file for a message: without a terminal's codes, and not at length.

    Args:
        name: Name of a tensor, a setting or a class, as a file has it.

    Returns:
        Printable text of at most 120 characters.

    Examples:
        >>> plain_name("a\x1b[2Jb")
        'a [2Jb'
    """
    cut = name[:_LONGEST_NAME] + "..." * (len(name) > _LONGEST_NAME)
    return printable(cut)


def require_conversion(source: Path, target: Path) -> str:
    """Refuse two files of which the one cannot become the other; torch is not imported.

    Args:
        source: File that ``torch.save`` wrote, under any name.
        target: Safetensors file to be written.

    Returns:
        Format of the source, by :func:`describe_file`.

    Raises:
        ConfigError: If a name or the source's format is another, or the target exists.
    """
    kind = describe_file(source)
    named = source.suffix == ".safetensors" and kind == "absent"
    if named or kind == "a safetensors file" or target.suffix != ".safetensors":
        msg = (
            "`source` must be a `.pt` or `.pth` file and `target` a `.safetensors` file; got "
            f"{source.name!r} and {target.name!r}."
        )
        raise ConfigError(msg)
    if kind == "absent":
        raise ConfigError(f"`source` must be a downloaded file; there is no {str(source)!r}.")
    if target.exists():
        msg = f"`target` must not exist yet; got {str(target)!r}. Delete it, or name another."
        raise ConfigError(msg)
    return kind


def _archive(path: Path) -> str:
    """Tell a torch file from other zip archives by the names inside."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged directory reaches many kinds of exceptions
        return "a damaged or cut zip archive, as torch.save writes"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "a TorchScript archive, a program with its weights"
    return "a pickle in torch's archive" if "data.pkl" in inner else "a zip archive"


def _safetensors(path: Path, size: int, length: int) -> str:
    """Compare a safetensors file's size with its header."""
    if 8 + length > size:
        return f"a cut safetensors file ({size} bytes, its header alone has {8 + length})"
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        ends = [at["data_offsets"][1] for name, at in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except Exception:  # whatever a damaged header says
        return "a safetensors file with a damaged header"
    if whole == size:
        return "a safetensors file"
    word = "cut" if whole > size else "too long"
    return f"a safetensors file that is {word} ({size} bytes, its header says {whole})"
