"""`cli.notebook`: one output of a notebook, which a run replaces as it goes."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from mvczigal_ref.cli.notebook import NotebookDisplay, notebook_output
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.training.events import RunView

RUN = RunView(
    folder=Path("runs/<b>"), config=TrainConfig(), finished=3,
    constraint=ConstraintState(multiplier=0.0, threshold=0.0, initialised=True),
)  # fmt: skip


def pretend(monkeypatch, shell):
    """Be in a Python that has imported IPython with a shell; give what is shown."""
    shown = []
    handle = SimpleNamespace(update=lambda html: shown.append(("update", html)))

    def display(html, *, display_id):
        assert display_id
        shown.append(("display", html))
        return handle

    main, part = ModuleType("IPython"), ModuleType("IPython.display")
    main.get_ipython = lambda: shell
    part.display, part.HTML = display, str
    monkeypatch.setitem(sys.modules, "IPython", main)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    return shown


def test_a_notebook_shows_one_output_and_replaces_it(monkeypatch):
    """By its handle, so that no second one appears."""
    shown = pretend(monkeypatch, SimpleNamespace(kernel=object()))
    show = notebook_output()
    show("one")
    show("two")

    assert shown == [("display", ""), ("update", "one"), ("update", "two")]


def test_a_shell_in_a_terminal_is_no_notebook(monkeypatch):
    """IPython there has no kernel; a script has no shell."""
    for shell in (SimpleNamespace(), None):
        assert pretend(monkeypatch, shell) == []
        assert notebook_output() is None


def test_every_line_has_its_place_and_no_markup():
    """Notes stay, the bar and the scores are replaced, and names are written as they are."""
    outputs = []
    display = NotebookDisplay(outputs.append)
    display.stage("loading models")
    assert outputs[-1] == "loading models"
    display.note("a < b")
    display.begin(RUN)
    assert outputs[-1] == "training into runs/&lt;b&gt;<br>a &lt; b"
    display.evaluation(RUN, "at", {"held_out/per_view": 1.23456})
    display.iteration(4, 4, {"grad_norm": 0.5, "multiplier": None})
    bar, numbers, scores, note = outputs[-1].split("<br>")

    assert '<progress value="4" max="4"></progress> 4 of 4, 0 s left' in bar
    assert (numbers, scores) == ("grad_norm 0.5", "at iteration 3: held_out/per_view 1.235")
    assert note == "a &lt; b"
