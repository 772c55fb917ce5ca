"""HTTP exchanges with a scorer's service, one at a time, and their repetition after failures."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from mvczigal_ref.errors import ScorerUnavailableError, printable
from mvczigal_ref.language.bounded_http import (
    TRANSIENT,
    Reply,
    TryAgainError,
    checked_url,
    exchange,
)
from mvczigal_ref.reward.service.terms import RefusedError
from mvczigal_ref.reward.service.wire import CONTENT_TYPE, parse_object

__all__ = ["BadAnswerError", "Connection", "Patience"]

_LOG: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_ANSWER_BYTES: Final = 2**20
_WORDS: Final = 400  # most characters of a service's answer in a message
# After any other error of its own, such as 500, the service may be broken for good.
_LATER: Final = TRANSIENT - {500}


class BadAnswerError(Exception):
    """A wrong answer of a service; another try may get a right one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """Bounds on the wait for a remote scorer.

    Raises:
        ValueError: If a number is out of range.
    """

    timeout_s: float = 120.0
    """Longest duration of one exchange, from connecting to the last byte [s]; positive."""

    wait_s: float = 600.0
    """Time after a call's first failure in which further exchanges may begin [s]; 0 or more."""

    bad_answers: int = 4
    """Wrong answers after which a call gives up [1]; at least 1."""

    first_pause_s: float = 0.5
    """Pause before the second exchange, doubled for each further one [s]; positive."""

    longest_pause_s: float = 30.0
    """Longest pause between two exchanges [s]; positive."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, zero = getattr(self, field.name), field.name == "wait_s"
            # Written so that NaN is refused.
            if not (value > 0 or (zero and value == 0)):
                rule = "0 or more" if zero else "positive"
                msg = f"`{field.name}` must be {rule}; got {value!r}."
                raise ValueError(msg)


class Connection:
    """A service's address; every exchange opens a connection of its own.

    Proxies named in the environment are used, but not on the way to this machine itself.
    Redirections are not followed.

    Args:
        url: Address such as ``http://127.0.0.1:8763``.
        patience: Bounds on the wait.
        clock: Returns the time [s].
        sleep: Waits for some seconds.

    Raises:
        ValueError: If it is no URL of HTTP, or holds more than an address and a path.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self._base = url, checked_url(url, name="url")
        self._patience, self._clock, self._sleep = patience, clock, sleep

    def get(self, path: str) -> dict[str, Any]:
        """Ask once.

        Args:
            path: Path such as ``/version``.

        Returns:
            The answer.

        Raises:
            TryAgainError: If there is no answer, or it is to be asked for later.
            BadAnswerError: If it is a wrong one.
            RefusedError: If asking again would not help.
        """
        return self._exchange("GET", path, b"")

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        """Send a body once.

        Args:
            path: Path such as ``/score``.
            body: Body of the request.

        Returns:
            The answer.

        Raises:
            TryAgainError: If there is no answer, or it is to be asked for later.
            BadAnswerError: If it is a wrong one.
            RefusedError: If sending again would not help.
        """
        return self._exchange("POST", path, body)

    def persist(self, attempt: Callable[[], _T]) -> _T:
        """Repeat an attempt until it succeeds or patience ends; an outage is logged once.

        Args:
            attempt: Makes one exchange or several, from the start.

        Returns:
            The result of the attempt.

        Raises:
            ScorerUnavailableError: If patience ends.
            RefusedError: If an attempt is refused; there is no second one.
        """
        outage = _Outage(self.url, self._patience, self._clock)
        tries = Retrying(
            retry=retry_if_exception_type((TryAgainError, BadAnswerError)),
            after=outage.note,
            wait=outage.pause,
            stop=outage.is_over,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            result = tries(attempt)
        except (TryAgainError, BadAnswerError) as error:
            raise ScorerUnavailableError(outage.report()) from error
        outage.end()
        return result

    def _exchange(self, method: Literal["GET", "POST"], path: str, body: bytes) -> dict[str, Any]:
        reply = exchange(
            method,
            self._base + path,
            body,
            headers={"Content-Type": CONTENT_TYPE},
            timeout_s=self._patience.timeout_s,
            max_bytes=_ANSWER_BYTES,
        )
        return _checked(reply)


class _Outage:
    """Failures of one call, from the first on: their number, duration, and the pauses after them.

    Args:
        url: Address of the service.
        patience: Bounds on the wait.
        clock: Returns the time [s].
    """

    def __init__(self, url: str, patience: Patience, clock: Callable[[], float]) -> None:
        self._url, self._patience, self._clock = url, patience, clock
        self._began: float | None = None
        self._bad, self._lasted, self._reason = 0, 0.0, ""

    def note(self, state: RetryCallState) -> None:
        """Count a failure; log the first."""
        error = state.outcome.exception() if state.outcome else None
        self._reason = printable(str(error)[:_WORDS])
        self._bad += isinstance(error, BadAnswerError)
        if self._began is None:
            self._began = self._clock()
            _LOG.warning(
                "the scorer at %s does not serve (%s); trying again for %.0f s",
                self._url, self._reason, self._patience.wait_s,
            )  # fmt: skip
        self._lasted = self._clock() - self._began

    def pause(self, state: RetryCallState) -> float:
        """Double the pause from try to try [s], up to a bound; the service may ask for more."""
        error = state.outcome.exception() if state.outcome else None
        longer = error.pause_s if isinstance(error, TryAgainError) else 0.0
        pause = max(longer, wait_exponential(self._patience.first_pause_s)(state))
        return min(pause, self._patience.longest_pause_s, self._rest)

    def is_over(self, state: RetryCallState) -> bool:
        """Return whether patience has ended."""
        return self._bad >= self._patience.bad_answers or self._rest <= 0.0

    def report(self) -> str:
        """Word the error of a service that did not come back."""
        return (
            f"the scorer at {self._url} gave no usable answer for {self._lasted:.1f} s "
            f"({self._bad} wrong ones); the last time: {self._reason}. Look at its log, start it "
            "again, and resume."
        )

    def end(self) -> None:
        """Log the end of the failures, if there were any."""
        if self._began is not None:
            waited = self._clock() - self._began
            _LOG.warning("the scorer at %s is back after %.1f s", self._url, waited)

    @property
    def _rest(self) -> float:
        return self._patience.wait_s - self._lasted


def _checked(reply: Reply) -> dict[str, Any]:
    """Return a good answer; raise for one to wait after, a final refusal, and a wrong answer."""
    status, raw = reply.status, reply.content
    try:
        if len(raw) > _ANSWER_BYTES:
            msg = f"it is longer than {_ANSWER_BYTES} bytes"
            raise ValueError(msg)  # noqa: TRY301
        answer = parse_object(raw)
    except ValueError as error:
        answer, fault = {}, str(error)
    else:
        fault = ""
    words = printable(str(answer.get("error", "no reason"))[:_WORDS])
    if status in _LATER:
        raise TryAgainError(f"status {status}: {words}", reply.retry_after_s)
    if 400 <= status < 500:
        raise RefusedError(f"the scorer's service refused ({status}): {words}", status=status)
    if status != 200:
        raise BadAnswerError(f"status {status}: {words}")
    if fault:
        raise BadAnswerError(f"the answer cannot be read: {fault}")
    return answer
