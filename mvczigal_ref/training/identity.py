"""Identity of the weights that a run began with: their content, wherever they lie."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import file_digest
from mvczigal_ref.models.published import (
    ADAPTER_FILES,
    PUBLISHED,
    SdxlSources,
    published_sources,
    weights_folder,
)

__all__ = ["names_content", "require_same_weights", "weights_identity"]

_READ = (".safetensors", ".bin", ".json", ".txt", ".model")

# Files by which the cached revision of a repository is told, whatever part it holds.
_CACHED: tuple[str, ...] = (
    *("model_index.json", "config.json", "unet/config.json", "vae/config.json"),
    *(*ADAPTER_FILES, "pytorch_lora_weights.safetensors", "README.md"),
)

_NOTHING = hashlib.sha256().hexdigest()  # older checkpoints tell it of a hub id


def weights_identity(config: TrainConfig) -> dict[str, str]:
    """Digest the base weights that a configuration names.

    Every byte of every file is read, once per process while the file keeps its size and time. Of
    a repository on the hub the cache alone is asked, which may hold nothing before it is loaded.

    Args:
        config: The section ``model`` is read.

    Returns:
        Absolute path or hub id as ``place``; SHA-256, or the cached commit of a hub id, or its
        name while none is cached, as ``sha256``; of several parts by part.

    Examples:
        >>> sorted(weights_identity(TrainConfig()))
        ['place', 'sha256']
    """
    model, places = config.model, dict[str, str]()
    if model.weights in PUBLISHED:
        sources = published_sources(model.weights, model.sources)
        named = {name: getattr(sources, name) for name in ("base", "unet", "vae", "adapter")}
        places = {name: str(place) for name, place in named.items() if place is not None}
    elif model.sources:
        places = {"base": str(weights_folder(model.weights)), **model.sources}
    if not places:
        return _of_source(str(weights_folder(model.weights)))
    return _joined({name: _of_source(place) for name, place in places.items()})


def names_content(identity: Mapping[str, str] | None) -> bool:
    """Say whether the identity in a checkpoint tells one set of weights from another.

    Args:
        identity: From :func:`weights_identity`, perhaps of an older version; None if it is absent.

    Returns:
        False if it is absent, or the digest of no file that older versions wrote for a hub id.

    Examples:
        >>> names_content({"place": "org/name", "sha256": "ab"}), names_content(None)
        (True, False)
    """
    return identity is not None and identity["sha256"] != _NOTHING


def _joined(parts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Give the identities of several parts as one."""
    return {
        key: "; ".join(f"{name}: {part[key]}" for name, part in parts.items())
        for key in ("place", "sha256")
    }


def require_same_weights(
    config: TrainConfig, state: Mapping[str, Any], identity: Mapping[str, str] | None = None
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
    if not _differ(then, now):
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


def _differ(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Say whether a part has changed; a hub id is no other one for its commit being unknown."""
    if then["sha256"] in (now["sha256"], _NOTHING):
        return False
    if now["place"] != then["place"]:
        return True
    places = now["place"].split("; ")
    digests = (then["sha256"].split("; "), now["sha256"].split("; "))
    if not len(places) == len(digests[0]) == len(digests[1]):
        return True
    return any(
        one != other and place not in (one, other)
        for place, one, other in zip(places, *digests, strict=True)
    )


def _of_source(source: str) -> dict[str, str]:
    """Digest a local folder or file; of a hub repository take the commit that is cached."""
    place = Path(source).expanduser()
    if place.exists():
        return _of_place(place)
    from mvczigal_ref.models.sources import find_file  # which imports diffusers

    repository, names = source, _CACHED
    if "@" not in source and source.count("/") == 2:  # a file of a repository
        repository, _, file = source.rpartition("/")
        names = (file,)
    for name in names:
        path, _ = find_file(repository, name, SdxlSources(local_files_only=True))
        if path is not None and "snapshots" in path.parts:
            return {"place": source, "sha256": path.parts[path.parts.index("snapshots") + 1]}
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
    return bytes.fromhex(file_digest(file))
