"""Files of sharded tensors, by torch's own engine (`torch.distributed.checkpoint`).

Each process writes its parts as safetensors, whose headers hold the parts' offsets as JSON, and
reads the slices that it needs, for any number of processes. The engine's planners work in each
process by itself: a cut tensor says where its parts lie, so that no process sends another a plan,
which the engine would pickle.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mvczigal_ref.distributed import World
from mvczigal_ref.models.sharding import is_sharded, local_part

if TYPE_CHECKING:
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.planner import SavePlan

__all__ = ["SavedParts", "local_parts", "read_parts", "write_parts"]

_FILE_BYTES = 2**29  # of tensors in one file, whose content the engine copies to write it


class SavedParts(Mapping[str, Tensor]):
    """Tensors that several processes wrote in parts, each read when it is asked for.

    Args:
        reader: Reader of all groups.
        group: Group of the tensors.
    """

    def __init__(self, reader: "HuggingFaceStorageReader", group: str) -> None:
        self._reader, self._prefix = reader, f"{group}."
        self.headers: dict[str, Tensor] = {
            name.removeprefix(self._prefix): torch.empty(
                header.size, dtype=header.properties.dtype, device="meta"
            )
            for name, header in reader.read_metadata().state_dict_metadata.items()
            if name.startswith(self._prefix)
        }
        """Tensors of the same shapes and types without content, by name."""

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor, whole, on the CPU."""
        value = torch.empty_like(self.headers[name], device="cpu")
        self.read_into({name: value})
        return value

    def __iter__(self) -> Iterator[str]:
        """Go over the names."""
        return iter(self.headers)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self.headers)

    def read_into(self, target: Mapping[str, Tensor]) -> None:
        """Read tensors into others of the same shapes, one slice of a file at a time.

        Args:
            target: Tensors to overwrite, by name, whole or sharded; they keep type and device.
        """
        from torch.distributed import checkpoint as engine

        values = {self._prefix + name: value.detach() for name, value in target.items()}
        planner = engine.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with _alone():
            engine.load(values, storage_reader=self._reader, planner=planner, no_dist=True)


def write_parts(folder: Path, tensors: Mapping[str, Tensor], here: World) -> None:
    """Write this process's parts of some tensors; the first writes what is whole, too.

    Args:
        folder: Folder that is there already; its new files are synced.
        tensors: Tensors by group and name, as in "policy.weight".
        here: This process among those that hold the parts.

    Raises:
        OSError: If the disk does not take them.
    """
    from torch.distributed import checkpoint as engine

    class Writer(engine.HuggingFaceStorageWriter):
        """Names the files of this process, which plans alone, by its rank."""

        def prepare_global_plan(self, plans: "list[SavePlan]") -> "list[SavePlan]":
            plans = super().prepare_global_plan(plans)
            plans[0].storage_data["shard_index"] = here.rank + 1
            return plans

    parts = {
        name: value.detach() if is_sharded(value) else value.detach().contiguous()
        for name, value in tensors.items()
        if here.is_main or (is_sharded(value) and value.to_local().numel())
    }
    writer = Writer(str(folder), _files(tensors, here.size), save_distributed=True)
    planner = engine.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _alone():
        engine.save(parts, storage_writer=writer, planner=planner, no_dist=True)


def read_parts(folder: Path, names: Iterable[str]) -> dict[str, SavedParts]:
    """Find the tensors that processes wrote in parts.

    Args:
        folder: Folder of the files.
        names: Names of the files of all processes; no other is opened.

    Returns:
        Tensors by group; of their files the headers alone have been read.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.metadata import Metadata

    files = [str(folder / name) for name in names]

    class Files(FileSystem):
        def ls(self, _path: object) -> list[str]:
            return files

    class Reader(HuggingFaceStorageReader):
        """Reads the headers of its files once."""

        def __init__(self) -> None:
            super().__init__(str(folder))
            self.fs = Files()
            self.headers = super().read_metadata()

        def read_metadata(self) -> Metadata:
            return self.headers

    reader = Reader()
    groups = {name.partition(".")[0] for name in reader.headers.state_dict_metadata}
    return {group: SavedParts(reader, group) for group in sorted(groups)}


def local_parts(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut this process's parts out of saved tensors.

    Args:
        tensors: Saved tensors; of those that lie in parts only the slices needed are read.
        like: Tensor by the same names that says how to cut; whole ones, numbers, and those of
            another shape are not cut.

    Returns:
        Values by name, each sharded as its tensor of ``like`` is.

    Examples:
        >>> local_parts({"a": torch.ones(2)}, {"a": torch.zeros(2)})
        {'a': tensor([1., 1.])}
    """
    if not isinstance(tensors, SavedParts):
        return {name: local_part(value, like[name]) for name, value in tensors.items()}
    parts = {
        name: torch.empty_like(like[name].detach(), dtype=header.dtype)
        if is_sharded(like[name]) and like[name].shape == header.shape
        else torch.empty_like(header, device="cpu")
        for name, header in tensors.headers.items()
    }
    tensors.read_into(parts)
    return parts


def _files(tensors: Mapping[str, Tensor], processes: int) -> dict[str, int]:
    """Choose the file of each tensor, counted from 1; the same in every process."""
    files, place, room = {}, 1, _FILE_BYTES
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.itemsize // (processes if is_sharded(tensor) else 1)
        if size > room and room < _FILE_BYTES:
            place, room = place + 1, _FILE_BYTES
        files[name], room = place, room - size
    return files


@contextmanager
def _alone() -> Iterator[None]:
    """Let the engine work in this process alone, in silence, and raise what stopped it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        (cause, _), *_ = error.failures.values()
        raise cause from None
