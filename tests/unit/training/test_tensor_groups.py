"""Tensors that several processes wrote are read by any number of them, bit for bit."""

import logging
import math
import pickle
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors import torch as safetensors_torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed import checkpoint as engine
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models import sharded_files
from mvczigal_ref.models.loading import load_strict
from mvczigal_ref.models.saved_parts import SavedParts, local_parts
from mvczigal_ref.training.tensor_groups import read_groups, write_groups

WHOLE = {
    "even": torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "uneven": torch.arange(15.0).view(5, 3) / 7,  # of the fourth process nothing
    "bias": torch.tensor([-0.0]),  # the first process's alone
    "odd": torch.tensor([math.nan, math.inf, -0.0, 1e-45, 2.0, 3.0, 4.0]),
    "codes": torch.arange(9, dtype=torch.uint8),
}
STEP = {"0.step": torch.tensor(4.0), "0.whole": torch.arange(6.0).view(2, 3)}


@contextmanager
def member(rank, size):
    """Be one of several processes, whose collectives give nothing: none may be needed."""
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def cut(tensors, size):
    """Cut tensors as the engine cuts weights: along the first axis."""
    # torch remembers what it does by the mesh: of one name, processes would count as one.
    name = f"process_{distributed.get_rank()}"
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=(name,))
    return {
        name: distribute_tensor(value.clone(), mesh, [Shard(0)], src_data_rank=None)
        for name, value in tensors.items()
    }


def write(folder, size):
    """Write two groups in parts and one that is whole, each process in its turn."""
    for rank in range(size):
        with member(rank, size):
            policy, moments = cut(WHOLE, size), {**cut(WHOLE, size), **STEP}
            groups = {"policy": policy, "optimizer": moments, "old": STEP, "average": {}}
            write_groups(folder, groups)
    return [path.name for path in folder.iterdir()]


def bits(tensors):
    """Types, shapes and bytes by name."""
    return {
        name: (value.dtype, value.shape, value.contiguous().view(-1).view(torch.uint8).tolist())
        for name, value in tensors.items()
    }


# -- oracle: what was cut is what is read ------------------------------------------------


@pytest.mark.parametrize(("size", "file_bytes"), [(1, 2**29), (2, 1), (3, 2**29), (4, 1)])
def test_parts_of_four_are_read_whole_and_by_any_number_of_processes(
    size, file_bytes, tmp_path, monkeypatch
):
    """Uneven and empty parts, scalars, whole tensors, every type; no process asks another."""
    monkeypatch.setattr(sharded_files, "_FILE_BYTES", file_bytes)
    names = write(tmp_path, 4)
    for rank in range(size):
        groups = read_groups(tmp_path, names)
        assert set(groups) == {"policy", "optimizer", "old", "average"}
        assert (bits(groups["old"]), groups["average"]) == (bits(STEP), {})
        assert isinstance(groups["policy"], SavedParts)
        assert bits(groups["policy"]) == bits(WHOLE)
        assert "absent" not in groups["policy"]
        with member(rank, size):
            expected = {name: value.to_local() for name, value in cut(WHOLE, size).items()}
            for saved in (groups["policy"], WHOLE):  # and of one process's file
                target = cut({name: torch.zeros_like(value) for name, value in WHOLE.items()}, size)
                load_strict(target, saved, source="parts")
                local = {name: value.to_local() for name, value in target.items()}
                assert bits(local) == bits(expected)
            like = {**target, **dict.fromkeys(STEP, target["even"])}
            moments = local_parts(groups["optimizer"], like)
            assert bits({name: moments[name] for name in STEP}) == bits(STEP)
            assert bits({name: moments[name].to_local() for name in WHOLE}) == bits(expected)


def test_torch_reads_the_files_by_itself(tmp_path):
    """They are its own format; a file is of one process, and what is whole lies in one."""
    names = write(tmp_path, 2)
    target = torch.zeros(5, 3)
    reader = engine.HuggingFaceStorageReader(str(tmp_path))
    with pytest.warns(UserWarning, match="single process"):
        engine.load({"policy.uneven": target}, storage_reader=reader, no_dist=True)

    assert torch.equal(target, WHOLE["uneven"])
    parts = sorted(name for name in names if name.startswith("shard"))
    assert parts == [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
    with safe_open(tmp_path / parts[1], "pt") as file:
        assert set(file.keys()) == {f"{g}.{n}" for g in ("policy", "optimizer") for n in WHOLE} - {
            "policy.bias",
            "optimizer.bias",
        }


# -- laws --------------------------------------------------------------------------------


def test_nothing_is_pickled_or_unpickled(tmp_path, monkeypatch, recwarn, caplog):
    """Neither on the disk nor between processes; and the engine says nothing."""

    def refuse(*_args, **_kwargs):
        raise AssertionError

    for module, name in [
        *((pickle, name) for name in ("load", "loads", "dump", "dumps")),
        *((torch, name) for name in ("load", "save")),
        *((distributed, f"{name}_object") for name in ("gather", "all_gather")),
        *((distributed, f"{name}_object_list") for name in ("broadcast", "scatter")),
    ]:
        monkeypatch.setattr(module, name, refuse)
    names = write(tmp_path, 2)
    with member(1, 2):
        load_strict(cut(WHOLE, 2), read_groups(tmp_path, names)["policy"], source="parts")

    assert {name.rpartition(".")[2] for name in names} == {"safetensors"}
    loud = [line for line in caplog.records if line.levelno >= logging.INFO]
    assert (recwarn.list, loud) == ([], [])


def test_a_process_reads_its_own_slices_alone(tmp_path, monkeypatch):
    """As many numbers as its parts have; of a file that is not named nothing."""
    names = write(tmp_path, 4)
    (tmp_path / "shard-00009-model-00001-of-00001.safetensors").write_bytes(b"of no checkpoint")
    right, count = engine.DefaultLoadPlanner.resolve_tensor, []

    def counted(self, item):
        count.append(math.prod(item.lengths))
        return right(self, item)

    monkeypatch.setattr(engine.DefaultLoadPlanner, "resolve_tensor", counted)
    policy = read_groups(tmp_path, names)["policy"]
    with member(1, 2):
        target = cut(WHOLE, 2)
        count.clear()
        policy.read_into(target)
        assert sum(count) == sum(value.to_local().numel() for value in target.values())
    count.clear()
    assert torch.equal(policy["even"], WHOLE["even"])
    assert sum(count) == WHOLE["even"].numel()


# -- errors ------------------------------------------------------------------------------


def test_tensors_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    """By name, from the headers alone."""
    policy = read_groups(tmp_path, write(tmp_path, 2))["policy"]
    target = {**{n: torch.zeros_like(v) for n, v in WHOLE.items()}, "uneven": torch.zeros(5, 4)}
    with pytest.raises(CheckpointError, match=r"uneven of shape \(5, 3\), not \(5, 4\)"):
        load_strict(target, policy, source="parts")
    assert not any(bool(value.any()) for value in target.values())
    with pytest.raises(KeyError):
        policy["absent"]


@pytest.mark.parametrize("lost", ["00001", "00002"])
def test_files_that_lack_a_part_are_refused(tmp_path, lost):
    """The engine would leave memory as it finds it; a first part, or one between others."""
    names = write(tmp_path, 4)
    left = [name for name in names if not name.startswith(f"shard-{lost}")]
    assert len(left) < len(names)
    with pytest.raises(CheckpointError, match=r"its files hold \d+ of the \d+ numbers of '"):
        read_groups(tmp_path, left)


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ('{"policy.even": {"saved_offsets": [4, 0, 0]}}', "KeyError: '"),
        ('{"policy.even": {"offsets": [4, 0, 0]}}', "KeyError: '"),
        ("[[4, 0, 0]]", "TypeError: list indices"),
        ("offsets: 4", "JSONDecodeError: Expecting value"),
    ],
)
def test_parts_of_a_newer_version_are_refused(tmp_path, parts, fault):
    """By their file; a header that the engine does not understand is no `KeyError`."""
    names = write(tmp_path, 2)
    name = "shard-00002-model-00001-of-00001.safetensors"
    with safe_open(tmp_path / name, "pt") as file:
        header, keys = file.metadata(), file.keys()
        tensors = {key: file.get_tensor(key) for key in keys}
    save_file(tensors, tmp_path / name, metadata={**header, "DCP_SHARDING_INFO": parts})
    with pytest.raises(CheckpointError) as caught:
        read_groups(tmp_path, names)

    assert f"a newer version of this package wrote its file {name!r}: " in str(caught.value)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_type_that_is_unknown_is_refused(tmp_path, monkeypatch):
    """As of a newer format of the files."""
    names = write(tmp_path, 2)
    monkeypatch.delitem(safetensors_torch._TYPES, "BF16")
    newer = "newer version of this package wrote its file 'shard-00001-.*KeyError: 'BF16'"
    with pytest.raises(CheckpointError, match=newer):
        read_groups(tmp_path, names)


def test_an_error_of_the_disk_is_raised_as_it_is(tmp_path):
    """Not as the engine's own, which no handler knows."""
    (tmp_path / "file").write_text("")
    with member(0, 1), pytest.raises(FileExistsError, match="file"):
        write_groups(tmp_path / "file", {"policy": cut(WHOLE, 1)})


def test_parts_of_the_former_layout_are_refused(tmp_path):
    """With the file and the versions that wrote it."""
    names = ["policy.00001-of-00002.safetensors", "policy.00000-of-00002.safetensors"]
    with pytest.raises(CheckpointError, match=r"'policy.00000-.* versions after 0\.1\.0 wrote"):
        read_groups(tmp_path, names)
