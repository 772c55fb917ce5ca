"""`cli.progress`: a bar, plain lines, silence."""

import io
import time

import pytest
from rich.console import Console

from mvczigal_ref.cli.progress import Steps, saying


def progress_text(*, terminal, quiet=False, seconds=10.0):
    """Do 8 of 10 steps, 2 of them before, and give what was written."""
    file, now = io.StringIO(), [0.0]
    console = Console(file=file, force_terminal=terminal, quiet=quiet, width=80)
    with Steps(console, "scoring", 10, done=2, clock=lambda: now[0]) as steps:
        for _ in range(6):
            now[0] += seconds
            steps.advance()
    return file.getvalue()


def test_plain_lines_come_now_and_then():
    """Every 15 s at most, with the share that is done and the time left at the pace so far."""
    assert progress_text(terminal=False).splitlines() == [
        "scoring: 40%, 1 min 0 s left",
        "scoring: 60%, 40 s left",
        "scoring: 80%, 20 s left",
    ]


def test_short_steps_say_nothing():
    """Of less than 15 s."""
    assert progress_text(terminal=False, seconds=1.0) == ""


def test_a_bar_is_shown_to_whoever_watches():
    """With the share, and gone at the end."""
    text = progress_text(terminal=True)

    assert "scoring" in text
    assert "80%" in text
    assert "left" not in text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_silent_console_shows_nothing(terminal):
    """Neither bar nor lines."""
    assert progress_text(terminal=terminal, quiet=True) == ""


@pytest.mark.parametrize(("seconds", "quiet"), [(0.2, False), (0.0, False), (0.2, True)])
def test_a_slow_step_is_named_once(seconds, quiet, monkeypatch, capsys):
    """On standard error, while it goes on; a quick or silent one is not."""
    monkeypatch.setattr("mvczigal_ref.cli.progress.SLOW", 0.05)
    with saying("loading pickscore", quiet=quiet):
        time.sleep(seconds)
        during = capsys.readouterr()
    time.sleep(0.1)

    assert during.err == ("loading pickscore\n" if seconds and not quiet else "")
    assert (during.out, *capsys.readouterr()) == ("", "", "")
