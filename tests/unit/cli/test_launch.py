"""Starting the processes of a command: how many, by whom, and how they ended."""

import pytest

from mvczigal_ref.cli import launch as launching
from mvczigal_ref.cli.launch import launch, starts_processes
from mvczigal_ref.errors import ConfigError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """No launcher has started the tests, and none leaves a setting behind."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
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


def test_no_process_is_refused():
    """There must be one."""
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        starts_processes(0)


def test_every_process_is_told_its_place(tmp_path, monkeypatch):
    """A program in place of the package writes down what it was told, and ends well."""
    program = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[2], os.environ['RANK'])"
        ".write_text(os.environ['WORLD_SIZE'] + os.environ['MASTER_ADDR'])"
    )
    monkeypatch.setattr(launching, "PROGRAM", ("-c", program))

    assert launch(2, ["train", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0": "2127.0.0.1",
        "1": "2127.0.0.1",
    }


def test_a_refusal_is_the_commands_own():
    """Status 2, as of one process."""
    assert launch(2, ["train", "no_such_recipe"]) == 2


def test_a_process_that_was_killed_is_named(monkeypatch, capfd):
    """It cannot say so itself."""
    monkeypatch.setattr(launching, "PROGRAM", ("-c", "import os; os.kill(os.getpid(), 9)"))

    assert launch(1, []) == 128 + 9
    assert "process 0 was ended" in capfd.readouterr().err


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
