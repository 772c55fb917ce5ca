"""Count of what was tried and what held, and the commands that are tried."""

import contextlib
import io
import json
import math
import random
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from mvczigal_ref.cli import main

__all__ = ["Answer", "HangError", "Tally", "command", "require_line"]

LONGEST = 1500  # characters of a refusal


class HangError(Exception):
    """An attempt took longer than its limit."""


@dataclass
class Tally:
    """Attempts of an area."""

    area: str
    limit: float = 120.0
    """Longest an attempt may take [s]."""
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    """Other counts, such as how many were refused."""
    seed: int = 0
    """Seed of the draws."""
    until: float = math.inf
    """Time after which :meth:`places` begins no other attempt, on the monotonic clock [s]."""

    def note(self, what: str) -> None:
        """Count something."""
        self.notes[what] = self.notes.get(what, 0) + 1

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Try something that must end in time and without an exception."""
        self.tried += 1

        def late(*_: object) -> None:
            raise HangError(f"not done after {self.limit} s")

        alarmed = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGALRM, late) if alarmed else None
        if alarmed:
            signal.setitimer(signal.ITIMER_REAL, self.limit)
        try:
            yield
        except (Exception, SystemExit) as error:  # whatever there is to find
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:400]
            self.failures.append(
                f"{name}: {type(error).__name__}: {text} ({Path(where.filename).name}:"
                f"{where.lineno})"
            )
        finally:
            if alarmed:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

    def places(self, count: int) -> Iterator[tuple[int, random.Random]]:
        """Number the attempts that are still to be made, each with draws of its own."""
        while self.tried < count and time.monotonic() < self.until:
            place = self.tried
            yield place, random.Random(f"{self.area} {self.seed} {place}")
            assert self.tried == place + 1, "an attempt at each place"

    def keep(self, path: Path) -> None:
        """Write the counts, from which :meth:`resumed` goes on."""
        path.write_text(json.dumps(asdict(self) | {"until": None}), "utf-8")

    @classmethod
    def resumed(cls, path: Path, *, until: float = math.inf) -> Self:
        """Read the counts of an area that was tried in part."""
        return cls(**json.loads(path.read_text("utf-8")) | {"until": until})

    def row(self, *, scale: float) -> str:
        """Write a line of the table."""
        notes = ", ".join(f"{count} {what}" for what, count in sorted(self.notes.items()))
        held = self.tried - len(self.failures)
        counts = (f"{scale:g}", self.seed, self.tried, held, len(self.failures))
        return f"| {self.area} | {' | '.join(map(str, counts))} | {notes} |"


@dataclass(frozen=True)
class Answer:
    """End of a command."""

    status: int
    output: str
    errors: str


def command(*words: object) -> Answer:
    """Run a command in this process; an exception that is no exit comes through."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 2
    return Answer(status, output.getvalue(), errors.getvalue())


def require_line(text: str, *names: str) -> None:
    """Fail unless a refusal is one line of moderate length that holds one of these names."""
    lines = [line for line in text.strip().splitlines() if line]
    assert len(lines) == 1, f"{len(lines)} lines: {text[:300]!r}"
    assert len(lines[0]) <= LONGEST, f"{len(lines[0])} characters: {text[:200]!r}"
    assert lines[0].isprintable(), f"not printable: {lines[0][:200]!r}"
    assert not names or any(name in lines[0] for name in names), f"none of {names}: {lines[0]}"
