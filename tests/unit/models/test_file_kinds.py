"""`file_kinds`: oracle, laws."""

import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.file_kinds import describe_file, summary, tensor_names
from mvczigal_ref.reward.foreign_tensors import read_pickle

TENSORS = {"a.weight": torch.ones(3, 4), "b.bias": torch.ones(4)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


# -- oracle: files as they really are ------------------------------------------------------


def test_torch_files_are_told_apart(path):
    """A pickle in its archive, a program, an archive of something else."""
    torch.save(TENSORS, path)
    assert describe_file(path) == "a pickle in torch's archive"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert describe_file(path) == "a pickle"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/code/__torch__.py", "")
    assert "TorchScript" in describe_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.txt", "")
    assert describe_file(path) == "a zip archive"


def test_what_is_no_file(tmp_path):
    """Absent, and a folder."""
    assert describe_file(tmp_path / "none") == "absent"
    assert describe_file(tmp_path) == "a folder"
    os.mkfifo(tmp_path / "pipe")
    assert describe_file(tmp_path / "pipe") == "neither a file nor a folder"
    with pytest.raises(CheckpointError, match="which is neither a file nor a folder"):
        read_pickle(tmp_path / "pipe", "neither a file nor a folder")  # at once


def test_tensors_are_listed(path):
    """Of a whole file alone."""
    save_file(TENSORS, path)
    assert sorted(tensor_names(path)) == sorted(TENSORS)
    path.write_bytes(path.read_bytes()[:-1])
    assert tensor_names(path) is None
    assert tensor_names(path.with_name("absent")) is None


# -- laws ---------------------------------------------------------------------------------


def test_a_summary_is_short():
    """Whatever the number of names."""
    assert summary(["a", "b"]) == "a, b"
    assert summary([f"layer.{n}" for n in range(1000)]).endswith("layer.3 and 996 more")
