"""`tracking`: lines that survive a kill, seconds and bytes."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch

from mvczigal_ref.training import tracking
from mvczigal_ref.training.tracking import (
    MetricsLog,
    StageTimer,
    peak_memory,
    read_metrics,
)


def run(path, first, last):
    """Write the metrics of some iterations."""
    log = MetricsLog(path, finished=first)
    for iteration in range(first, last):
        log.append(iteration, {"reward/joint": 0.1 * iteration, "clipped": False, "count": 3})


# -- metrics -----------------------------------------------------------------------------


def test_what_was_appended_is_read(tmp_path):
    """One line an iteration, floats to the last bit."""
    path = tmp_path / "run" / "metrics.jsonl"
    run(path, 0, 4)

    assert read_metrics(path) == [
        {"iteration": i, "reward/joint": 0.1 * i, "clipped": False, "count": 3} for i in range(4)
    ]
    assert len(path.read_text().splitlines()) == 4


def test_a_number_that_is_not_finite_becomes_null(tmp_path):
    """The file stays JSON for any reader."""
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append(0, {"a": float("nan"), "b": float("-inf"), "c": None, "d": 1.5})

    assert read_metrics(path) == [{"iteration": 0, "a": None, "b": None, "c": None, "d": 1.5}]


@pytest.mark.parametrize("torn", ["", '{"iteration": 5, "rew'])
def test_a_resumed_run_has_the_lines_of_one_that_was_never_interrupted(tmp_path, torn):
    """Lines after the checkpoint are cut off and written again; a torn one too."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    run(one, 0, 8)
    run(two, 0, 5)
    with two.open("a") as file:
        file.write(torn)
    assert len(read_metrics(two)) == 5
    run(two, 3, 8)

    assert two.read_bytes() == one.read_bytes()


def test_a_new_run_begins_with_no_lines(tmp_path):
    """Nothing of an older run is counted as its own."""
    path = tmp_path / "metrics.jsonl"
    run(path, 0, 3)
    MetricsLog(path)

    assert read_metrics(path) == []
    assert path.exists()


def test_a_file_that_does_not_exist_holds_nothing(tmp_path):
    """A report can be asked for at once."""
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_each_line_is_on_the_disk_before_the_next_begins(tmp_path, monkeypatch):
    """The sync sees the whole line."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    seen = []
    monkeypatch.setattr(tracking.os, "fsync", lambda _: seen.append(len(read_metrics(path))))
    log.append(0, {"a": 1})
    log.append(1, {"a": 1})

    assert seen == [1, 2]


@pytest.mark.parametrize("iteration", [0, 2])
def test_a_repeated_or_skipped_iteration_is_refused(tmp_path, iteration):
    """With the one that is next."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(0, {})
    with pytest.raises(
        ValueError, match=f"`iteration` must be 1, the next to write; got {iteration}"
    ):
        log.append(iteration, {})


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', '{"iteration": null}'])
def test_a_damaged_line_is_refused_by_its_number(tmp_path, line):
    """Only the last line can have been torn by a kill."""
    path = tmp_path / "metrics.jsonl"
    run(path, 0, 1)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"line 2 of .* must be an iteration's metrics"):
        read_metrics(path)


# -- seconds and bytes -------------------------------------------------------------------


def test_a_stage_adds_up_and_the_next_iteration_begins_at_nothing(monkeypatch):
    """Twice the same stage, and one that fails."""
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timer = StageTimer()
    with timer("rollout"):
        pass
    with pytest.raises(KeyError), timer("reward"):
        raise KeyError
    with timer("rollout"):
        pass

    assert timer.take() == {"seconds/rollout": 5.0, "seconds/reward": 2.0}
    assert timer.take() == {}


def test_an_accelerator_is_waited_for_at_both_ends(monkeypatch):
    """Otherwise the next stage would pay for what this one started."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    with StageTimer(torch.device("cuda", 1))("rollout"):
        assert waited == [torch.device("cuda", 1)]
    assert waited == [torch.device("cuda", 1)] * 2
    with StageTimer(torch.device("cpu"))("rollout"):
        pass
    assert len(waited) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the Linux kernel counts")
def test_peak_memory_is_what_the_kernel_counts():
    """To a hundredth: the two readings are not taken at once."""
    status = Path("/proc/self/status").read_text()
    kibibytes = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])

    assert peak_memory(torch.device("cpu")) == pytest.approx(kibibytes * 1024, rel=1e-2)


def test_peak_memory_is_absent_where_the_system_does_not_tell(monkeypatch):
    """Windows has no such module; a GPU's is torch's own."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 100)

    assert peak_memory(torch.device("cpu")) is None
    assert peak_memory(torch.device("cuda")) == 100


def test_peak_memory_of_a_gpu_is_what_its_tensors_took(monkeypatch):
    """Asked for that device."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 + device.index)

    assert peak_memory(torch.device("cuda", 1)) == 101


def test_lines_are_json_objects(tmp_path):
    """Any tool can read them."""
    path = tmp_path / "metrics.jsonl"
    run(path, 0, 1)

    assert json.loads(path.read_text())["iteration"] == 0
