"""`reward.convert`: laws, errors."""

import argparse
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.models import weight_files
from mvczigal_ref.reward.convert import convert_checkpoint
from mvczigal_ref.reward.foreign_tensors import read_tensors

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


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (SafetensorError("I/O error: full (os error 28)"), OSError, "Errno 28.*safetensors'$"),
        (OSError("no space"), OSError, "no space"),
        (SafetensorError("no such number"), CheckpointError, "tensors that safetensors can; got"),
    ],
)
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, error, kind, message):
    """Neither the target nor its beginning; a full disk is no fault of the source."""

    def half(_tensors, path, **_):
        path.write_bytes(b"half")
        raise error

    torch.save(TENSORS, tmp_path / "file.pt")
    monkeypatch.setattr(weight_files, "save_file", half)
    with pytest.raises(kind, match=message):
        convert_checkpoint(tmp_path / "file.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


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


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        (np.float64(0.5), "needs Python's numpy"),
        (argparse.Namespace(lr=1), r"needs Python's argparse\.Namespace"),
        (Thief(), "needs Python's builtins.print"),
    ],
    ids=["number", "settings", "code"],
)
def test_what_a_pickle_asks_for_is_told(tmp_path, beside, told, capsys):
    """Not that it were damaged; and nothing of it is run."""
    torch.save({"state_dict": TENSORS, "beside": beside}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=told):
        convert_checkpoint(tmp_path / "file.pt")
    assert "stolen" not in capsys.readouterr().out


def test_other_tensors_are_told(tmp_path):
    """A program, and numbers that safetensors has no place for."""
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"file/{name}", "")
    with pytest.raises(CheckpointError, match="a TorchScript archive"):
        read_tensors(tmp_path / "file.pt")
    torch.save({"a": torch.ones(3).to_sparse()}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"neither sparse nor quantised; got .* with a\."):
        read_tensors(tmp_path / "file.pt")


def test_a_flipped_bit_of_a_tensor_is_refused(tmp_path):
    """By the archive's checksum, which torch does not compare."""
    torch.save({"a": torch.full((64,), 1.5)}, tmp_path / "file.pt")
    content = bytearray((tmp_path / "file.pt").read_bytes())
    content[content.index(torch.full((4,), 1.5).numpy().tobytes()) + 2] ^= 1
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged \(checksum of file/data/0\)"):
        read_tensors(tmp_path / "file.pt")


@pytest.mark.parametrize("name", [1, None, ("a", 1), "__metadata__"])
def test_names_that_no_file_can_hold_are_refused(tmp_path, name):
    """Two that read alike would become one."""
    torch.save({name: torch.ones(2), "1": torch.zeros(2)}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="`path` must name its tensors by text, other than"):
        read_tensors(tmp_path / "file.pt")


def test_a_pickle_under_another_name(tmp_path):
    """Is told by readers, and converted."""
    torch.save(TENSORS, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=r"it is a pickle .* convert-reward"):
        read_tensors(tmp_path / "file.safetensors")
    written = convert_checkpoint(tmp_path / "file.safetensors", tmp_path / "new.safetensors")
    assert set(read_tensors(written)) == set(TENSORS)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_other_exception_escapes(tmp_path, zipped):
    """From a checkpoint damaged at any place, of either age: flipped, cut or both."""
    chance, path, told = random.Random(int(zipped)), tmp_path / "file.pt", []
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(250):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(bytes(damaged))
        try:
            read_tensors(path)
        except CheckpointError as error:
            told.append(str(error))
    assert len(told) > 50
    assert all(str(path) in text and "\n" not in text for text in told)


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


def test_an_absent_source_is_refused(tmp_path):
    """Before the target is thought of."""
    with pytest.raises(ConfigError, match=r"`source` must be a downloaded file; there is no 'no"):
        convert_checkpoint("nowhere.pt", tmp_path / "b.safetensors")
