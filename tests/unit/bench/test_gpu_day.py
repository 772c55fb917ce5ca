"""`bench.gpu_day`: failures, hangs and the time for all, on stub steps."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("bench", reason="measurements are not in the wheel")

from bench.gpu_day import FIGURES, ROOT, STEPS, Outcome, Step, main, run_steps, table
from tests.gpu import conftest as gpu

HANG = "import time; print('began', flush=True); time.sleep(600)"
CHILD = (
    "import pathlib, subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); "
)
SIGNAL = "import os; os.kill(os.getppid(), int(sys.argv[2])); "
SLEEP = "time.sleep(600)"
RECORD = (
    "import os, sys, time; file = open(os.environ[sys.argv[1]], 'a'); "
    """file.write('{"peak GiB": "3.5"}\\n{"torn'); file.flush(); """
)


def stub(name, code, *, limit=20.0, devices=1, arguments=(), **more):
    """Make a step of a line of Python."""
    command = ("-c", code, *arguments)
    return Step(name=name, command=command, limit=limit, devices=devices, **more)


def ends(outcomes):
    """Give every step's end by its name."""
    return {outcome.name: outcome.ended for outcome in outcomes}


def test_a_failure_and_a_hang_end_no_other_step(tmp_path):
    """The hanging one is cut at its limit; the JSON and the table hold all of them."""
    steps = [
        stub("fails", "print('no memory'); raise SystemExit(3)"),
        stub("hangs", HANG, limit=1.0),
        stub("passes", "print('fine')", figures=lambda folder: {"peak GiB": "3.5"}),
    ]
    started = time.monotonic()
    outcomes = run_steps(steps, tmp_path, seconds=60, devices=1)
    content = json.loads((tmp_path / "gpu_day.json").read_text())

    assert ends(outcomes) == {"fails": "failed", "hangs": "cut", "passes": "passed"}
    assert time.monotonic() - started < 30
    assert 1.0 <= outcomes[1].seconds < 10
    assert [step["status"] for step in content["steps"]] == [3, None, 0]
    assert [step["tail"] for step in content["steps"]] == ["no memory\n", "began\n", "fine\n"]
    assert "| passes | passed | 0 | peak GiB | 3.5 |" in (tmp_path / "gpu_day.md").read_text()


def test_no_step_begins_after_the_time_for_all(tmp_path):
    """A step's limit is what is left; the others are not reached, and the table says so."""
    steps = [stub("first", HANG), stub("second", "print(1)")]
    outcomes = run_steps(steps, tmp_path, seconds=1.0, devices=1)

    assert ends(outcomes) == {"first": "cut", "second": "not reached"}
    assert outcomes[1].tail == "no time was left"
    assert "| second | not reached | 0 | reason | no time was left |" in table(outcomes)


def test_a_step_for_two_devices_is_left_out_on_one(tmp_path):
    """It costs no time."""
    steps = [stub("two", "raise SystemExit(1)", devices=2)]

    assert ends(run_steps(steps, tmp_path, seconds=9, devices=1)) == {"two": "left out"}
    assert ends(run_steps(steps, tmp_path, seconds=9, devices=2)) == {"two": "failed"}


def ends_soon(child):
    """Whether a process is gone within five seconds; it is killed if not."""
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    os.kill(child, 9)
    return False


def test_what_a_cut_step_started_ends_with_it(tmp_path):
    """A process that goes on would hold the device's memory."""
    run_steps(
        [stub("parent", CHILD + SLEEP, limit=3.0, arguments=("{out}/pid",))],
        tmp_path, seconds=60, devices=1,
    )  # fmt: skip

    assert ends_soon(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_the_running_step(tmp_path, monkeypatch, number, error):
    """With what it started; the table has it as cut, and the rest as not reached."""
    arguments = ("{out}/pid", str(int(number)))
    steps = (stub("runs", CHILD + SIGNAL + SLEEP, arguments=arguments), stub("next", "pass"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("bench.gpu_day.STEPS", tuple(replace(s, devices=0) for s in steps))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        main(["--out", str(tmp_path)])
    content = json.loads((tmp_path / "gpu_day.json").read_text())

    assert ends_soon(int((tmp_path / "pid").read_text()))
    assert [step["ended"] for step in content["steps"]] == ["cut", "not reached"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cut_step_keeps_its_figures(tmp_path):
    """Those of whole lines; what an earlier run wrote is not read."""
    (tmp_path / "peak memory.jsonl").write_text('{"old": "1"}\n')
    readers = {step.name: step.figures for step in STEPS}
    steps = [
        stub(
            "peak memory", RECORD + SLEEP, limit=2.0, arguments=(FIGURES,),
            figures=readers["peak memory"],
        )
    ]  # fmt: skip
    (outcome,) = run_steps(steps, tmp_path, seconds=60, devices=1)

    assert (outcome.ended, outcome.figures) == ("cut", {"peak GiB": "3.5"})


def test_a_test_s_figures_are_written_as_it_ends(tmp_path, monkeypatch):
    """Whether it passes or not; without the variable nothing is written."""
    path = tmp_path / "figures.jsonl"
    reports = [
        SimpleNamespace(when=when, user_properties=[("peak GiB", value)])
        for when, value in (("call", "3.5"), ("teardown", "3.5"), ("call", "4.5"))
    ]
    monkeypatch.delenv(FIGURES, raising=False)
    gpu.pytest_runtest_logreport(reports[0])
    assert not path.exists()
    monkeypatch.setenv(FIGURES, str(path))
    for report in reports:
        gpu.pytest_runtest_logreport(report)

    assert path.read_text() == '{"peak GiB": "3.5"}\n{"peak GiB": "4.5"}\n'
    assert gpu.FIGURES == FIGURES


def test_unreadable_figures_are_told_and_end_nothing(tmp_path):
    """Nothing was written where the step should have written."""
    steps = [stub("no file", "pass", figures=lambda folder: json.loads((folder / "x").read_text()))]
    (outcome,) = run_steps(steps, tmp_path, seconds=9, devices=1)

    assert outcome.ended == "passed"
    assert outcome.figures["figures"].startswith("unreadable: ")


def test_figures_of_tests_and_of_the_budget(tmp_path):
    """What a test recorded, and peaks beside plans."""
    (tmp_path / "peak memory.jsonl").write_text('{"update GiB": "17.2 / 16.9"}\n')
    stage = {"seconds": 1.0, "spread": 0.0, "peak": 2**30, "flops": 1, "share": 0.25}
    point = {"dtype": "bf16", "options": "checkpointing", "objects": 2}
    rows = [{"point": point, "failed": "", "sampling": stage, "training": stage, "planned": 2**31}]
    rows.append({"point": {**point, "dtype": "fp16"}, "failed": "out of memory"})
    rates = {"bf16": {"flops": 5e14}}
    (tmp_path / "budget.json").write_text(json.dumps({"matrix_rates": rates, "rows": rows}))
    readers = {step.name: step.figures for step in STEPS}

    assert readers["peak memory"](tmp_path) == {"update GiB": "17.2 / 16.9"}
    assert readers["budget"](tmp_path) == {
        "bf16 matrix rate TFLOP/s": "500",
        "bf16 checkpointing, objects 2: peak / planned GiB": "1.00 / 2.00",
        "bf16 checkpointing, objects 2: s/object, sampling + training": "1.00 + 1.00",
        "bf16 checkpointing, objects 2: of matrix rate, sampling + training": "25.0% + 25.0%",
        "fp16 checkpointing, objects 2": "out of memory",
    }


def test_every_gpu_test_is_in_a_step():
    """By its file; all limits together are the nine minutes, so that every step is reached."""
    files = {path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    named = {Path(step.command[-1]).name for step in STEPS}

    assert files <= named
    assert sum(step.limit for step in STEPS) <= 9 * 60


def test_without_a_device_nothing_is_run(tmp_path, capsys, monkeypatch):
    """One line, exit status 2, and no folder."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "day")])

    assert ended.value.code == 2
    assert capsys.readouterr().out == (
        "gpu_day needs a CUDA device; there is none, so nothing was run.\n"
    )
    assert not (tmp_path / "day").exists()


@pytest.mark.parametrize(
    ("end", "status"), [("passed", 0), ("left out", 0), ("not reached", 0), ("cut", 1)]
)
def test_the_exit_status_says_what_became_of_the_steps(tmp_path, monkeypatch, end, status):
    """A step that was left out is no failure."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "bench.gpu_day.run_steps", lambda *given, **named: [Outcome(name="one", ended=end)]
    )
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path)])

    assert ended.value.code == status
