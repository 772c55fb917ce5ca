"""HTTP exchanges with a scorer's service, one at a time, and their repetition after failures."""

import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.language.bounded_http import printable, read_bounded, split_url
from mvczigal_ref.reward.service.terms import RefusedError
from mvczigal_ref.reward.service.wire import CONTENT_TYPE, parse_object

__all__ = ["BadAnswerError", "Connection", "Patience"]

_LOG: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_ANSWER_BYTES: Final = 2**20
_WORDS: Final = 400  # most characters of a service's answer in a message
# Statuses of a server, or of a proxy before it, that may answer later.
_LATER: Final = (408, 429, 502, 503, 504)


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

    Proxies named in the environment are not used, and redirections are not followed.

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
        parts = split_url(url, name="url")
        self.url, self._host, self._port = url, parts.hostname or "", parts.port
        self._path, self._secure = parts.path.rstrip("/"), parts.scheme == "https"
        self._patience, self._clock, self._sleep = patience, clock, sleep

    def get(self, path: str) -> dict[str, Any]:
        """Ask once.

        Args:
            path: Path such as ``/version``.

        Returns:
            The answer.

        Raises:
            OSError: If there is no answer.
            BadAnswerError: If it is a wrong one.
            RefusedError: If asking again would not help.
        """
        return self._exchange("GET", path, None)

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        """Send a body once.

        Args:
            path: Path such as ``/score``.
            body: Body of the request.

        Returns:
            The answer.

        Raises:
            OSError: If there is no answer.
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
        patience, pause = self._patience, self._patience.first_pause_s
        bad, began = 0, None
        while True:
            try:
                result = attempt()
            except (OSError, http.client.HTTPException, BadAnswerError) as error:
                cause: Exception = error
            else:
                if began is not None:
                    waited = self._clock() - began
                    _LOG.warning("the scorer at %s is back after %.1f s", self.url, waited)
                return result
            now = self._clock()
            reason = printable(f"{type(cause).__name__}: {cause}"[:_WORDS])
            if began is None:
                began = now
                _LOG.warning(
                    "the scorer at %s does not serve (%s); trying again for %.0f s",
                    self.url, reason, patience.wait_s,
                )  # fmt: skip
            bad += isinstance(cause, BadAnswerError)
            rest = patience.wait_s - (now - began)
            if bad >= patience.bad_answers or rest <= 0:
                msg = (
                    f"the scorer at {self.url} gave no usable answer for {now - began:.1f} s "
                    f"({bad} wrong ones); the last time: {reason}. Look at its log, start it "
                    "again, and resume."
                )
                raise ScorerUnavailableError(msg) from cause
            self._sleep(min(pause, rest))
            pause = min(2 * pause, patience.longest_pause_s)

    def _exchange(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._patience.timeout_s)
        try:
            connection.connect()
            # A socket's own time-out begins anew with every byte.
            late = threading.Event()
            watch = threading.Timer(self._patience.timeout_s, _hang_up, (connection.sock, late))
            watch.daemon = True
            watch.start()
            try:
                status, raw = _send(connection, method, self._path + path, body)
            except (OSError, http.client.HTTPException):
                if late.is_set():
                    raise TimeoutError("timed out") from None
                raise
            finally:
                watch.cancel()
        finally:
            connection.close()
        if late.is_set():
            raise TimeoutError("timed out")
        return _checked(status, raw)


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
) -> tuple[int, bytes]:
    # A service that refuses a body answers before it has read it.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, {"Content-Type": CONTENT_TYPE})
    with connection.getresponse() as response:
        return response.status, read_bounded(response, _ANSWER_BYTES + 1)


def _hang_up(connection: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _checked(status: int, raw: bytes) -> dict[str, Any]:
    """Return a good answer; raise for one to wait after, a final refusal, and a wrong answer."""
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
        raise ConnectionError(f"status {status}: {words}")
    if 400 <= status < 500:
        raise RefusedError(f"the scorer's service refused ({status}): {words}", status=status)
    if status != 200:
        raise BadAnswerError(f"status {status}: {words}")
    if fault:
        raise BadAnswerError(f"the answer cannot be read: {fault}")
    return answer
