"""Files of weights and settings: read, or refused in one line where they are something else."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvczigal_ref.errors import CheckpointError, first_line, one_line
from mvczigal_ref.files import replacing, usual_mode
from mvczigal_ref.models.file_kinds import conversion, describe_file, plain_name, summary
from mvczigal_ref.models.file_sums import require_sum

__all__ = [
    "check_safetensors",
    "described_by",
    "pickled_weights",
    "read_json",
    "read_metadata",
    "read_safetensors",
    "unshared",
    "write_safetensors",
]

_COUNTERS = ("position_ids", "num_batches_tracked")  # integers of networks


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


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file so that a reader finds the old one or the new, never a part.

    Args:
        path: File to write; its folder is made if absent.
        tensors: Tensors by name, which may share memory.
        metadata: Texts to hold beside them.

    Raises:
        OSError: The error of the disk, with the path.
    """
    with replacing(path) as aside:
        save_file(unshared(tensors), aside, metadata=metadata)
        usual_mode(aside)


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor memory of its own on the CPU, row by row, as the file format needs.

    Args:
        tensors: Tensors by name, on any device.

    Returns:
        Detached tensors by name; those of which that holds already are not copied.

    Examples:
        >>> import torch
        >>> a = torch.zeros(2)
        >>> one, two = unshared({"one": a, "two": a}).values()
        >>> one.data_ptr() == a.data_ptr(), two.data_ptr() == a.data_ptr()
        (True, False)
    """
    apart: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in places:
            value = value.clone()
        places.add(value.untyped_storage().data_ptr())
        apart[name] = value
    return apart


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
            return f"it holds {path.name}, and pickles are not loaded: {conversion(path)}"
    return None


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
    remedy = f"To read it, {conversion(path)}." if pickled else "Download it again."
    if path.exists() and not os.access(path, os.R_OK):
        remedy = "Change its mode, or its owner."
    return CheckpointError(f"`{path}` must be a whole safetensors file; it is {what}. {remedy}")
