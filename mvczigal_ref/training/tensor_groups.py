"""Tensors of a checkpoint: one file per group, or files of each process where they are sharded."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from mvczigal_ref.errors import CheckpointError, newer
from mvczigal_ref.models.saved_parts import read_parts
from mvczigal_ref.models.sharded_files import write_parts
from mvczigal_ref.models.sharding import is_sharded, shard_world
from mvczigal_ref.models.weight_files import unshared

__all__ = ["read_groups", "write_groups"]

_FILE = re.compile(r"([a-z][a-z0-9_]*)\.safetensors")
_PART = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_FORMER = re.compile(r"[a-z][a-z0-9_]*\.\d{5}-of-\d{5}\.safetensors")


def write_groups(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write this process's files.

    Args:
        folder: Folder that the first process has made.
        tensors: Tensors by group and name. Those that are not sharded are the first process's; a
            group that holds no others is one file.
    """
    here, cut = shard_world(tensors), dict[str, Tensor]()
    for group, named in tensors.items():
        if any(is_sharded(value) for value in named.values()):
            cut |= {f"{group}.{name}": value for name, value in named.items()}
        elif here.is_main:
            save_file(unshared(named), folder / f"{group}.safetensors")
    if cut:
        write_parts(folder, cut, here)


def read_groups(folder: Path, names: Iterable[str]) -> dict[str, Mapping[str, Tensor]]:
    """Read the tensors of a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        names: Names of its files of tensors.

    Returns:
        Tensors by group and name, on the CPU; those of several processes are read when asked for.

    Raises:
        CheckpointError: If a file is of a layout that is not read any more, or not yet.
    """
    groups: dict[str, Mapping[str, Tensor]] = {}
    parts = []
    for name in sorted(names):
        if _FORMER.fullmatch(name):
            msg = (
                f"its file {name!r} is a part as development versions after 0.1.0 wrote it, and "
                "this one reads parts of `torch.distributed.checkpoint`"
            )
            raise CheckpointError(msg)
        if match := _FILE.fullmatch(name):
            groups[match[1]] = load_file(folder / name)
        elif _PART.fullmatch(name):
            parts.append(name)
        else:
            raise CheckpointError(newer(name, "its name is that of no tensors that are known"))
    return groups | read_parts(folder, parts) if parts else groups
