"""Identity of the weights that a run began with: their content, wherever they lie."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.published import PUBLISHED, SdxlSources, published_sources, weights_folder
from mvczigal_ref.models.sources import find_file

__all__ = ["require_same_weights", "weights_identity"]

_READ = (".safetensors", ".bin", ".json", ".txt", ".model")


def weights_identity(config: TrainConfig) -> dict[str, str]:
    """Digest the base weights that a configuration names.

    Every byte of every file is read, once per process while the file keeps its size and time.

    Args:
        config: The section ``model`` is read.

    Returns:
        Absolute path, or revision on the hub, and SHA-256; of published models by part.

    Examples:
        >>> sorted(weights_identity(TrainConfig()))
        ['place', 'sha256']
    """
    model = config.model
    if model.network == "unet" and model.sources:
        cached = SdxlSources(local_files_only=True)
        parts = {"base": _of_place(weights_folder(model.weights))}
        parts |= {name: _of_source(place, cached) for name, place in model.sources.items()}
        return _joined(parts)
    if model.weights not in PUBLISHED:
        return _of_place(weights_folder(model.weights))
    sources = published_sources(model.weights, model.sources)
    return _joined(
        {
            name: _of_source(str(getattr(sources, name)), sources)
            for name in ("base", "unet", "vae", "adapter")
            if getattr(sources, name) is not None
        }
    )


def _joined(parts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Give the identities of several parts as one."""
    return {
        key: "; ".join(f"{name}: {part[key]}" for name, part in parts.items())
        for key in ("place", "sha256")
    }


def require_same_weights(
    config: TrainConfig, state: Mapping[str, Any], *, identity: Mapping[str, str] | None = None
) -> None:
    """Refuse to go on with a checkpoint on other base weights than it was trained on.

    Args:
        config: The run.
        state: JSON values of the checkpoint; those of an older version say nothing.
        identity: From :func:`weights_identity`; computed if absent.

    Raises:
        CheckpointError: If the weights have changed, or are looked up elsewhere.
    """
    then = state.get("weights")
    if then is None:
        return
    now = weights_identity(config) if identity is None else identity
    if now["sha256"] == then["sha256"]:
        return
    moved = now["place"] != then["place"]
    reason = (
        f"were in {then['place']!r} and are looked up in {now['place']!r}"
        if moved
        else (f"in {now['place']!r} have changed since")
    )
    msg = (
        f"`model.weights` = {config.model.weights!r} must be the base weights that the run began "
        f"with; they {reason}. Restore them, start where a relative path leads to them, or begin a "
        "new run from an exported policy by `--from`."
    )
    raise CheckpointError(msg)


def _of_source(source: str, sources: SdxlSources) -> dict[str, str]:
    """Digest a local folder or file; of a hub repository take the revision that is cached."""
    place = Path(source).expanduser()
    if place.exists():
        return _of_place(place)
    for name in ("model_index.json", "config.json", "unet/config.json", "README.md"):
        path, _ = find_file(source, name, sources)
        if path is not None and "snapshots" in path.parts:
            revision = path.parts[path.parts.index("snapshots") + 1]
            return {"place": source, "sha256": revision}
    return {"place": source, "sha256": source}


def _of_place(place: Path) -> dict[str, str]:
    place = place.absolute()
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    digest = hashlib.sha256()
    for file in files:
        if file.is_file() and file.suffix in _READ:
            name = "" if file == place else file.relative_to(place).as_posix()
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            status = file.stat()
            digest.update(_content(file, status.st_ino, status.st_size, status.st_mtime_ns))
    return {"place": str(place), "sha256": digest.hexdigest()}


@cache
def _content(file: Path, *_status: int) -> bytes:
    """Digest a file's whole content; its status tells a changed one apart in the cache."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
