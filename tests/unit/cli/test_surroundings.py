"""`cli.surroundings`: commands print and draw wherever they are started."""

import os
import subprocess
import sys

import pytest

from mvczigal_ref.cli import main, surroundings
from mvczigal_ref.cli.surroundings import adapt, reader_gone

# -- laws --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _variables(monkeypatch):
    """What a command sets is the test's alone."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_without_width_still_shows_a_table(columns, monkeypatch, capsys):
    """Some terminals say that they have no columns; rich would print nothing."""
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["settings", "optim.lr"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert max(map(len, lines)) == 20


@pytest.mark.parametrize(("columns", "width"), [(1, "20"), (19, "20"), (80, None)])
def test_a_narrow_terminal_counts_as_wide_enough(columns, width, monkeypatch):
    """Of itself too, where no variable says so: help in 5 columns had no end."""
    monkeypatch.delenv("COLUMNS")
    size = os.terminal_size((columns, 24))
    monkeypatch.setattr(surroundings.os, "get_terminal_size", lambda *_: size)
    adapt()

    assert os.environ.get("COLUMNS") == width


@pytest.mark.parametrize("columns", ["20", "300", "many", ""])
def test_another_width_is_left_alone(columns, monkeypatch):
    """Whatever it says."""
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["settings", "optim.lr", "--quiet"]) == 0
    assert os.environ["COLUMNS"] == columns


def test_what_an_encoding_lacks_is_escaped_and_a_notebooks_backend_is_not_asked_for():
    """As in a log of ASCII, or where a notebook starts a command of another environment."""
    code = (
        "from mvczigal_ref.cli import main; import sys; status = main(['recipes', 'tiny']);"
        "print('\\u2026'); import matplotlib; sys.exit(status)"
    )
    strange = {
        "PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://nowhere.backend_inline",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **strange}, capture_output=True,
        check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\\u2026\n")


def test_only_a_pipe_without_a_reader_has_lost_it(monkeypatch):
    """One that is read, a file and a stream of no file have not."""
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert not reader_gone()
        os.close(reader)
        assert reader_gone()
    monkeypatch.undo()
    assert not reader_gone()


# -- errors ------------------------------------------------------------------------------


@pytest.fixture
def deleted(tmp_path, monkeypatch):
    """A current folder that is gone."""
    if sys.platform == "win32":
        pytest.skip("Windows deletes no current folder")
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()


@pytest.mark.parametrize(
    "words",
    [["recipes"], ["recipes", "tiny", "--yaml"], ["settings", "guard"], ["settings", "--json"]],
)
def test_a_list_needs_no_current_folder(deleted, words, capsys):
    """It reads and writes no file there."""
    assert main(words) == 0
    written = capsys.readouterr()
    assert written.out
    assert not written.err


@pytest.mark.parametrize("words", [["train", "tiny"], ["recipes", "--json", "list.json"]])
def test_a_current_folder_that_is_gone_is_named(deleted, words, capsys):
    """Not by the system's error, which names no file."""
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "mvczigal: error: the current folder must exist; it has been deleted or moved. `cd` to "
        "another.\n"
    )
