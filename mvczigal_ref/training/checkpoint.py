"""Checkpoints that are whole or absent, whenever the process dies.

A checkpoint is a folder, written under a hidden name, synced, then renamed:
tensors in safetensors, everything else in JSON, and a manifest that holds the
size and SHA-256 of each file. Nothing is unpickled.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mvczigal_ref.config import TrainConfig, fingerprint, fingerprinted, from_dict, to_dict
from mvczigal_ref.config.fingerprint import settings_difference
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.files import discard, sync, to_json, usual_mode, writing
from mvczigal_ref.models.sharding import shard_world
from mvczigal_ref.training.saved_state import require_state
from mvczigal_ref.training.tensor_groups import read_groups, write_groups

__all__ = [
    "Checkpoint",
    "clean_leftovers",
    "latest_checkpoint",
    "load_checkpoint",
    "load_state",
    "prune_checkpoints",
    "require_same_run",
    "save_checkpoint",
]


_FORMAT = "mvczigal-ref checkpoint"
_VERSION, _MANIFEST = 1, "manifest.json"
_NAME = re.compile(r"iteration_(\d{6,})")
_REPLACED = ".replaced"  # ends the name of a checkpoint that a new one of its iteration replaces


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Content of a checkpoint."""

    iteration: int
    """Iterations finished when it was written."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Tensors by group and name, on the CPU."""
    state: dict[str, Any]
    """Everything that is not a tensor, as JSON values."""
    config: TrainConfig
    """Configuration of the run that wrote it."""

    @property
    def policy(self) -> Mapping[str, Tensor]:
        """Parameters that the run is judged by: their average, if it has one."""
        return self.tensors.get("average", self.tensors["policy"])


def save_checkpoint(
    folder: Path,
    iteration: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    config: TrainConfig,
) -> Path:
    """Write one checkpoint; it has its name only once all of it is on the disk.

    Processes of several machines need a disk that all of them share.

    Args:
        folder: Folder of a run's checkpoints; it is made.
        iteration: Iterations finished; at least 0.
        tensors: Tensors by group and name; a group becomes a file of its own. Where some are
            sharded, every process must call, and writes files of its parts; where one of them
            fails, all raise its error.
        state: The rest, as JSON values: lists rather than tuples, text as keys, finite floats.
        config: Configuration of the run.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If the disk does not take it; nothing of it is left.
        ValueError: If a group's name cannot name a file, or the state would not come back equal.
    """
    target = folder / _name(iteration)
    text = to_json(state)
    if json.loads(text) != state:
        msg = "`state` must be JSON that reads back equal; use lists and text keys, not tuples."
        raise ValueError(msg)
    for group in tensors:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", group):
            msg = f"`tensors` must be grouped under lower-case names; got {group!r}."
            raise ValueError(msg)
    here = shard_world(tensors)
    aside = folder / f".{target.name}.{os.getpid() if here.size == 1 else 'shards'}.tmp"
    with writing(target, aside=aside):  # removes it once all have agreed that it fails
        with here.agreed(), writing(target):
            if here.is_main:
                clean_leftovers(folder)
                aside.mkdir(parents=True)
        with here.agreed(), writing(target):
            write_groups(aside, tensors)
        with here.agreed(), writing(target):
            if here.is_main:
                _finish(aside, iteration, text, config)
    with here.agreed():
        if here.is_main:
            _publish(aside, target)
    return target


def _finish(aside: Path, iteration: int, text: str, config: TrainConfig) -> None:
    """Write what stands beside the tensors, and wait until all of it is on the disk."""
    usual_mode(aside)
    (aside / "state.json").write_text(text, "utf-8")
    (aside / "config.json").write_text(to_json(to_dict(config)), "utf-8")
    files = {file.name: _measure(file) for file in sorted(aside.iterdir())}
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "iteration": iteration,
        "fingerprint": fingerprint(config),
        "files": files,
    }
    manifest["sha256"] = _seal(manifest)
    (aside / _MANIFEST).write_text(to_json(manifest), "utf-8")
    for file in aside.iterdir():
        sync(file)
    sync(aside)


def _publish(aside: Path, target: Path) -> None:
    """Give a finished checkpoint its name, in the place of one that has it."""
    old = target.with_name(target.name + _REPLACED)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    sync(target.parent)
    discard(old)


def load_checkpoint(path: Path, *, config: TrainConfig | None = None) -> Checkpoint:
    """Read a checkpoint after checking every byte of it.

    Args:
        path: The checkpoint's folder.
        config: Configuration whose fingerprint the checkpoint must have, or None for any.

    Returns:
        Content of the checkpoint, bit for bit.

    Raises:
        CheckpointError: If it is damaged, of another format, or of another configuration.
    """
    manifest = _verify(path)
    try:
        saved = from_dict(json.loads((path / "config.json").read_text("utf-8")))
    except ConfigError as error:
        raise _refuse(path, f"this package cannot read its settings: {error}") from error
    if config is not None:
        require_same_run(path, saved, config)
    try:
        tensors = read_groups(path, manifest["files"])
    except CheckpointError as error:
        raise _refuse(path, str(error)) from error
    return Checkpoint(
        iteration=manifest["iteration"], tensors=tensors, state=_read_state(path), config=saved
    )


def require_same_run(path: Path, saved: TrainConfig, config: TrainConfig) -> None:
    """Refuse a checkpoint of another configuration.

    Args:
        path: The checkpoint's folder, for the message.
        saved: Configuration of the run that wrote it.
        config: Configuration that is to go on with it.

    Raises:
        CheckpointError: If a setting that the run's numbers depend on differs.
    """
    differing = settings_difference(fingerprinted(saved), fingerprinted(config))
    if differing:
        raise _refuse(path, f"it belongs to another configuration: {differing}")


def load_state(path: Path) -> dict[str, Any]:
    """Read what a checkpoint holds beside tensors, without reading those.

    Args:
        path: The checkpoint's folder.

    Returns:
        JSON values of the checkpoint.

    Raises:
        CheckpointError: If manifest or values are damaged.
    """
    _require_file(path, "state.json", _read_manifest(path)["files"]["state.json"])
    return _read_state(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint by number; `load_checkpoint` says whether it is whole.

    A kill leaves no damaged one, so a damaged one is never passed over in silence.

    Args:
        folder: Folder of a run's checkpoints; it need not exist. Nothing in it is changed.

    Returns:
        The checkpoint's folder, or None if there is none.
    """
    return next(reversed(_checkpoints(folder)), None)


def prune_checkpoints(folder: Path, *, keep: int) -> None:
    """Remove all but the newest checkpoints, and never the newest whole one.

    Args:
        folder: Folder of a run's checkpoints.
        keep: Number of checkpoints that stay; at least 1.

    Raises:
        ValueError: If `keep` is less than 1.
    """
    if keep < 1:
        msg = f"`keep` must be at least 1; got {keep}."
        raise ValueError(msg)
    clean_leftovers(folder)
    whole = False
    for place, path in enumerate(reversed(_checkpoints(folder))):
        if place < keep:
            whole = whole or _is_whole(path)
        elif not whole and _is_whole(path):
            whole = True
        else:
            # First the name, so that a kill half-way leaves no named half.
            gone = path.with_name(f".{path.name}.gone.tmp")
            path.rename(gone)
            discard(gone)


def clean_leftovers(folder: Path) -> None:
    """Remove what a killed writer left; only the run's one writer may call it.

    Args:
        folder: Folder of a run's checkpoints; it need not exist.
    """
    for path in folder.glob(".iteration_*.tmp"):
        discard(path)
    for old in folder.glob(f"iteration_*{_REPLACED}"):
        target = old.with_name(old.name.removesuffix(_REPLACED))
        if target.exists():
            discard(old)
        else:
            old.rename(target)


def _checkpoints(folder: Path) -> list[Path]:
    """Everything that is named as a checkpoint, oldest first; a file in its place is damage."""
    paths: dict[int, Path] = {}
    # A glob would find a folder empty that may not be read. A replaced one counts without another.
    for path in sorted(folder.iterdir() if folder.exists() else (), reverse=True):
        match = _NAME.fullmatch(path.name.removesuffix(_REPLACED))
        if match is not None:
            paths[int(match[1])] = path
    return [paths[iteration] for iteration in sorted(paths)]


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return require_state((path / "state.json").read_text("utf-8"))
    except CheckpointError as error:
        raise _refuse(path, str(error).rstrip(".")) from error


def _is_whole(path: Path) -> bool:
    try:
        _verify(path)
    except CheckpointError:
        return False
    return True


def _verify(path: Path) -> dict[str, Any]:
    """Check every byte; give the manifest."""
    manifest = _read_manifest(path)
    for name, written in manifest["files"].items():
        _require_file(path, name, written)
    return manifest


def _require_file(path: Path, name: str, written: Mapping[str, Any]) -> None:
    """Refuse a file that is not what the manifest says."""
    file = path / name
    if not file.is_file():
        raise _refuse(path, f"its file {name!r} is missing")
    if (measure := _measure(file))["bytes"] != written["bytes"]:
        sizes = f"{measure['bytes']} bytes of {written['bytes']}"
        raise _refuse(path, f"its file {name!r} has {sizes}")
    if measure != written:
        raise _refuse(path, f"the content of its file {name!r} is not what was written")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = (path / _MANIFEST).read_text("utf-8")
        manifest = json.loads(text)
        written = isinstance(manifest, dict) and text == to_json(manifest)
    except (OSError, ValueError) as error:
        raise _refuse(path, f"its {_MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise _refuse(path, f"its {_MANIFEST} is not one of a {_FORMAT}")
    if manifest.get("version") != _VERSION:
        version = f"version {manifest.get('version')!r}; this package reads {_VERSION}"
        raise _refuse(path, f"its {_MANIFEST} is of {version}")
    if not written or manifest.get("sha256") != _seal(manifest):
        raise _refuse(path, f"its {_MANIFEST} is not what was written")
    # A name that is no checkpoint's is the caller's; one that is must be its own.
    name = _NAME.fullmatch(path.name.removesuffix(_REPLACED))
    if name is not None and int(name[1]) != manifest["iteration"]:
        raise _refuse(path, f"it was written as {_name(manifest['iteration'])!r} and renamed")
    return manifest


def _name(iteration: int) -> str:
    return f"iteration_{iteration:06d}"


def _refuse(path: Path, reason: str) -> CheckpointError:
    sentence = f"cannot use checkpoint {str(path)!r}: {reason}. "
    return CheckpointError(sentence + "Remove it to go on from the one before, or name another.")


def _seal(manifest: Mapping[str, Any]) -> str:
    unsealed = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(to_json(unsealed).encode()).hexdigest()


def _measure(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
