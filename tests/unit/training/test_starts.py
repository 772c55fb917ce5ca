"""`training.starts`: each start of a run is recorded, however it ends."""

import errno
import json

import pytest
import torch

from mvczigal_ref.distributed import World
from mvczigal_ref.training.starts import STARTS, read_starts, recorded, typed_command

# -- laws --------------------------------------------------------------------------------


def test_each_start_adds_a_record(tmp_path):
    """With what ran it, and its seconds once it has ended."""
    with recorded(tmp_path, World()):
        assert [start["seconds"] for start in read_starts(tmp_path)] == [None]
    with recorded(tmp_path, World(size=2)):
        pass
    first, second = read_starts(tmp_path)

    assert (first["processes"], second["processes"]) == (1, 2)
    assert first["versions"]["torch"] == torch.__version__
    assert first["device"] == "cpu"
    assert first["threads"] == torch.get_num_threads()
    assert first["began"] <= second["began"]
    assert 0 <= first["seconds"] < 60


def test_a_start_that_fails_has_its_seconds(tmp_path):
    """Stopped or refused, it has taken them."""
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, World()):
        raise KeyboardInterrupt

    assert read_starts(tmp_path)[0]["seconds"] is not None


def test_only_the_main_process_writes(tmp_path):
    """One record per start."""
    with recorded(tmp_path, World(rank=1, size=2)):
        pass

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/x/mvczigal_ref/__main__.py", "train", "tiny", "a=b c"], "mvczigal train tiny 'a=b c'"),
        (["C/mvczigal.exe", "train"], "mvczigal train"),
        (["/x/pytest/__main__.py", "-q"], None),
        (["-c"], None),
        ([], None),
    ],
)
def test_a_command_is_one_only_where_it_was_typed(words, command):
    """Called from Python there is none."""
    assert typed_command(words) == command


# -- errors ------------------------------------------------------------------------------


def test_a_full_disk_does_not_hide_the_first_cause(tmp_path):
    """What failed is told, and not that its seconds could not be written either."""
    with pytest.raises(OSError, match=r"state\.json"), recorded(tmp_path, World()):  # noqa: PT012
        (tmp_path / STARTS).unlink()
        (tmp_path / STARTS).mkdir()  # which no file replaces
        raise OSError(errno.ENOSPC, "No space left on device", "state.json")
    with pytest.raises(IsADirectoryError, match=STARTS), recorded(tmp_path, World()):
        pass


@pytest.mark.parametrize("content", [None, "{", "{}", "[1]", '[{"began": "now"}]'])
def test_a_damaged_record_stops_nothing(tmp_path, content):
    """No result depends on it."""
    if content is not None:
        (tmp_path / STARTS).write_text(content, "utf-8")
    with recorded(tmp_path, World()):
        pass

    assert len(json.loads((tmp_path / STARTS).read_text("utf-8"))) == 1
