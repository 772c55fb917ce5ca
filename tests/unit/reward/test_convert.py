"""`reward.convert`: laws, errors."""

import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.reward.convert import convert_checkpoint, read_tensors

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.0, 2.0], dtype=torch.float16),
    "count": torch.tensor(7),
}


def same(one, other):
    """Names, values and dtypes."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        assert torch.equal(value, other[name])


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_reads_tensors_out_of_their_wrapper(tmp_path, wrapper):
    """What training left beside them is no tensor of the network's."""
    content = TENSORS if wrapper is None else {wrapper: TENSORS, "epoch": 3, "name": "run"}
    torch.save(content, tmp_path / "file.pth")

    same(read_tensors(tmp_path / "file.pth"), TENSORS)


def test_a_name_that_is_a_wrappers_is_a_tensor(tmp_path):
    """Only what holds tensors by name is a wrapper."""
    torch.save({"model": torch.ones(1)}, tmp_path / "file.pt")

    same(read_tensors(tmp_path / "file.pt"), {"model": torch.ones(1)})


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_converts_once_to_the_same_tensors(tmp_path, suffix):
    """Beside the source, whole, and with nothing left over."""
    source = tmp_path / f"file{suffix}"
    torch.save({"state_dict": TENSORS}, source)

    target = convert_checkpoint(source)

    assert target == tmp_path / "file.safetensors"
    same(read_tensors(target), TENSORS)
    with safe_open(target, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "source": source.name}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name])
    with pytest.raises(ValueError, match=r"`target` must not exist yet; got .*file.safetensors"):
        convert_checkpoint(source)


def test_converts_tensors_that_share_memory_or_are_turned(tmp_path):
    """Each gets memory of its own, row by row."""
    whole = torch.arange(12.0).reshape(3, 4)
    tied = {"whole": whole, "tied": whole, "part": whole[1:], "turned": whole.T}
    torch.save(tied, tmp_path / "file.pt")

    same(read_tensors(convert_checkpoint(tmp_path / "file.pt", tmp_path / "a/b.safetensors")), tied)


# -- errors ------------------------------------------------------------------------------


class Thief:
    """What a pickle would run."""

    def __reduce__(self):
        return (print, ("stolen",))


def test_no_code_in_a_file_is_run(tmp_path, capsys):
    """Refused, without torch's advice to run it after all."""
    with (tmp_path / "file.pt").open("wb") as file:
        pickle.dump({"weight": Thief()}, file, protocol=2)

    with pytest.raises(CheckpointError, match=r"must be a whole file of tensors") as caught:
        read_tensors(tmp_path / "file.pt")
    assert "stolen" not in capsys.readouterr().out
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_cut_or_absent_file_is_refused_by_name(tmp_path, suffix):
    """Half a download, an empty file, none."""
    path = tmp_path / f"file{suffix}"
    save_file(TENSORS, path) if suffix == ".safetensors" else torch.save(TENSORS, path)
    for content in (path.read_bytes()[:-40], b"", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"file\{suffix}.*(cut|empty|absent)"):
            read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "must hold tensors by name; got .* with list"),
        ({}, "must hold tensors by name; got .* with dict"),
        ({"state_dict": {}}, "must hold tensors by name; got .* with dict"),
        ({"weight": torch.ones(1), "step": 3, "lr": 0.1}, "nothing but tensors; .* with lr, step"),
    ],
)
def test_what_is_not_tensors_by_name_is_refused(tmp_path, content, message):
    """With the names of what is not."""
    torch.save(content, tmp_path / "file.pt")

    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / "file.pt")


@pytest.mark.parametrize("names", [("a.safetensors", "b.safetensors"), ("a.pt", "b.bin")])
def test_rejects_files_of_the_wrong_kind(tmp_path, names):
    """The source is not safetensors, the target is."""
    source, target = (tmp_path / name for name in names)
    with pytest.raises(ValueError, match=r"`source` must be a `.pt` or `.pth` file and `target`"):
        convert_checkpoint(source, target)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    """Neither the target nor its beginning."""
    torch.save(TENSORS, tmp_path / "file.pt")

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr("mvczigal_ref.reward.convert.save_file", half)
    with pytest.raises(OSError, match="no space"):
        convert_checkpoint(tmp_path / "file.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]
