"""Sharded tensors read by torch's own engine, for any number of processes.

A process reads the slices that it needs and asks no other, as when they were written.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.futures import Future

from mvczigal_ref.errors import CheckpointError, first_line, newer
from mvczigal_ref.models.sharded_files import by_itself
from mvczigal_ref.models.sharding import is_sharded, local_part

if TYPE_CHECKING:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

__all__ = ["SavedParts", "local_parts", "read_parts"]

_NOT_UNDERSTOOD = (LookupError, TypeError, ValueError, AttributeError, SafetensorError)


class SavedParts(Mapping[str, Tensor]):
    """Tensors that several processes wrote in parts, each read when it is asked for.

    Args:
        reader: Reader of all groups.
        group: Group of the tensors.
    """

    def __init__(self, reader: "HuggingFaceStorageReader", group: str) -> None:
        self._reader, self._prefix = reader, f"{group}."
        stored: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        self.headers: dict[str, Tensor] = {
            name.removeprefix(self._prefix): torch.empty(
                header.size, dtype=header.properties.dtype, device="meta"
            )
            for name, header in stored.items()
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
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
        from torch.distributed.checkpoint.state_dict_loader import load

        values = {self._prefix + name: value.detach() for name, value in target.items()}
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with by_itself():
            load(values, storage_reader=self._reader, planner=planner, no_dist=True)


def read_parts(folder: Path, names: Iterable[str]) -> dict[str, SavedParts]:
    """Find the tensors that processes wrote in parts.

    Args:
        folder: Folder of the files.
        names: Names of the files of all processes; no other is opened.

    Returns:
        Tensors by group; of their files the headers alone have been read.

    Raises:
        CheckpointError: If the files do not hold all of a tensor, or a newer version wrote one.
    """
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

    files = [str(folder / name) for name in names]
    listed: list[str] = []

    class Files(FileSystem):
        def ls(self, _path: object) -> list[str]:
            return listed

    class Reader(HuggingFaceStorageReader):
        """Opens its files and reads their headers once, however many tensors are asked for."""

        def __init__(self) -> None:
            super().__init__(str(folder))
            self.fs = Files()
            self.headers = self._headers(files)
            self.opened = {file: safe_open(file, framework="pt") for file in files}

        def _headers(self, some: list[str]) -> Metadata:
            """Read headers; where that fails, one by one, to name the file that is at fault."""
            listed[:] = some
            try:
                return super().read_metadata()
            except _NOT_UNDERSTOOD as error:
                for file in some if len(some) > 1 else ():
                    self._headers([file])
                fault = f"{type(error).__name__}: {first_line(error)}"
                raise CheckpointError(newer(Path(some[0]).name, fault)) from error

        def read_metadata(self) -> Metadata:
            return self.headers

        def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
            for item in plan.items:
                place = self.storage_data[item.storage_index].relative_path
                self._process_read_request(self.opened[place], item, planner)
            done: Future[None] = Future()
            done.set_result(None)
            return done

    reader = Reader()
    _require_all(reader.headers)
    groups = {name.partition(".")[0] for name in reader.headers.state_dict_metadata}
    return {group: SavedParts(reader, group) for group in sorted(groups)}


def _require_all(headers: Any) -> None:  # noqa: ANN401 - imported only where it is needed
    """Refuse tensors of which a part is missing: the engine would leave memory as it finds it."""
    for name, header in headers.state_dict_metadata.items():
        numbers = sum(prod(chunk.sizes) for chunk in header.chunks)
        if numbers != prod(header.size):
            msg = f"its files hold {numbers} of the {prod(header.size)} numbers of {name!r}"
            raise CheckpointError(msg)


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
