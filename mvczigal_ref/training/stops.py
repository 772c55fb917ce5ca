"""Stops that are asked for by signals: heard in place of an end without tidying."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from mvczigal_ref.files import to_nothing

__all__ = ["handling", "stop_on_terminate"]


@contextmanager
def handling(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handle signals for a while; outside the main thread they stay the caller's.

    Args:
        numbers: Signals.
        handler: Hears of each, with its number.

    Yields:
        Nothing.

    Examples:
        >>> heard = []
        >>> with handling([signal.SIGTERM], lambda number, _: heard.append(number)):
        ...     signal.raise_signal(signal.SIGTERM)
        >>> heard == [signal.SIGTERM], signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        (True, True)
    """
    old = {}
    try:
        with suppress(ValueError):  # not the main thread
            for number in numbers:
                old[number] = signal.signal(number, handler)
        yield
    finally:
        for number, earlier in old.items():
            signal.signal(number, earlier)


@contextmanager
def stop_on_terminate() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, SIGHUP and the first Ctrl-C into a checkpoint and a clean stop.

    A SIGHUP that is ignored, as under nohup, stays so; Windows has none.
    """
    hangup = getattr(signal, "SIGHUP", None)
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == hangup:
            to_nothing(*terminals)  # an error of a terminal that has gone would end the run unsaved
        asked = True

    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    stops = [signal.SIGTERM, signal.SIGINT]
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        stops.append(hangup)
    with handling(stops, ask):
        yield lambda: asked
