"""Scorers that others serve: what counts as an outage, and a wait that ends at a stop."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.reward.mixture import Scorer
from mvczigal_ref.shapes import Images

__all__ = ["Asked", "Waiting"]

_GLANCE_S: Final = 0.2
"""Between two looks at whether a stop was asked for [s]."""


class Waiting:
    """How a scorer that others serve is waited for.

    A run turns SIGTERM and Ctrl-C into a note to stop after the iteration in hand. An outage
    would keep that iteration in hand for as long as the wait lasts, so the wait ends there.

    Examples:
        >>> Waiting().sleep(0.0)
    """

    def __init__(self) -> None:
        self.stopped = False

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Hear SIGTERM and Ctrl-C while inside; whoever took note of them before still does.

        Nothing is changed where a signal would end the process or raise, nor outside the main
        thread, which alone hears signals.

        Yields:
            Nothing.
        """
        heard: dict[int, Any] = {}

        def hear(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            heard[number](number, frame)

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                handler = signal.getsignal(number)
                if callable(handler) and handler is not signal.default_int_handler:
                    heard[number] = handler
                    signal.signal(number, hear)
        try:
            yield
        finally:
            for which, handler in heard.items():
                signal.signal(which, handler)

    def sleep(self, seconds: float) -> None:
        """Wait, in any thread.

        Args:
            seconds: How long [s].

        Raises:
            ScorerUnavailableError: If a stop was asked for before or meanwhile.
        """
        end = time.monotonic() + seconds
        while True:
            if self.stopped:
                msg = "a stop was asked for while a scorer did not serve; resume once it does."
                raise ScorerUnavailableError(msg)
            rest = end - time.monotonic()
            if rest <= 0.0:
                return
            time.sleep(min(rest, _GLANCE_S))


class Asked:
    """A scorer that others serve: whatever keeps it from answering is an outage.

    Args:
        scorer: Asks them.
        faults: What it raises where they do not answer.
        waiting: How it waits for them.
        version: Of what answers, as far as it can be known here.
    """

    def __init__(
        self,
        scorer: Scorer,
        faults: tuple[type[Exception], ...],
        *,
        waiting: Waiting,
        version: str,
    ) -> None:
        self.scorer, self.faults, self.waiting, self.version = scorer, faults, waiting, version

    def __call__(self, images: Images, prompts: Sequence[str]) -> Any:  # noqa: ANN401 - either kind
        """Score as the scorer does.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt an object.

        Returns:
            What the scorer returns [reward units].

        Raises:
            ScorerUnavailableError: If it does not answer, or a stop was asked for meanwhile.
        """
        try:
            with self.waiting.hearing():
                return self.scorer(images, prompts)
        except self.faults as error:
            raise ScorerUnavailableError(f"the scorer does not serve: {error}") from error
