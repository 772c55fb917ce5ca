"""What a person sees while a command works: progress, tables, plain lines where no one looks."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.evaluation.evaluate import PairedGain
from mvczigal_ref.evaluation.guard import GuardState
from mvczigal_ref.report.run_folder import told_metrics
from mvczigal_ref.training.loop import Events

__all__ = ["TrainingDisplay", "gain_table", "guard_table", "guard_text", "score_heading"]

_TRAINING = "training (Ctrl-C saves and stops)"
_PLAIN_EVERY = 15.0  # seconds between lines where there is no terminal

# Header, metric (one, or the mean of several), format. Each column is as wide as its header.
_COLUMNS: Sequence[tuple[str, tuple[str, ...], str]] = (
    ("per view", ("per_view_reward/zigzag", "per_view_reward/standard"), ".2f"),
    ("gap", ("per_view_reward/gap",), "+.2f"),
    ("   joint", ("joint_view_reward/zigzag", "joint_view_reward/standard"), ".2f"),
    ("gap", ("joint_view_reward/gap",), "+.2f"),
    ("threshold", ("threshold",), ".2f"),
    ("multiplier", ("multiplier",), ".3f"),
    ("grad norm", ("grad_norm",), ".3g"),
)
_GROUP_COLUMNS: Sequence[tuple[str, tuple[str, ...], str]] = (
    ("per view", ("per_view_reward/mean",), ".2f"),
    ("spread", ("per_view_reward/group_std",), ".2f"),
    ("   joint", ("joint_view_reward/mean",), ".2f"),
    ("multiplier", ("multiplier",), ".3f"),
    ("drift", ("drift/median",), ".3g"),
    ("clipped", ("clip_fraction",), ".3f"),
    ("grad norm", ("grad_norm",), ".3g"),
)
_WIDTH = 6


class TrainingDisplay(Events):
    """A line an iteration over a progress bar; in a file or a pipe, a plain line now and then.

    Args:
        console: Where to; rich knows whether someone is watching.
        config: The run; columns that would say nothing of it are left out. None shows all.
    """

    def __init__(self, console: Console, config: TrainConfig | None = None) -> None:
        self._console, self._config = console, config
        self._live = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=4,
            disable=not self._live,
            transient=True,
        )
        self._task: TaskID | None = None
        self._stage: TaskID | None = None
        self._spoken, self._began = -_PLAIN_EVERY, (0, 0.0)
        self._columns: Sequence[tuple[str, tuple[str, ...], str]] = _COLUMNS

    def __enter__(self) -> "TrainingDisplay":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        """Show that something long begins."""
        if not self._live:
            self._print(text)
            return
        self._end_stage()
        self._stage = self._progress.add_task(text, total=None, told="")

    def note(self, text: str) -> None:
        """Print a line.

        Args:
            text: The line.
        """
        self._print(text)

    def iteration(self, finished: int, total: int, metrics: Mapping[str, float | None]) -> None:
        """Show an iteration's numbers."""
        now = time.monotonic()
        first = self._task is None
        if first:
            self._end_stage()
            self._began = (finished, now)
            self._task = self._progress.add_task(_TRAINING, total=total, told="")
            columns = _GROUP_COLUMNS if "per_view_reward/mean" in metrics else _COLUMNS
            self._columns = [column for column in columns if self._tells(column[1])]
            self._print(_header(self._columns))
        left = ""
        done, began = self._began
        if done < finished < total:
            left = _duration((now - began) / (finished - done) * (total - finished)) + " left"
        if self._task is not None:
            told = f"{finished}/{total}  {left}"
            self._progress.update(self._task, completed=finished, told=told)
        due = now - self._spoken >= _PLAIN_EVERY or finished == total
        if self._live or first or due:
            self._spoken = now
            line = f"{finished:>{_WIDTH}}" + "".join(
                f"  {_value(metrics, names, form):>{max(len(header), _WIDTH)}}"
                for header, names, form in self._columns
            )
            self._print(line if self._live or not left else f"{line}  {left}")

    def _tells(self, names: Sequence[str]) -> bool:
        return self._config is None or told_metrics(self._config, names) == {*names}

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._progress.remove_task(self._stage)
            self._stage = None

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def score_heading(unit: str) -> str:
    """Head a column of scores; rich would read plain brackets as its own markup.

    Args:
        unit: Of the scores; may be empty.

    Returns:
        The heading.
    """
    return escape("score" + (f" [{unit}]" if unit else ""))


def gain_table(gains: Mapping[str, PairedGain], *, unit: str, before: str, after: str) -> Table:
    """Lay out paired gains, one score a row.

    Args:
        gains: By name of the score.
        unit: Of the scores; may be empty.
        before: Heading of the first policy's scores.
        after: Heading of the second's.

    Returns:
        A table for a console.
    """
    table = Table(score_heading(unit))
    for heading in (before, after, "gain", "standard error", "gain / error"):
        table.add_column(heading, justify="right")
    for name, gain in gains.items():
        ratio = f"{gain.gain / gain.standard_error:+.1f}" if gain.standard_error else ""
        table.add_row(
            name, f"{gain.before:.2f}", f"{gain.after:.2f}", f"{gain.gain:+.3f}",
            f"{gain.standard_error:.3f}", ratio,
        )  # fmt: skip
    return table


def guard_table(state: GuardState) -> Table:
    """Lay out what the guard found, one held-out score a row.

    Args:
        state: After the run.

    Returns:
        A table for a console: means at the best check and at the latest, and their difference.
    """
    best, latest = state.best, state.latest
    table = Table("held-out score", "")
    for heading in (
        f"best check ({best.iteration})", f"latest ({latest.iteration})", "change",
        "standard error",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for name, (gain, error) in state.gains().items():
        trained = name in latest.trained
        then, now = ({**check.trained, **check.watched}[name] for check in (best, latest))
        table.add_row(
            escape(name), "trained" if trained else "watched", f"{sum(then) / len(then):.4f}",
            f"{sum(now) / len(now):.4f}", f"{gain:+.4f}", f"{error:.4f}",
        )  # fmt: skip
    return table


def guard_text(state: GuardState, *, returned: bool) -> str:
    """Say in a line what the guard did.

    Args:
        state: After the run.
        returned: Whether it goes back to its best check when it fires.

    Returns:
        A sentence.
    """
    best, latest = state.best.iteration, state.latest.iteration
    if not state.fired:
        return f"guard: let the run go on; its best check is that of iteration {best}"
    kept = f"put back the parameters of iteration {best}" if returned else "kept the parameters"
    return (
        f"guard: ended the run at iteration {latest}, where the trained reward had risen and what "
        f"is watched had fallen too far since iteration {best}; {kept}"
    )


def _header(columns: Sequence[tuple[str, tuple[str, ...], str]]) -> str:
    return f"{'done':>{_WIDTH}}" + "".join(f"  {name:>{_WIDTH}}" for name, _, _ in columns)


def _value(metrics: Mapping[str, Any], names: Sequence[str], form: str) -> str:
    values = [metrics.get(name) for name in names]
    known = [value for value in values if value is not None]
    return format(sum(known) / len(known), form) if len(known) == len(names) else "-"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
