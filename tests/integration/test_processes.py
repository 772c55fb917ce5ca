"""`--processes 2`: who listens, what is unpickled, and how the processes end together."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mvczigal_ref.errors import RunFolderInUseError
from mvczigal_ref.files import owned
from mvczigal_ref.training.tracking import read_metrics
from tests.integration.runs import HELD_OUT, small_components, write_prompts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A run of four network calls an iteration over two prompts."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "held_out.txt").write_text("\n".join(HELD_OUT), "utf-8")
    small_components().save(folder / "weights")
    return [
        "train", "tiny", f"model.weights={folder / 'weights'}",
        f"run.prompts={write_prompts(folder)}",
        f"run.held_out={folder / 'held_out.txt'}", "run.device=cpu", "run.evaluation_noises=1",
        "run.objects_per_iteration=2", "run.objects_per_slice=1", "sampler.num_steps=2",
        "constraint.threshold_objects=0", "optim.decay_iterations=0", "run.checkpoint_every=1",
    ]  # fmt: skip


@contextmanager
def started(folder, *argv):
    """Start a command whose processes may not unpickle; nothing of it outlives the test."""
    with (folder / "said").open("w") as said:
        process = psutil.Popen(
            [sys.executable, "-m", "tests.integration.watched", *map(str, argv)],
            cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                 "CUDA_VISIBLE_DEVICES": "", "UNPICKLED": str(folder / "unpickled")},
        )  # fmt: skip
    try:
        yield process
    finally:
        for left in family(process):
            left.kill()
        process.wait()


def family(process):
    """List the processes of a command that live."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def listening(process):
    """List the addresses on which a command's processes listen, by process."""
    addresses = set()
    for one in family(process):
        try:
            connections = one.net_connections(kind="inet")
        except psutil.Error:  # it has just ended
            continue
        addresses |= {(one.pid, c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN}
    return addresses


def until(process, folder, count):
    """Wait until so many iterations are written."""
    while len(read_metrics(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, (folder.parent / "said").read_text()
        time.sleep(0.05)


def said(folder):
    """Read what a command said."""
    return (folder / "said").read_text("utf-8")


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """Where a run of two processes ended, how, and who listened meanwhile."""
    folder, seen = tmp_path_factory.mktemp("whole"), set()
    argv = [*words, "run.iterations=1", "--processes", "2", "--out", folder / "run"]
    with started(folder, *argv) as process:
        while process.poll() is None:
            seen |= listening(process)
            time.sleep(0.2)  # they listen as long as they work together
    return folder, process.returncode, seen


def test_a_run_of_two_processes_needs_no_pickle(whole):
    """In none of them, nor in the one that starts them: no key of any store can be code."""
    folder, code, _ = whole

    assert not (folder / "unpickled").exists(), said(folder)
    assert code == 0, said(folder)
    assert (folder / "run" / "report.html").is_file()


def test_nothing_listens_beyond_loopback(whole):
    """The two processes wait for each other there, and the one that starts them nowhere."""
    assert len({pid for pid, _ in whole[2]}) == 2
    assert {address for _, address in whole[2]} <= {"127.0.0.1", "::1"}


def test_pretraining_owns_its_folder_and_listens_on_loopback(tmp_path):
    """Its main process, before anything is written there."""
    out, seen = tmp_path / "out", set()
    argv = ["pretrain", "objects_per_prompt=1", "--processes", "2", "--out", out]
    with started(tmp_path, *argv) as process:
        while not (out / "pretrain_config.json").exists():
            assert process.poll() is None, said(tmp_path)
            seen |= listening(process)
            time.sleep(0.05)
        first, _ = process.children()
        with pytest.raises(RunFolderInUseError, match=f"process {first.pid} "), owned(out):
            pass

    assert len({pid for pid, _ in seen}) == 2
    assert {address for _, address in seen} <= {"127.0.0.1", "::1"}
    assert not (tmp_path / "unpickled").exists()


def test_processes_own_their_folder_and_end_together(words, tmp_path):
    """One start's launcher is killed, then the next one's last process; a third is refused."""
    run = tmp_path / "run"
    argv = [*words, "run.iterations=1000", "--processes", "2", "--out", run]
    with started(tmp_path, *argv) as process:
        until(process, run, 1)
        children = process.children()
        assert len(children) == 2
        process.send_signal(signal.SIGKILL)
        gone, alive = psutil.wait_procs(children, timeout=10)
        assert (len(gone), alive) == (2, [])
        process.wait()
    with started(tmp_path, *argv) as process:
        until(process, run, 3)
        second = subprocess.run(
            [sys.executable, "-m", "mvczigal_ref", *words, "--out", str(run)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        first, last = process.children()
        last.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == 128 + signal.SIGKILL
    lines = said(tmp_path).splitlines()

    assert second.returncode == 2
    assert f"error: '{run}' is in use by process {first.pid} on host " in second.stderr
    assert not first.is_running()
    assert "Traceback" not in said(tmp_path)
    assert "mvczigal: error: process 1 of 2 was ended by SIGKILL, and the others with it." in lines
    assert [line for line in lines if "error: lost another process of the run" in line]
