"""Starting the processes of a command: how many, by whom, and how they ended."""

import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mvczigal_ref.cli import launch as launching
from mvczigal_ref.cli.launch import end_with_launcher, join, launch, starts_processes
from mvczigal_ref.errors import ConfigError

# Writes down the environment and the mode of the folder in which the processes meet.
PLACE = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["MVCZIGAL_STORE"]).parent
place = {**os.environ, "mode": folder.stat().st_mode & 0o777}
pathlib.Path(sys.argv[2], os.environ["RANK"]).write_text(json.dumps(place))
"""
# One process of two fails at once; the other would take a minute.
UNEVEN = "import os, sys, time; os.environ['RANK'] == '1' and sys.exit(3); time.sleep(60)"
# Each says that it is there, and takes a stop for an end.
STOPPABLE = """
import os, pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(str(number))
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text("there")
time.sleep(60)
"""

# Takes its time to save after a stop, and hears no second one.
SLOW = """
import os, pathlib, signal, sys, time
def tell(text):
    aside = pathlib.Path(sys.argv[2], "aside")
    aside.write_text(text)
    aside.replace(pathlib.Path(sys.argv[2], os.environ["RANK"]))
def stop(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell("stopping")
    time.sleep(float(sys.argv[1]))
    tell("saved")
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
tell("there")
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """No launcher has started the tests, and none leaves a setting behind."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_one_process_is_this_one():
    """Nothing is started."""
    assert not starts_processes(1)


def test_several_are_started_once(monkeypatch):
    """Here they are to be started; in each of them they have been."""
    assert starts_processes(2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not starts_processes(2)


def test_a_launcher_of_another_size_is_refused(monkeypatch):
    """Both numbers are named."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="launcher; got 2, it runs 4"):
        starts_processes(2)


@pytest.mark.parametrize(
    ("size", "rank"), [("two", "0"), ("", "0"), ("2", "x"), ("1", "1"), ("0", "0"), ("-1", None)]
)
def test_variables_that_no_launcher_sets_are_refused(size, rank, monkeypatch):
    """Otherwise a process that is none of the run's would train, and write nothing."""
    monkeypatch.setenv("WORLD_SIZE", size)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    for count in (1, 2):
        with pytest.raises(ConfigError, match="must be whole numbers, the second below the first"):
            starts_processes(count)


@pytest.mark.parametrize("device", ["bogus", "meta", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused(device):
    """In one short line, with a remedy."""
    with pytest.raises(ConfigError, match="cannot compute on device") as caught:
        join(device)
    assert len(str(caught.value)) < 400
    assert str(caught.value).endswith("or cpu.")


@pytest.mark.parametrize("count", [0, 10**9])
def test_no_process_and_far_too_many_are_refused(count):
    """There must be one, and a slip must not bring the machine down."""
    with pytest.raises(ConfigError, match=f"`--processes` must be 1 to 1000; got {count}"):
        starts_processes(count)


def test_every_process_is_told_its_place(tmp_path, monkeypatch):
    """A program in place of the package writes down what it was told, and ends well."""
    monkeypatch.setattr(launching, "PROGRAM", ("-c", PLACE))

    assert launch(2, ["train", str(tmp_path)]) == 0
    places = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert sorted(places) == ["0", "1"]
    for place in places.values():
        assert place["WORLD_SIZE"] == place["LOCAL_WORLD_SIZE"] == "2"


def test_processes_meet_on_loopback_in_a_folder_of_this_user_alone(tmp_path, monkeypatch):
    """Whatever the surroundings ask for; the folder is gone afterwards."""
    monkeypatch.setattr(launching, "PROGRAM", ("-c", PLACE))
    for name in ("MASTER_ADDR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "eth0")
    launch(2, ["train", str(tmp_path)])
    places = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]

    for place in places:
        assert place["MASTER_ADDR"] == "127.0.0.1"
        assert place["GLOO_SOCKET_IFNAME"] == place["NCCL_SOCKET_IFNAME"]
        assert place["GLOO_SOCKET_IFNAME"].rstrip("0") == "lo"
        assert place["mode"] == 0o700
    assert places[0]["MVCZIGAL_STORE"] == places[1]["MVCZIGAL_STORE"]
    assert not Path(places[0]["MVCZIGAL_STORE"]).parent.exists()


def test_a_refusal_is_the_commands_own():
    """Status 2, as of one process."""
    assert launch(2, ["train", "no_such_recipe"]) == 2


def test_a_process_that_was_killed_is_named(monkeypatch, capfd):
    """It cannot say so itself."""
    monkeypatch.setattr(launching, "PROGRAM", ("-c", "import os; os.kill(os.getpid(), 9)"))

    assert launch(1, []) == 128 + 9
    assert "process 0 of 1 was ended by SIGKILL" in capfd.readouterr().err


def test_a_process_that_fails_ends_the_others(monkeypatch):
    """After a while in which they may say themselves what they have met."""
    monkeypatch.setattr(launching, "PROGRAM", ("-c", UNEVEN))
    monkeypatch.setattr(launching, "_GRACE", 0.2)

    assert launch(2, []) == 3


@pytest.mark.parametrize("status", [1, 130])
def test_a_stop_has_the_status_of_its_reason(monkeypatch, status):
    """As of a lost reader, which the main process alone has: it may end last."""
    code = f"""if True:
        import os, sys, time
        os.environ["RANK"] == "1" and sys.exit(130)
        time.sleep(0.2)
        sys.exit({status})"""
    monkeypatch.setattr(launching, "PROGRAM", ("-c", code))

    assert launch(2, []) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stop_reaches_every_process(tmp_path, monkeypatch, number):
    """As the signal after which a run saves; the handlers of before are back afterwards."""
    monkeypatch.setattr(launching, "PROGRAM", ("-c", STOPPABLE))
    handlers = [signal.getsignal(n) for n in launching._STOPS]

    def ask():
        while sorted(path.name for path in tmp_path.iterdir() if path.read_text()) != ["0", "1"]:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask, daemon=True)  # ends with a test that fails
    asking.start()
    assert launch(2, [str(tmp_path)]) == 128 + number
    asking.join()
    assert [path.read_text() for path in tmp_path.iterdir()] == [str(int(signal.SIGTERM))] * 2
    assert [signal.getsignal(n) for n in launching._STOPS] == handlers


def ask_once_there(folder, *numbers):
    """Send this process a signal once SLOW is there, and the next one while it stops."""
    path = folder / "0"

    def ask():
        for text, number in zip(("there", "stopping"), numbers, strict=False):
            while not path.exists() or path.read_text() != text:
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask, daemon=True)  # ends with a test that fails
    asking.start()
    return asking


def test_a_stop_has_no_deadline(tmp_path, monkeypatch):
    """An iteration may take hours; by this clock it does."""
    hours = itertools.count(step=10_000.0)
    clock = SimpleNamespace(monotonic=lambda: next(hours), sleep=time.sleep)
    monkeypatch.setattr(launching, "time", clock)
    monkeypatch.setattr(launching, "PROGRAM", ("-c", SLOW, "0.5"))
    asking = ask_once_there(tmp_path, signal.SIGTERM)

    assert launch(1, [str(tmp_path)]) == 128 + signal.SIGTERM
    asking.join()
    assert (tmp_path / "0").read_text() == "saved"


def test_a_second_interrupt_does_not_wait(tmp_path, monkeypatch):
    """Not even for a process that cannot hear it."""
    monkeypatch.setattr(launching, "_FAREWELL", 0.1)
    monkeypatch.setattr(launching, "PROGRAM", ("-c", SLOW, "60"))
    asking = ask_once_there(tmp_path, signal.SIGINT, signal.SIGINT)

    assert launch(1, [str(tmp_path)]) == 128 + signal.SIGINT
    asking.join()
    assert (tmp_path / "0").read_text() == "stopping"


def test_a_second_request_to_terminate_waits(tmp_path, monkeypatch):
    """Schedulers repeat themselves: as in one process, it is one request."""
    monkeypatch.setattr(launching, "_FAREWELL", 0.0)
    monkeypatch.setattr(launching, "PROGRAM", ("-c", SLOW, "0.5"))
    asking = ask_once_there(tmp_path, signal.SIGTERM, signal.SIGTERM)

    assert launch(1, [str(tmp_path)]) == 128 + signal.SIGTERM
    asking.join()
    assert (tmp_path / "0").read_text() == "saved"


def test_a_system_without_hangups_has_the_other_stops(monkeypatch):
    """Windows has no SIGHUP."""
    monkeypatch.delattr(signal, "SIGHUP")
    stops = runpy.run_path(launching.__file__)["_STOPS"]

    assert stops == (signal.SIGTERM, signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so(tmp_path, monkeypatch):
    """Under nohup a run outlives its terminal."""
    program = "import os, signal; os.kill(os.getppid(), signal.SIGHUP)"
    monkeypatch.setattr(launching, "PROGRAM", ("-c", program))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launch(1, []) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_ends_with_its_launcher(monkeypatch):
    """Its end of the pipe closes, however the launcher has ended."""
    reading, writing = os.pipe()
    program = "from mvczigal_ref.cli.launch import *; end_with_launcher(); print(1, flush=True); "
    child = subprocess.Popen(
        [sys.executable, "-c", program + "import time; time.sleep(60)"],
        env={**os.environ, "MVCZIGAL_LIFELINE": str(reading)},
        pass_fds=(reading,),
        stdout=subprocess.PIPE,
    )
    os.close(reading)
    with child:
        assert child.stdout.readline() == b"1\n"
        assert child.poll() is None
        os.close(writing)
        assert child.wait(timeout=10) == 1


def test_a_process_of_nobody_has_no_launcher_to_end_with(monkeypatch):
    """Nothing is watched."""
    monkeypatch.delenv("MVCZIGAL_LIFELINE", raising=False)
    threads = threading.active_count()
    end_with_launcher()

    assert threading.active_count() == threads


def test_cores_are_shared_out(tmp_path, monkeypatch):
    """Without a number of threads each process takes its part of the cores."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(launching.os, "cpu_count", lambda: 6)
    program = (
        "import os, pathlib, sys;"
        "pathlib.Path(sys.argv[1], 'said').write_text(os.environ['OMP_NUM_THREADS'])"
    )
    monkeypatch.setattr(launching, "PROGRAM", ("-c", program))

    assert launch(2, [str(tmp_path)]) == 0
    assert (tmp_path / "said").read_text() == "3"
