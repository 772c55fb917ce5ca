"""Tensors of a published checkpoint, read without running its pickle."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mvczigal_ref.errors import CheckpointError, first_line, quoted
from mvczigal_ref.models.file_kinds import describe_file, summary
from mvczigal_ref.models.weight_files import read_safetensors

__all__ = ["read_pickle", "read_tensors"]


# Training scripts store the tensors under one of these names, beside their counters.
_WRAPPERS = ("state_dict", "model")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a file onto the CPU, whatever its format.

    A file that is not safetensors is a pickle; it is read with ``weights_only=True``, so it
    can build tensors and plain containers but run nothing. Tensors under ``state_dict`` or
    ``model`` are taken; entries beside them are ignored.

    Args:
        path: A ``.safetensors`` file, or one of ``torch.save``: ``.pt`` or ``.pth``. A ``.bin``
            is read by :func:`~mvczigal_ref.reward.convert.convert_checkpoint` alone.

    Returns:
        Tensors by the file's own names, in the file's own dtypes.

    Raises:
        CheckpointError: If the file is absent, cut or of another format, which the message names;
            or if it holds anything but tensors by name.

    Examples:
        >>> read_tensors("absent.pt")
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: `path` must be a whole file of tensors; got ...
    """
    path = Path(path)
    kind = describe_file(path)
    if path.suffix == ".safetensors" or kind.startswith("a safetensors"):
        return read_safetensors(path)
    if path.suffix == ".bin" and "pickle" in kind:
        msg = (
            "`path` must be a .safetensors file, or the .pt or .pth that a scorer is published as; "
            f"got {str(path)!r}, which is {kind}. Convert it once: `mvczigal convert-reward "
            f"{path} {path.with_suffix('.safetensors')}`."
        )
        raise CheckpointError(msg)
    return read_pickle(path, kind)


def read_pickle(path: Path, kind: str) -> dict[str, Tensor]:
    """Read a file of torch.save, whatever its name.

    Args:
        path: The file.
        kind: Format of the file, by :func:`~mvczigal_ref.models.file_kinds.describe_file`.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: As :func:`read_tensors`.
    """
    if not path.is_file():  # a pipe would be waited for
        msg = f"`path` must be a whole file of tensors; got {str(path)!r}, which is {kind}."
        raise CheckpointError(msg)
    try:
        # An open file: torch would choose the format by the name's suffix.
        with warnings.catch_warnings(), path.open("rb") as file:
            if "archive" in kind:
                _check_sums(file)
            warnings.simplefilter("ignore")  # old formats are read or refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise nearly every kind of exception
        # torch's own text advises to run the pickle.
        msg = (
            f"`path` must be a whole file of tensors; got {str(path)!r}, which is "
            f"{_cause(path, kind, error)}"
        )
        raise CheckpointError(msg) from error
    return _by_name(content, path)


def _check_sums(file: BinaryIO) -> None:
    """Compare an archive's checksums with its parts, which torch itself leaves undone."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum of {damaged}")
    file.seek(0)


def _by_name(content: object, path: Path) -> dict[str, Tensor]:
    """Take the tensors out of their wrapper; refuse anything but tensors by name."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        msg = (
            f"`path` must hold tensors by name; got {str(path)!r} with "
            f"{type(content).__name__}. Is it another model's file?"
        )
        raise CheckpointError(msg)
    foreign = sorted(str(name) for name, value in content.items() if not isinstance(value, Tensor))
    if foreign:
        msg = (
            f"`path` must hold nothing but tensors; got {str(path)!r} with "
            f"{summary(foreign)}. Is it another model's file?"
        )
        raise CheckpointError(msg)
    odd = [name for name in content if not isinstance(name, str) or name == "__metadata__"]
    if odd:
        msg = (
            f"`path` must name its tensors by text, other than '__metadata__'; got {str(path)!r} "
            f"with {quoted(odd[0])}. Rename them where it came from."
        )
        raise CheckpointError(msg)
    tensors = dict(content)
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    if odd:
        msg = (
            f"`path` must hold plain tensors, neither sparse nor quantised; got {str(path)!r} with "
            f"{summary(odd)}. Save them with `to_dense()` or `dequantize()`."
        )
        raise CheckpointError(msg)
    return tensors


def _is_plain(value: Tensor) -> bool:
    """Return whether a tensor is a dense array in memory."""
    return value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"


def _cause(path: Path, kind: str, error: Exception) -> str:
    """Describe why a file is no file of tensors, and the remedy."""
    if "TorchScript" in kind:
        return f"{kind}. Save its `state_dict()` by itself with torch.save, where it came from."
    if "pickle" not in kind:
        return f"{kind}. Download it again."
    if isinstance(error, zipfile.BadZipFile):
        return f"{kind}, damaged ({first_line(error)}). Download it again."
    try:
        with path.open("rb") as file:
            foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # too damaged to be listed
        foreign = []
    if foreign:
        return (
            f"a pickle that needs Python's {summary(foreign)}, and code of a pickle is never "
            "run. Save its tensors by themselves, as `state_dict`, where it came from."
        )
    return f"{kind}, damaged ({type(error).__name__}). Download it again."
