"""Reading and writing tensors strictly: what does not fit is named, not logged."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import atomic_write, to_json

__all__ = ["cast_network", "load_model", "load_strict", "quiet", "save_config", "stored"]


def load_strict(
    target: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: str
) -> None:
    """Copy tensors into others of the same names and shapes, or refuse by name.

    Args:
        target: Tensors to overwrite, by name; they keep their type and device.
        tensors: Values.
        source: Where they came from, for the message.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape;
            then nothing is changed.

    Examples:
        >>> load_strict({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, source="file")
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: `file` must hold ...: missing a; unexpected b.
    """
    faults = [f"missing {name}" for name in target if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in target]
    faults += [
        f"{name} of shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, value in target.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if faults:
        msg = f"`{source}` must hold exactly the network's tensors: {'; '.join(faults)}."
        raise CheckpointError(msg)
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(tensors[name])


def load_model(kind: Any, folder: Path, **options: torch.dtype) -> Any:  # noqa: ANN401 - untyped libraries
    """Load a library's model and refuse what the library only logs."""
    options_all: dict[str, Any] = {"output_loading_info": True, "local_files_only": True, **options}
    try:
        loaded, info = kind.from_pretrained(folder, **options_all)
    except (ValueError, RuntimeError):
        # Both libraries stop at a misshapen tensor; read on, to name all of them.
        slow = {"low_cpu_mem_usage": False, "ignore_mismatched_sizes": True}
        loaded, info = kind.from_pretrained(folder, **options_all, **slow)
    kinds = {"missing": "missing_keys", "unexpected": "unexpected_keys"}
    faults = [f"{word} {name}" for word, key in kinds.items() for name in sorted(info[key])]
    faults += [
        f"{name} of shape {tuple(found)}, not {tuple(wanted)}"
        for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    if faults:
        msg = f"`{folder}` must hold exactly the network's tensors: {'; '.join(faults)}."
        raise CheckpointError(msg)
    return loaded.eval()


def save_config(model: Any, folder: Path) -> None:  # noqa: ANN401 - untyped libraries
    """Write a diffusers model's ``config.json`` without the folder that it was once read from."""
    config = json.loads(model.to_json_string())
    config.pop("_name_or_path", None)
    atomic_write(folder / "config.json", to_json(config))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' progress bars and their reports of what is refused anyway."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, progress) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if progress:
                library.enable_progress_bar()


def stored(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Cast floating tensors where asked, and lay them out for a file."""
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).detach().contiguous()
        for name, value in tensors.items()
    }


def cast_network(network: nn.Module, device: Any, dtype: torch.dtype | None) -> nn.Module:  # noqa: ANN401
    """Move a network as torch does; diffusers' own method warns about types."""
    return nn.Module.to(network, device=device, dtype=dtype)
