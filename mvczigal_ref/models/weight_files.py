"""Files of weights and settings: read, or described in one line where they are something else."""

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mvczigal_ref.errors import CheckpointError, first_line, one_line
from mvczigal_ref.models.file_sums import require_sum

__all__ = [
    "check_safetensors",
    "describe_file",
    "described_by",
    "pickled_weights",
    "plain_name",
    "read_json",
    "read_metadata",
    "read_safetensors",
    "refuse_single_file",
    "summary",
]

_HEAD = 512  # bytes that tell a kind
_LONGEST_HEADER = 100_000_000  # bytes, as in the format's own library
_SHOWN = 4  # names in a message
_COUNTERS = ("position_ids", "num_batches_tracked")  # integers of networks
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
            return "a folder" if path.is_dir() else "absent"
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


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file onto the CPU.

    Args:
        path: File.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: If it is anything else, cut, or has changed since it was exported; the
            message says what it is.
    """
    require_sum(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # damaged headers reach many of the libraries' own exceptions
        raise _not_safetensors(path, error) from error
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts that a safetensors file holds beside its tensors.

    Args:
        path: File.

    Returns:
        Texts by name; empty where there are none.

    Raises:
        CheckpointError: If it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise _not_safetensors(path, error) from error


def check_safetensors(path: Path, *, floats: bool = False) -> None:
    """Read a safetensors file's header and compare it with the file's size.

    Args:
        path: File; its tensors are not read.
        floats: Whether integers are refused, other than counters and positions:
            quantised weights would be read as numbers.

    Raises:
        CheckpointError: If it is anything else, or cut; the message says what it is. Also if it
            holds integers that are refused; one is named.
    """
    try:
        with safe_open(path, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _not_safetensors(path, error) from error
    odd = [
        f"{plain_name(name)} of {kind}"
        for name, kind in kinds.items()
        if not kind.startswith(("F", "BF")) and not name.endswith(_COUNTERS)
    ]
    if floats and odd:
        msg = (
            f"`{path}` must hold floating-point weights; got {summary(odd)}. Take the file as it "
            "was before it was quantised."
        )
        raise CheckpointError(msg)


def read_json(path: Path) -> dict[str, Any]:
    """Read a settings file.

    Args:
        path: JSON, an object.

    Returns:
        Entries of the object.

    Raises:
        CheckpointError: If it is something else; the message says what.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        what = describe_file(path)
        if what.startswith(("JSON text", "text")):
            what = f"text with a fault ({first_line(error)})"
        msg = f"`{path}` must be readable JSON; it is {what}. Download it again."
        raise CheckpointError(msg) from error
    if not isinstance(content, dict):
        msg = f"`{path}` must hold a JSON object; got {type(content).__name__}."
        raise CheckpointError(msg)
    return content


def refuse_single_file(name: str, source: str | Path) -> None:
    """Refuse one file where a pipeline's folder is meant.

    Args:
        name: Name of the argument.
        source: Value of the argument.

    Raises:
        CheckpointError: If it is a file; says what that is, and how a checkpoint is converted.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        return
    what, alone = describe_file(path), not (path.parent / "config.json").is_file()
    remedy = "Give the folder that holds it."
    if "pickle" in what and alone:
        converted = f"{path.with_suffix('')}.safetensors"
        remedy = f"First {_conversion(path)}. {_folder_of(converted)}"
    elif "pickle" in what:
        remedy = f"Give the folder that holds it, and {_conversion(path)}."
    elif what == "a safetensors file" and alone:
        remedy = _folder_of(str(path))
    msg = (
        f"`{name}` must be a folder or hub id in diffusers' layout; got the file {str(path)!r}, "
        f"which is {what}. {remedy}"
    )
    raise CheckpointError(msg)


def pickled_weights(folder: Path, stem: str) -> str | None:
    """Say how to convert a pickle that lies where safetensors are missing.

    Args:
        folder: Folder of a network.
        stem: Name of the file that is missing, without its suffix.

    Returns:
        The reason and the remedy, without its end; None where there is no pickle either.
    """
    for path in (folder / f"{stem}.bin", folder / "pytorch_model.bin", folder / f"{stem}.pt"):
        if path.is_file():
            return f"it holds {path.name}, and pickles are not loaded: {_conversion(path)}"
    return None


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
    return "".join(c if c.isprintable() else " " for c in cut)


@contextmanager
def described_by(path: str | Path) -> Iterator[None]:
    """Name the settings in the error where no network can be built from them.

    Args:
        path: File of the settings, or another name of them for the message.

    Yields:
        Nothing.

    Raises:
        CheckpointError: If a library refuses them inside, in whatever way.

    Examples:
        >>> with described_by("config.json"):
        ...     1 / 0
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: `config.json` must describe a network; got Zero...
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # unfit settings reach nearly every kind of exception
        reason = one_line(error)[:160]
        msg = f"`{path}` must describe a network; got {type(error).__name__}: {reason}."
        raise CheckpointError(msg) from error


def _not_safetensors(path: Path, error: Exception) -> CheckpointError:
    what = describe_file(path)
    if what == "a safetensors file":
        what = f"a damaged one ({first_line(error)})"
    pickled = "pickle" in what or "TorchScript" in what
    remedy = f"To read it, {_conversion(path)}." if pickled else "Download it again."
    if path.exists() and not os.access(path, os.R_OK):
        remedy = "Change its mode, or its owner."
    return CheckpointError(f"`{path}` must be a whole safetensors file; it is {what}. {remedy}")


def _conversion(path: Path) -> str:
    source, first = path, ""
    if path.suffix == ".safetensors":  # whose name the converted file takes
        source = path.with_suffix(".pt")
        first = f"rename it {source.name}, and "
    return (
        f"{first}convert it once by `mvczigal convert-reward {source} "
        f"{path.with_suffix('')}.safetensors`"
    )


def _folder_of(checkpoint: str) -> str:
    """Say how a whole pipeline's single file becomes a folder."""
    return (
        "Convert a single-file SDXL checkpoint once, `from diffusers import "
        f"StableDiffusionXLPipeline as P; P.from_single_file({checkpoint!r}).save_pretrained("
        "'FOLDER')`, and name FOLDER."
    )


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
