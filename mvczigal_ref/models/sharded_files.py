"""Files of sharded tensors, written by torch's own engine (`torch.distributed.checkpoint`).

Each process writes its parts as safetensors, whose headers hold the parts' offsets as JSON. The
engine's planners work in each process by itself: a cut tensor says where its parts lie, so that no
process sends another a plan, which the engine would pickle.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mvczigal_ref.distributed import World
from mvczigal_ref.models.sharding import is_sharded

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import SavePlan

__all__ = ["by_itself", "write_parts"]

_FILE_BYTES = 2**29  # of tensors in one file, whose content the engine copies to write it


def write_parts(folder: Path, tensors: Mapping[str, Tensor], here: World) -> None:
    """Write this process's parts of some tensors; the first writes what is whole, too.

    Args:
        folder: Folder that is there already; its new files are synced.
        tensors: Tensors by group and name, as in "policy.weight".
        here: This process among those that hold the parts.

    Raises:
        OSError: If the disk does not take them.
    """
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    class Writer(HuggingFaceStorageWriter):
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
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with by_itself():
        save(parts, storage_writer=writer, planner=planner, no_dist=True)


@contextmanager
def by_itself() -> Iterator[None]:
    """Let the engine work for this process alone, in silence.

    Yields:
        Nothing.

    Raises:
        Exception: The error that stopped the engine, out of its own.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        (cause, _), *_ = error.failures.values()
        raise cause from None


def _files(tensors: Mapping[str, Tensor], processes: int) -> dict[str, int]:
    """Choose the file of each tensor, counted from 1; the same in every process."""
    files, place, room = {}, 1, _FILE_BYTES
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.itemsize // (processes if is_sharded(tensor) else 1)
        if size > room and room < _FILE_BYTES:
            place, room = place + 1, _FILE_BYTES
        files[name], room = place, room - size
    return files
