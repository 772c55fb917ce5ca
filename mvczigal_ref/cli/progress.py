"""Progress of a long step: a bar where someone watches, a plain line now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mvczigal_ref.cli.output import say
from mvczigal_ref.evaluation.durations import duration

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PLAIN_EVERY", "SLOW", "Steps", "over_seeds", "saying"]

PLAIN_EVERY = 15.0
"""Time between plain lines [s]."""

SLOW = 1.0
"""Time that a step takes before a line names it [s]; what is refused at once is said alone."""


@contextmanager
def saying(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Name a step on standard error, once, if it takes more than a second.

    Args:
        text: Line that names the step.
        quiet: Whether to say nothing.

    Yields:
        Nothing.

    Examples:
        >>> with saying("loading pickscore"):
        ...     pass
    """
    timer = threading.Timer(SLOW, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if not quiet:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Steps:
    """Progress over a known number of steps.

    Args:
        console: Place for it; rich knows whether someone is watching. A silent one shows nothing.
        text: Name of the long step.
        total: Steps in all.
        done: Steps that were done before.
        clock: Seconds now.
    """

    def __init__(
        self,
        console: Console,
        text: str,
        total: int | float,
        *,
        done: int | float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._text, self._clock = console, text, clock
        self._total, self._done, self._first = total, done, done
        self._began = self._spoken = clock()
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            TaskProgressColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(
            *columns, console=console, disable=not console.is_terminal or console.quiet,
            transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> "Steps":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, count: int | float = 1) -> None:
        """Note that steps are done.

        Args:
            count: Number of them.
        """
        self.reach(self._done + count)

    def reach(self, done: int | float) -> None:
        """Note how many steps are done in all.

        Args:
            done: Number of them, those done before included.
        """
        self._done = done
        self._bar.update(self._task, completed=done)
        now = self._clock()
        if self._console.is_terminal or now - self._spoken < PLAIN_EVERY:
            return
        self._spoken = now
        share = self._done / self._total if self._total else 1.0
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        left = f", {duration((self._total - self._done) / rate)} left" if rate > 0 else ""
        say(self._console, f"{self._text}: {share:.0%}{left}")


def over_seeds(
    measure: Callable[..., Mapping[str, "Tensor"]], seeds: Sequence[int], steps: Steps
) -> dict[str, "Tensor"]:
    """Measure once per seed, and join the scores.

    Args:
        measure: Gives a table of scores by name, a row per noise, for ``seed``; it calls
            ``progress`` with the parts that are done and all of them.
        seeds: Seeds of the noises, at least one.
        steps: Progress, one step per seed.

    Returns:
        A table by name, a row per seed and noise.
    """
    import torch

    tables = [
        measure(seed=seed, progress=lambda done, parts: steps.advance(1 / parts)) for seed in seeds
    ]
    return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
