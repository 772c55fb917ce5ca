"""Progress, tables of scores, and plain lines where no one watches."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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

from mvczigal_ref.cli.output import say
from mvczigal_ref.cli.patient_console import PatientConsole
from mvczigal_ref.cli.progress import PLAIN_EVERY
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.evaluation.digits import decimals_of, decimals_of_size, gain_text, with_error
from mvczigal_ref.evaluation.durations import duration
from mvczigal_ref.evaluation.guard import GuardState
from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.report.run_content import informative_metrics
from mvczigal_ref.training.events import Events

__all__ = ["TrainingDisplay", "gain_table", "guard_table", "guard_text", "score_heading"]

_TRAINING = "training (Ctrl-C saves and stops)"


class _Column(NamedTuple):
    """One number of each iteration."""

    header: str
    """Name of the column."""

    metrics: tuple[str, ...]
    """Metric, or several whose mean is shown."""

    form: str
    """Format; `*` stands for the decimals of a reward, which the first iteration tells."""

    width: int = 6
    """Least width [characters]."""


_COLUMNS = (
    _Column("per view", ("per_view_reward/zigzag", "per_view_reward/standard"), ".*f"),
    _Column("gap", ("per_view_reward/gap",), "+.*f"),
    _Column("   joint", ("joint_view_reward/zigzag", "joint_view_reward/standard"), ".*f"),
    _Column("gap", ("joint_view_reward/gap",), "+.*f"),
    _Column("threshold", ("threshold",), ".*f"),
    _Column("multiplier", ("multiplier",), ".3f"),
    _Column("grad norm", ("grad_norm",), ".3g"),
)
_GROUP_COLUMNS = (
    _Column("per view", ("per_view_reward/mean",), ".*f"),
    _Column("spread", ("per_view_reward/group_std",), ".*f"),
    _Column("   joint", ("joint_view_reward/mean",), ".*f"),
    _Column("multiplier", ("multiplier",), ".3f"),
    _Column("drift", ("drift/median",), ".3g"),
    _Column("clipped", ("clip_fraction",), ".3f"),
    _Column("grad norm", ("grad_norm",), ".3g"),
)
_WIDTH = 6


class TrainingDisplay(Events):
    """One line per iteration over a progress bar; in a file or a pipe, a plain line now and then.

    Where a patient console has lost its reader, the run is asked to save and stop.

    Args:
        console: Console to write to; rich knows whether someone is watching.
        config: The run; columns that would say nothing of it are left out. None shows all.
    """

    def __init__(self, console: Console, config: TrainConfig | None = None) -> None:
        self._console, self._config = console, config
        self._live = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=4,
            disable=not self._live,
            transient=True,
        )
        self._task: TaskID | None = None
        self._stage: TaskID | None = None
        self._stage_text, self._stage_spoken = "", 0.0
        self._spoken, self._began = -PLAIN_EVERY, (0, 0.0)
        self._columns: Sequence[_Column] = _COLUMNS

    def __enter__(self) -> "TrainingDisplay":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        """Show that something long begins."""
        self._stage_text, self._stage_spoken = text, time.monotonic()
        if not self._live:
            self._print(text)
            return
        self._end_stage()
        self._stage = self._progress.add_task(text, total=None, status="")

    def progress(self, done: int, total: int) -> None:
        """Show how far it is; between iterations there is no stage, and the bar is theirs."""
        if self._stage is not None:
            status = f"{done}/{total}"
            self._progress.update(self._stage, completed=done, total=total, status=status)
        now = time.monotonic()
        if not self._live and now - self._stage_spoken >= PLAIN_EVERY:
            self._stage_spoken = now
            self._print(f"{self._stage_text}: {done} of {total}")

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
            self._task = self._progress.add_task(_TRAINING, total=total, status="")
            columns = _GROUP_COLUMNS if "per_view_reward/mean" in metrics else _COLUMNS
            self._columns = _with_decimals(filter(self._tells, columns), metrics)
            self._print(_line("done", [column.header for column in self._columns], self._columns))
        left = ""
        done, began = self._began
        if done < finished < total:
            left = duration((now - began) / (finished - done) * (total - finished)) + " left"
        if self._task is not None:
            status = f"{finished}/{total}  {left}"
            self._progress.update(self._task, completed=finished, status=status)
        due = now - self._spoken >= PLAIN_EVERY or finished == total
        if self._live or first or due:
            self._spoken = now
            texts = [_text(metrics, column) for column in self._columns]
            line = _line(str(finished), texts, self._columns)
            self._print(line if self._live or not left else f"{line}  {left}")

    def _tells(self, column: _Column) -> bool:
        names = column.metrics
        return self._config is None or informative_metrics(self._config, names) == {*names}

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._progress.remove_task(self._stage)
            self._stage = None

    def _print(self, text: str) -> None:
        say(self._console, text)
        if isinstance(self._console, PatientConsole) and self._console.reader_gone:
            self.stop()  # as where a terminal hangs up


def score_heading(unit: str) -> str:
    """Head a column of scores; rich would read plain brackets as its own markup.

    Args:
        unit: Unit of the scores; may be empty.

    Returns:
        The heading.
    """
    return escape("score" + (f" [{unit}]" if unit else ""))


def gain_table(gains: Mapping[str, PairedGain], *, unit: str, before: str, after: str) -> Table:
    """Lay out paired gains, one row per score, with the digits that the standard error allows.

    Args:
        gains: Gains by name of the score.
        unit: Unit of the scores; may be empty.
        before: Heading of the first policy's scores.
        after: Heading of the second's.

    Returns:
        A table for a console.
    """
    table = Table(score_heading(unit))
    for heading in (before, after, "gain", "standard error", "gain / error"):
        table.add_column(heading, justify="right")
    for name, gain in gains.items():
        table.add_row(name, *gain_text(gain))
    return table


def guard_table(state: GuardState) -> Table:
    """Lay out the guard's checks, one row per held-out score.

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
        first, last = sum(then) / len(then), sum(now) / len(now)
        decimals = decimals_of(error, first, last)
        table.add_row(
            escape(name), "trained" if trained else "watched", f"{first:.{decimals}f}",
            f"{last:.{decimals}f}", *with_error(gain, error, decimals=decimals, sign=True),
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
    end = f"put back the parameters of iteration {best}" if returned else "kept the parameters"
    return (
        f"guard: ended the run at iteration {latest}, where the trained reward had risen and what "
        f"is watched had fallen too far since iteration {best}; {end}"
    )


def _with_decimals(columns: Iterable[_Column], metrics: Mapping[str, Any]) -> list[_Column]:
    """Give a reward's columns the decimals that its size needs, and room for them."""
    sizes: dict[str, list[float]] = {}
    for name, value in metrics.items():
        sizes.setdefault(_reward(name), []).append(value or 0.0)
    chosen = []
    for column in columns:
        if "*" in column.form:
            decimals = decimals_of_size(*sizes.get(_reward(column.metrics[0]), ()))
            form = column.form.replace("*", str(decimals))
            column = column._replace(form=form, width=column.width + decimals - 2)
        chosen.append(column)
    return chosen


def _reward(metric: str) -> str:
    """Name the reward that a metric is of; the threshold is one of the joint reward."""
    return "joint_view_reward" if metric == "threshold" else metric.partition("/")[0]


def _line(first: str, texts: Sequence[str], columns: Sequence[_Column]) -> str:
    return f"{first:>{_WIDTH}}" + "".join(
        f"  {text:>{max(len(column.header), column.width)}}"
        for text, column in zip(texts, columns, strict=True)
    )


def _text(metrics: Mapping[str, Any], column: _Column) -> str:
    values = [metrics[name] for name in column.metrics if metrics.get(name) is not None]
    if len(values) < len(column.metrics):
        return "-"
    return format(sum(values) / len(values), column.form)
