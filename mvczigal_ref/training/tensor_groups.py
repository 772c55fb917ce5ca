"""Tensors of a checkpoint: one file per group, or one per group and process.

A process's file of sharded tensors holds its part of each, cut along the first axis. Reading joins
them one tensor at a time, for any number of processes; a tensor that the first file holds alone is
whole.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvczigal_ref.files import sync
from mvczigal_ref.models.sharding import is_sharded, shard_world

__all__ = ["SavedParts", "read_groups", "write_groups"]

_FILE = re.compile(r"(?P<group>[a-z][a-z0-9_]*)(\.\d{5}-of-\d{5})?\.safetensors")


class SavedParts(Mapping[str, Tensor]):
    """Tensors of a group that several files hold, each joined when it is asked for.

    Args:
        files: Files of the group, in the order of the processes that wrote them.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [safe_open(file, framework="pt") for file in files]
        self._names = list(self._files[0].keys())
        self._cut = set(self._files[-1].keys())

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor, whole."""
        if name not in self._names:
            raise KeyError(name)
        files = self._files if name in self._cut else self._files[:1]
        return (
            torch.cat([file.get_tensor(name) for file in files])
            if files[1:]
            else (files[0].get_tensor(name))
        )

    def __iter__(self) -> Iterator[str]:
        """Go over the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._names)


def write_groups(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write this process's files.

    Args:
        folder: Folder that the first process has made.
        tensors: Tensors by group and name. Those that are not sharded are the first process's.
    """
    here = shard_world(tensors)
    rank, size = here.rank, here.size
    for group, named in tensors.items():
        part = "" if size == 1 else f".{rank:05d}-of-{size:05d}"
        file = folder / f"{group}{part}.safetensors"
        local = named
        if size > 1:
            local = {
                name: value.to_local() if is_sharded(value) else value
                for name, value in named.items()
                if rank == 0 or is_sharded(value)
            }
        save_file(_unshared(local), file)
        if rank:
            sync(file)


def read_groups(folder: Path, names: Iterable[str]) -> dict[str, Mapping[str, Tensor]]:
    """Read the tensors of a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        names: Names of its files, others among them.

    Returns:
        Tensors by group and name, on the CPU; those of several files are read when asked for.
    """
    files: dict[str, list[Path]] = {}
    for name in sorted(names):
        match = _FILE.fullmatch(name)
        if match is not None:
            files.setdefault(match["group"], []).append(folder / name)
    return {
        group: load_file(paths[0]) if len(paths) == 1 else SavedParts(paths)
        for group, paths in files.items()
    }


def _unshared(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached CPU copies that share no memory, as the file format needs."""
    copies: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in named.items():
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in seen:
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        copies[name] = copy
    return copies
