"""Folders of diffusers pipelines and of their parts, on this machine or in the hub's cache."""

from pathlib import Path

import torch
from transformers.utils import cached_file

from mvczigal_ref.errors import CheckpointError, quoted
from mvczigal_ref.models.downloads import PARTS, download_hint
from mvczigal_ref.models.single_files import refuse_single_file
from mvczigal_ref.models.weight_files import read_json

__all__ = [
    "cached_repository_file",
    "find_part",
    "find_pipeline",
    "pipeline_class",
    "require_parts",
    "weights_variant",
]


def find_pipeline(source: str | Path) -> Path:
    """Take a folder as it is, and look a name up in the cache.

    Args:
        source: Folder of a pipeline, or its name on the hub. Nothing is downloaded.

    Returns:
        The folder.

    Raises:
        CheckpointError: If there is neither; says what to download.
    """
    refuse_single_file("source", source)
    if Path(source).is_dir():
        return Path(source)
    index = cached_repository_file(str(source), "model_index.json")
    if index is None:
        msg = (
            "`source` must be the folder of a diffusers pipeline, or the name of one in the local "
            f"cache; got {str(source)!r}. {download_hint(str(source))}"
        )
        raise CheckpointError(msg)
    return index.parent


def find_part(name: str, source: str) -> Path:
    """Find one network of a pipeline that is named apart.

    Args:
        name: Name of the network in a diffusers pipeline.
        source: Folder of the network or of a pipeline that holds it, or a name on the hub.
            Nothing is downloaded.

    Returns:
        Folder of its settings and tensors.

    Raises:
        CheckpointError: If there is none; says what to download.
    """
    folder = Path(source).expanduser()
    for file in ("config.json", f"{name}/config.json"):
        path: Path | None = folder / file
        if not folder.is_dir():
            path = cached_repository_file(source, file)
        if path is not None and path.is_file():
            return path.parent
    msg = (
        f"`{name}` must be a folder or the name of a cached repository that holds config.json or "
        f"{name}/config.json; got {source!r}. Download it first: hf download {source}"
    )
    raise CheckpointError(msg)


def pipeline_class(folder: Path) -> str:
    """Read the name of the pipeline that a folder's index says.

    Args:
        folder: Folder of a pipeline.

    Returns:
        Name of its class in diffusers.

    Raises:
        CheckpointError: If there is no such index.
    """
    try:
        named = read_json(folder / "model_index.json")["_class_name"]
    except LookupError as error:
        msg = f"`{folder}` must hold a model_index.json that names its pipeline; got {error!r}."
        raise CheckpointError(msg) from error
    return named if isinstance(named, str) else quoted(named)


def require_parts(folder: Path, parts: list[str], *, source: str = "") -> None:
    """Refuse a folder without every part of the pipeline.

    Args:
        folder: Folder of a pipeline.
        parts: Names of its sub-folders.
        source: Place that was asked for; of a published pipeline the sizes are known.

    Raises:
        CheckpointError: If some are absent; the message names them.
    """
    absent = [name for name in parts if not (folder / name).exists()]
    if absent:
        msg = f"`{folder}` must hold every part of a pipeline; absent: {', '.join(absent)}."
        if source in PARTS:
            msg += f" {download_hint(source, absent)}"
        raise CheckpointError(msg)


def weights_variant(folder: Path, dtype: torch.dtype) -> str | None:
    """Choose between the full tensors of a network and those in half precision.

    Args:
        folder: Folder of a network.
        dtype: Floating type that it is loaded in.

    Returns:
        Word "fp16" of the files' names in half precision, or where there are no others; None for
        the full ones.
    """
    stems = ("diffusion_pytorch_model", "model")
    half = any((folder / f"{stem}.fp16.safetensors").is_file() for stem in stems)
    full = any(
        (folder / f"{stem}.safetensors{end}").is_file()
        for stem in stems
        for end in ("", ".index.json")
    )
    return "fp16" if half and (dtype != torch.float32 or not full) else None


def cached_repository_file(source: str, name: str) -> Path | None:
    """Look one file of a hub repository up in the cache.

    Args:
        source: Name of the repository.
        name: Name of the file in it.

    Returns:
        The file, or None.
    """
    try:
        path = cached_file(source, name, local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if path is None else Path(str(path))
