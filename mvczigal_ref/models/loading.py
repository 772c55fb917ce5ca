"""Strict reading and writing of tensors: whatever does not fit is named, not logged."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mvczigal_ref.errors import CheckpointError, first_line, quoted
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.models.file_kinds import plain_name
from mvczigal_ref.models.file_sums import require_sum
from mvczigal_ref.models.low_bit_reading import (
    FewBits,
    few_bit_weights,
    low_bit_reading,
    mark_low_bit,
)
from mvczigal_ref.models.mapped import cast_mapped, forget, keeps_fp32
from mvczigal_ref.models.saved_parts import SavedParts
from mvczigal_ref.models.sharding import cast_tensors, local_part
from mvczigal_ref.models.weight_files import check_safetensors, pickled_weights, read_json

__all__ = [
    "cast_network",
    "check_folder",
    "load_model",
    "load_strict",
    "quiet",
    "require_exact",
    "save_config",
    "shards_of",
    "stored",
    "stored_dtype",
]

_SHOWN = 4  # faults of a kind in a message


def load_strict(
    target: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    spent: bool = False,
) -> None:
    """Copy tensors into others of the same names and shapes, or refuse by name.

    Args:
        target: Tensors to overwrite, by name; they keep their type and device.
        tensors: Values.
        source: Origin of the values, for the message.
        spent: Whether nothing reads ``tensors`` afterwards, so that their memory is given back.

    Raises:
        CheckpointError: As :func:`require_exact`. Then nothing is changed.
    """
    if isinstance(tensors, SavedParts):
        require_exact(target, tensors.headers, source=source)
        tensors.read_into(target)
        return
    require_exact(target, tensors, source=source)
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(local_part(tensors[name], value))
            if spent:
                forget(tensors[name])


def require_exact(
    target: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: str
) -> None:
    """Refuse tensors that are not those of a network.

    Args:
        target: Tensors of the network, by name; those on the meta device too.
        tensors: Values.
        source: Origin of the values, for the message.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape; the first are
            named and the others counted.

    Examples:
        >>> require_exact({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, source="file")
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
    faults += [
        f"{name} of {tensors[name].dtype}, not floating-point"
        for name, value in target.items()
        if name in tensors and value.is_floating_point() > tensors[name].is_floating_point()
    ]
    if faults:
        msg = f"`{source}` must hold exactly the network's tensors: {_listed(faults)}."
        raise CheckpointError(msg)


def load_model(
    kind: Any,  # noqa: ANN401 - untyped libraries
    folder: Path,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    mapped: bool = False,
    few_bits: FewBits | None = None,
) -> Any:  # noqa: ANN401
    """Load a library's model from safetensors; refuse faults that the library only logs.

    Tensors in the type of their file are read when they are used; others are cast one by one, so
    that memory never holds much more than the file, or than the model where that is larger.

    Args:
        kind: Class of the model.
        folder: Folder with its settings and tensors.
        dtype: Floating type of the model.
        variant: Word in the names of the tensors' files.
        mapped: Whether the type of the file is kept in place of ``dtype``, if it has one.
        few_bits: Form of frozen linear weights of a model of diffusers; whole if None.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: If a file is of another kind, which the message names; or if a tensor is
            missing, left over or of another shape.
    """
    first = stored_dtype(check_folder(folder, variant)) or dtype
    if mapped:
        dtype = first
    if keeps_fp32(kind, dtype) or few_bits is not None:
        first = dtype
    options: dict[str, Any] = {
        "output_loading_info": True, "local_files_only": True, "use_safetensors": True,
        "torch_dtype" if hasattr(kind, "load_config") else "dtype": first,
    }  # fmt: skip
    if variant is not None:
        options["variant"] = variant
    try:
        rounding = {} if few_bits is None else low_bit_reading(kind, folder, few_bits)
        try:
            loaded, info = kind.from_pretrained(folder, **options, **rounding)
        except (ValueError, RuntimeError):
            # Both libraries stop at a misshapen tensor; read on, to name all of them.
            slow = {"low_cpu_mem_usage": False, "ignore_mismatched_sizes": True}
            loaded, info = kind.from_pretrained(folder, **options, **slow)
            if rounding and not info["mismatched_keys"]:
                raise  # of the rounding: a network that is read whole may not fit
    except Exception as error:  # unfit settings reach nearly every kind of exception
        msg = (
            f"`{folder}` must hold a readable {kind.__name__}, its config.json and its tensors; "
            f"got {type(error).__name__}: {first_line(error)}."
        )
        raise CheckpointError(msg) from error
    kinds = {"missing": "missing_keys", "unexpected": "unexpected_keys"}
    faults = [f"{word} {name}" for word, key in kinds.items() for name in sorted(info[key])]
    faults += [
        f"{name} of shape {tuple(stored_shape)}, not {tuple(shape)}"
        for name, stored_shape, shape in sorted(info["mismatched_keys"])
    ]
    if faults:
        msg = f"`{folder}` must hold exactly the network's tensors: {_listed(faults)}."
        raise CheckpointError(msg)
    if few_bits is not None:
        mark_low_bit(loaded)
    if first != dtype:
        cast_mapped(loaded, dtype)
    return loaded.eval()


def check_folder(folder: Path, variant: str | None = None) -> list[Path]:
    """Check a model's files before a library reads them: settings, index, headers of the tensors.

    Args:
        folder: Folder of the model.
        variant: Word in the names of the tensors' files.

    Returns:
        Files of the tensors; none where nothing of that name is there.

    Raises:
        CheckpointError: If a file is of another kind; the message says what it is.
    """
    config = read_json(folder / "config.json")
    require_sum(folder / "config.json")
    if not any(name in config for name in ("_class_name", "model_type", "architectures")):
        msg = (
            f"`{folder / 'config.json'}` must name its model's class; got {quoted(config)}. "
            "Download it again."
        )
        raise CheckpointError(msg)
    dotted, reasons = f".{variant}" if variant else "", []
    for stem in ("diffusion_pytorch_model", "model"):
        whole = folder / f"{stem}{dotted}.safetensors"
        index = folder / f"{stem}.safetensors.index{dotted}.json"
        files = [whole] if whole.is_file() else []
        if not files and index.is_file():
            files = [folder / shard for shard in sorted(shards_of(index))]
        for file in files:
            check_safetensors(file, floats=True)
            require_sum(file)
        if files:
            return files
        reasons.append(pickled_weights(folder, stem + dotted))
    for reason in filter(None, reasons):
        raise CheckpointError(f"`{folder}` must hold safetensors; {reason}.")
    return []


def stored_dtype(files: Iterable[Path]) -> torch.dtype | None:
    """Find the floating type in which a network lies on the disk.

    Args:
        files: Files of its tensors, in safetensors.

    Returns:
        Type of all its floating-point tensors; None where they have several, or there are none.

    Examples:
        >>> stored_dtype([]) is None
        True
    """
    types = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    kinds: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    kinds = {kind for kind in kinds if kind[0] not in "IU"}  # positions are integers
    return types.get(kinds.pop()) if len(kinds) == 1 else None


def shards_of(index: Path) -> set[str]:
    """List the files that hold a network's tensors.

    Args:
        index: JSON that names the file of each tensor.

    Returns:
        Names of files beside it.

    Raises:
        CheckpointError: If it is no such index, or names files in another folder.
    """
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content.get("metadata"), dict) else None
    values = list(names.values()) if isinstance(names, dict) else []
    if not values or not all(isinstance(n, str) and n == Path(n).name for n in values):
        msg = (
            f"`{index}` must hold `metadata`, and say in `weight_map` which file beside it holds "
            f"each tensor; got {str(content)[:80]}. Download it again."
        )
        raise CheckpointError(msg)
    return set(values)


def _listed(faults: list[str]) -> str:
    """Give the first faults of each kind, and the number of the others."""
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        word, fault = fault.partition(" ")[0], plain_name(fault)
        kinds.setdefault(word if word in ("missing", "unexpected") else "", []).append(fault)
    return "; ".join(
        "; ".join(each[:_SHOWN]) + (f"; and {len(each) - _SHOWN} more" * (len(each) > _SHOWN))
        for each in kinds.values()
    )


def save_config(model: Any, folder: Path) -> None:  # noqa: ANN401 - untyped libraries
    """Write a diffusers model's ``config.json`` without the folder that it was read from."""
    config = json.loads(model.to_json_string())
    config.pop("_name_or_path", None)
    atomic_write(folder / "config.json", to_json(config))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' progress bars, and their reports of faults that are refused anyway."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

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
    if dtype is None or not few_bit_weights(network):
        return nn.Module.to(network, device=device, dtype=dtype)
    nn.Module.to(network, device=device)
    cast_tensors(network, dtype, uncast=few_bit_weights(network))  # which a cast would break
    return network
