"""`files`: old content or new, and one text for equal values."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mvczigal_ref import files
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import RunFolderInUseError
from mvczigal_ref.evaluation.scores import read_evaluation
from mvczigal_ref.files import (
    atomic_write,
    discard,
    owned,
    require_readable,
    sweep,
    to_json,
    writing,
)
from mvczigal_ref.reward.convert import convert_checkpoint
from mvczigal_ref.training.checkpoint import save_checkpoint


class Killed(BaseException):
    """Stands for a kill: no handler catches it."""


@pytest.mark.parametrize("content", ["naïve\n", b"\x00\xff"])
def test_writes_what_it_is_given(tmp_path, content):
    """Text as UTF-8, bytes as they are, in a folder that is made."""
    path = tmp_path / "a" / "b"
    atomic_write(path, content)

    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in path.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_kill_leaves_the_old_content_or_the_new(tmp_path, monkeypatch, survived):
    """Whichever call of the file system is the last: never a part, never nothing."""
    path = tmp_path / "file"
    atomic_write(path, "old")
    calls = []

    def syncing(_):
        calls.append(path.read_text())
        if len(calls) > survived:
            raise Killed

    monkeypatch.setattr(files, "sync", syncing)
    try:
        atomic_write(path, "new")
    except Killed:
        assert path.read_text() == ("old" if survived == 0 else "new")

    # The content is on the disk before the name is: the first sync still sees the old one.
    assert calls == ["old", "new"][: survived + 1]


def test_windows_syncs_files_and_waits_for_no_folder(tmp_path, monkeypatch):
    """It opens no folders, and syncs only what is open for writing."""
    opened, original = [], os.open

    def note(path, flags):
        opened.append((path, flags))
        return original(path, flags)

    (tmp_path / "file").touch()
    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(os, "open", note)
    files.sync(tmp_path)
    files.sync(tmp_path / "file")

    assert opened == [(tmp_path / "file", os.O_RDWR)]


def test_a_lock_that_cannot_be_written_is_a_lock(tmp_path, monkeypatch):
    """On Windows nobody writes or removes a locked file; it stays."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(files, "_WAIT", 0.0)
    with (
        owned(tmp_path),
        pytest.raises(RunFolderInUseError, match="another process"),
        owned(tmp_path),
    ):
        pass
    with owned(tmp_path):
        assert (tmp_path / ".lock").is_file()


def full(*_, **__):
    """Fail as a disk without room does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_the_path_and_keeps_no_part(tmp_path, monkeypatch):
    """The old content stays."""
    path = tmp_path / "file"
    atomic_write(path, "old")
    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match=rf"^\[Errno 28\] No space left on device: '{path}'$"):
        atomic_write(path, "new")

    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_is_told_alike_by_every_writer():
    """Python's files, and the library that writes tensors, whose words hold the same number."""
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    for error in (OSError(errno.ENOSPC, "full"), SafetensorError(words)):
        with pytest.raises(OSError, match="'run/state'") as caught, writing(Path("run/state")):
            raise error
        assert caught.value.errno == errno.ENOSPC


def test_an_error_of_a_file_that_is_read_keeps_its_path(tmp_path):
    """Not that of the file which is being written from it."""
    out = tmp_path / "out"
    for inside in (out, tmp_path / ".out.1.tmp" / "a", out / "a"):
        with pytest.raises(PermissionError, match=rf"denied: '{out}'$"), writing(out):
            raise PermissionError(errno.EACCES, "denied", str(inside))
    with (
        pytest.raises(PermissionError, match=r"denied: '.*/run/policy\.safetensors'$"),
        writing(out),
    ):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "run" / "policy.safetensors"))


def test_an_error_that_is_not_the_disks_passes_unchanged(tmp_path):
    """What was written aside is gone all the same."""
    (tmp_path / "aside").mkdir()
    error = SafetensorError("unknown dtype")
    with pytest.raises(SafetensorError) as caught, writing(tmp_path, aside=tmp_path / "aside"):
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_tensors_have_the_mode_of_other_files(tmp_path, mask, mode):
    """Whatever library writes them; a checkpoint's as a converted one's."""
    before = os.umask(mask)
    try:
        torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
        converted = convert_checkpoint(tmp_path / "a.pt")
        group = {"policy": {"a": torch.ones(1)}}
        path = save_checkpoint(tmp_path, 1, tensors=group, state={}, config=TrainConfig())
        umask_now = os.umask(mask)
    finally:
        os.umask(before)

    files = [converted, *path.iterdir()]
    assert umask_now == mask
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}


def test_equal_values_have_one_text():
    """Whatever the order of their keys; the text reads back to the same bits."""
    assert to_json({"b": 0.1, "a": [1]}) == to_json({"a": [1], "b": 0.1})
    assert to_json({"b": 0.1, "a": [1]}) == '{\n  "a": [\n    1\n  ],\n  "b": 0.1\n}\n'


def test_json_without_words_for_it_is_refused():
    """NaN would be no JSON."""
    with pytest.raises(ValueError, match="JSON"):
        to_json(float("nan"))


def test_a_read_only_folder_is_discarded(tmp_path):
    """With what is in it, at any depth; what a link leads to stays as it is."""
    (tmp_path / "outside").mkdir(mode=0o500)
    inner = tmp_path / "gone" / "inner"
    inner.mkdir(parents=True)
    (inner / "a.txt").write_text("x")
    (inner / "link").symlink_to(tmp_path / "outside")
    for path in (inner, inner.parent):
        path.chmod(0o500)
    discard(inner.parent)
    discard(tmp_path / "absent")

    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o500


def test_a_file_that_may_not_be_read_is_not_absent(tmp_path, monkeypatch):
    """It is named with the system's reason; an absent one is the reader's to tell of."""
    path = tmp_path / "before_000000.safetensors"
    require_readable(path)
    path.write_bytes(b"x")
    require_readable(path)
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    for use in (require_readable, read_evaluation):
        with pytest.raises(PermissionError, match=re.escape(f"Permission denied: '{path}'")):
            use(path)


def test_what_killed_writers_left_is_swept(tmp_path):
    """Files and folders written aside, at the top and one below; nothing that others name."""
    swept = [
        ".config.json.7.tmp", "evaluations/.before_000000.safetensors.7.tmp",
        "checkpoints/.iteration_000002.7.tmp/state.json",
        "checkpoints/.iteration_000001.gone.tmp/state.json",
        ".policy.replaced.tmp/adapter_config.json",
    ]  # fmt: skip
    kept = [
        "config.json", "notes.tmp", "wandb/run/.x.7.tmp", ".lock", ".notes.tmp",
        "wandb/.cache.tmp", "wandb/.x.old.tmp",
    ]  # fmt: skip
    for name in (*swept, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sweep(tmp_path)
    sweep(tmp_path / "absent")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path)) for path in files) == sorted(kept)
    assert list((tmp_path / "checkpoints").iterdir()) == []


# -- one owner -----------------------------------------------------------------------------

# Owns a folder, says so, and holds it until its input ends.
OWNER = """
import sys
from pathlib import Path
from mvczigal_ref.files import owned
with owned(Path(sys.argv[1])):
    Path(sys.argv[1], "config.json").touch()
    print("owned", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Another process, which owns a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "run")],
        cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == b"owned\n"
        yield process
        process.kill()


def test_a_folder_has_one_owner_which_is_named(tmp_path, owner):
    """Refused while it lives; free as soon as it is killed, whatever it has left there."""
    folder = tmp_path / "run"
    said = f"'{folder}' is in use by process {owner.pid} on host {socket.gethostname()}. "
    with pytest.raises(RunFolderInUseError) as caught, owned(folder):
        pass
    assert str(caught.value).startswith(said)
    assert (folder / ".lock").is_file()
    owner.kill()
    owner.wait()
    with owned(folder):
        assert json.loads((folder / ".lock").read_text())["process"] == os.getpid()
    assert not (folder / ".lock").exists()


def test_an_owner_that_waits_takes_over_from_one_that_ends(tmp_path, owner, monkeypatch):
    """The file that the first one removes is not the second one's lock."""
    monkeypatch.setattr(files, "_WAIT", 30.0)
    owner.stdin.close()
    with owned(tmp_path / "run"):
        assert owner.wait(timeout=30) == 0
        assert (tmp_path / "run" / ".lock").is_file()


def test_a_process_owns_a_folder_once(tmp_path, monkeypatch):
    """Two runs of one process are two owners."""
    monkeypatch.setattr(files, "_WAIT", 0.0)
    said = f"process {os.getpid()} "
    with owned(tmp_path), pytest.raises(RunFolderInUseError, match=said), owned(tmp_path):
        pass
    with owned(tmp_path):
        pass


def test_an_owner_that_writes_nothing_leaves_nothing(tmp_path):
    """Neither the folder, nor those made above it; what was there before stays."""
    (tmp_path / "there").mkdir()
    for folder in ("there", "runs/new"):
        with pytest.raises(KeyError), owned(tmp_path / folder):
            raise KeyError
    with owned(tmp_path / "runs" / "other"):
        (tmp_path / "runs" / "other" / "config.json").touch()

    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["runs", "runs/other", "runs/other/config.json", "there"]


@pytest.mark.parametrize("name", ["ENOSYS", "EOPNOTSUPP", "ENOTSUP", "ENOLCK"])
def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, name):
    """Rather than not at all; network file systems say it in these ways."""
    code = getattr(errno, name)

    def acquire(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.FileLock, "acquire", acquire)
    with pytest.warns(UserWarning, match="has no locks: let no other process"), owned(tmp_path):
        pass
