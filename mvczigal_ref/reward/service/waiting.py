"""Outages of served scorers, and a wait for them that ends when the run is stopped."""

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

_GLANCE_S: Final = 0.2  # between two checks for a stop


class Waiting:
    """Wait for a served scorer, which SIGTERM and Ctrl-C end.

    On these signals a run stops after the current iteration. In an outage, that iteration would
    last as long as the wait, so the wait ends at the signal.

    Examples:
        >>> Waiting().sleep(0.0)
    """

    def __init__(self) -> None:
        self.stopped = False

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Notice SIGTERM and Ctrl-C inside; the handlers that were set before are called too.

        Nothing changes where a signal would end the process or raise, or outside the main
        thread, the only one that gets signals.

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
            seconds: Length of the wait [s].

        Raises:
            ScorerUnavailableError: If a stop was asked for, before or during the wait.
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
    """A served scorer, whose failures to answer all count as an outage.

    Args:
        scorer: Scorer that asks the service.
        faults: Exceptions that it raises if the service does not answer.
        waiting: Wait for the service.
        version: Version of the scorer that the service runs, as far as it is visible here.
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
        """Call the scorer.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt per object.

        Returns:
            Rewards of the scorer [reward units].

        Raises:
            ScorerUnavailableError: If it does not answer, or a stop was asked for.
        """
        try:
            with self.waiting.hearing():
                return self.scorer(images, prompts)
        except self.faults as error:
            raise ScorerUnavailableError(f"the scorer does not serve: {error}") from error
