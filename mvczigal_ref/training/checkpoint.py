"""Checkpoints that are whole or absent, whenever the process dies.

A checkpoint is a folder, written under a hidden name, synced, then renamed:
tensors in safetensors, everything else in JSON, and a manifest that holds the
size and SHA-256 of each file. Nothing is unpickled.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mvczigal_ref.config import TrainConfig, fingerprint, from_dict, to_dict
from mvczigal_ref.errors import CheckpointError, ConfigError, newer
from mvczigal_ref.files import discard, sync, sync_files, to_json, usual_mode, writing
from mvczigal_ref.models.sharding import shard_world
from mvczigal_ref.training.checkpoint_folder import (
    FORMAT,
    JSON_FILES,
    MANIFEST,
    REPLACED,
    VERSION,
    checkpoint_name,
    checkpoints,
    measure,
    read_state,
    refusal,
    seal,
    verify,
)
from mvczigal_ref.training.places import in_places, run_difference
from mvczigal_ref.training.tensor_groups import read_groups, write_groups

__all__ = [
    "Checkpoint",
    "clean_leftovers",
    "load_checkpoint",
    "prune_checkpoints",
    "save_checkpoint",
]


_MOMENTS = ("optimizer.safetensors",)  # of processes that shared the parameters in their parts


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
    target = folder / checkpoint_name(iteration)
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
    files = {file.name: measure(file) for file in sorted(aside.iterdir())}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "iteration": iteration,
        "fingerprint": fingerprint(config),
        "files": files,
    }
    manifest["sha256"] = seal(manifest)
    (aside / MANIFEST).write_text(to_json(manifest), "utf-8")
    sync_files(aside)


def _publish(aside: Path, target: Path) -> None:
    """Give a finished checkpoint its name, in the place of one that has it."""
    old = target.with_name(target.name + REPLACED)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    sync(target.parent)
    discard(old)


def load_checkpoint(
    path: Path, *, config: TrainConfig | None = None, learning: bool = True
) -> Checkpoint:
    """Read a checkpoint after checking every byte that is read.

    Args:
        path: The checkpoint's folder.
        config: Configuration of the run that goes on with it, or None for any.
        learning: Whether the run is to go on. Else the optimiser's moments, twice the size of the
            parameters, are not read, and may be missing.

    Returns:
        Content of the checkpoint, bit for bit.

    Raises:
        CheckpointError: If it is damaged, of another format, a newer version's, or of another
            configuration.
    """
    unread = () if learning else _MOMENTS
    manifest = verify(path, unread=unread)
    try:
        saved = from_dict(json.loads((path / "config.json").read_text("utf-8")))
    except ConfigError as error:
        raise refusal(path, f"this package cannot read its settings: {error}") from error
    state = read_state(path)
    if config is not None:
        _require_same_run(path, saved, config, state)
    try:
        tensors = read_groups(path, manifest["files"].keys() - {*JSON_FILES, *unread})
    except CheckpointError as error:
        raise refusal(path, str(error)) from error
    if "policy" not in tensors:
        fault = "it lists no file with the parameters of a 'policy'"
        raise refusal(path, newer(MANIFEST, fault))
    return Checkpoint(iteration=manifest["iteration"], tensors=tensors, state=state, config=saved)


def _require_same_run(
    path: Path, saved: TrainConfig, config: TrainConfig, state: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint that differs in a setting that the run's numbers depend on."""
    there, here = in_places(saved, state.get("paths")), in_places(config)
    if differing := run_difference(there, here, state):
        raise refusal(path, f"it belongs to another configuration: {differing}")


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
    for place, path in enumerate(reversed(checkpoints(folder))):
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
    for old in folder.glob(f"iteration_*{REPLACED}"):
        target = old.with_name(old.name.removesuffix(REPLACED))
        if target.exists():
            discard(old)
        else:
            old.rename(target)


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True
