"""Live display of a run in a notebook: one output that is replaced, with a bar and the numbers."""

import sys
import time
from collections.abc import Callable, Mapping
from html import escape
from importlib import import_module
from typing import Any

from mvczigal_ref.training.events import Events, RunView

__all__ = ["NotebookDisplay", "notebook_output"]

_SHOWN = (
    "per_view_reward/mean", "per_view_reward/zigzag", "joint_view_reward/mean",
    "joint_view_reward/zigzag", "multiplier", "grad_norm",
)  # fmt: skip
_EVERY = 0.5  # seconds between two changes of the output


def notebook_output() -> Callable[[str], None] | None:
    """Find where a notebook shows HTML.

    Returns:
        A function that replaces one output by other HTML; None outside a notebook.

    Examples:
        >>> notebook_output() is None
        True
    """
    ipython = sys.modules.get("IPython")  # a notebook has imported it
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:
        return None
    shown = import_module("IPython.display")
    handle = shown.display(shown.HTML(""), display_id=True)

    def show(html: str) -> None:
        handle.update(shown.HTML(html))

    return show


class NotebookDisplay(Events):
    """Bar, seconds left, rewards and held-out scores of a run, in one output.

    Args:
        show: Replaces the output by HTML.

    Examples:
        >>> outputs = []
        >>> display = NotebookDisplay(outputs.append)
        >>> display.iteration(1, 4, {"multiplier": 0.25})
        >>> "1 of 4" in outputs[-1], "multiplier 0.25" in outputs[-1]
        (True, True)
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._bar, self._notes = show, "", list[str]()
        self._numbers, self._held_out = "", ""
        self._began: tuple[int, float] | None = None
        self._shown = 0.0

    def stage(self, text: str) -> None:
        """Show that something long begins."""
        self._bar = escape(text)
        self._draw()

    def note(self, text: str) -> None:
        """Add a line that stays.

        Args:
            text: The line.
        """
        self._notes.append(escape(text))
        self._draw()

    def begin(self, run: RunView) -> None:
        """Show where the run is."""
        self._began = (run.finished, time.monotonic())
        self._bar = escape(f"training into {run.folder}")
        self._draw()

    def evaluation(self, run: RunView, name: str, scores: Mapping[str, float]) -> None:
        """Show the latest held-out scores."""
        texts = [f"{key} {value:.4g}" for key, value in scores.items()]
        self._held_out = escape(f"{name} iteration {run.finished}: {', '.join(texts)}")
        self._draw()

    def iteration(self, finished: int, total: int, metrics: Mapping[str, float | None]) -> None:
        """Show an iteration's numbers."""
        first, begun = self._began or (finished - 1, time.monotonic())
        left = (time.monotonic() - begun) / max(1, finished - first) * (total - finished)
        self._bar = (
            f'<progress value="{finished}" max="{total}"></progress> {finished} of {total}, '
            f"{left:.0f} s left"
        )
        numbers: list[tuple[str, Any]] = [(name, metrics.get(name)) for name in _SHOWN]
        texts = [f"{name} {value:.4g}" for name, value in numbers if value is not None]
        self._numbers = escape(", ".join(texts))
        if finished == total or time.monotonic() - self._shown >= _EVERY:
            self._draw()

    def end(self, run: RunView) -> None:
        """Show where everything lies."""
        self._bar = escape(f"{run.finished} of {run.total} iterations in {run.folder}")
        self._draw()

    def _draw(self) -> None:
        self._shown = time.monotonic()
        lines = [self._bar, self._numbers, self._held_out, *self._notes]
        self._show("<br>".join(line for line in lines if line))
