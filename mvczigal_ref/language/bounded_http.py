"""One HTTP request whose answer is bounded: in time, whatever the server does, and in bytes."""

import contextlib
import http.client
import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

__all__ = ["TRANSIENT", "Reply", "TryAgainError", "post", "split_url"]

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that another try may mend."""


class TryAgainError(Exception):
    """One try failed in a way that another may not.

    Args:
        message: What happened.
        pause_s: How long the server asks to wait [s].
    """

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a server sent back."""

    status: int
    """HTTP status."""

    content: bytes
    """The body; as long as allowed and one byte more if there was more."""

    retry_after_s: float
    """How long the server asks to wait [s]; 0 if it does not say, or says it as a date."""


def split_url(base_url: str) -> SplitResult:
    """Take a base URL apart, or say what is wrong with it.

    Args:
        base_url: With scheme and host; port and path are optional.

    Returns:
        Its parts.

    Raises:
        ValueError: If it is no such URL, or holds a password, query or fragment.

    Examples:
        >>> split_url("http://127.0.0.1:8000/v1").port
        8000
    """
    try:
        parts = urlsplit(base_url)
        fits = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    # A password would end up in messages and saved settings, so it is not quoted either.
    if not fits or "@" in parts.netloc:
        msg = "`base_url` must hold a host, a port if any, and no password; got another form."
        raise ValueError(msg)
    plain = base_url.isascii() and base_url.isprintable() and " " not in base_url
    if parts.scheme not in ("http", "https") or parts.query or parts.fragment or not plain:
        msg = f"`base_url` must be like http://127.0.0.1:8000/v1; got {base_url!r}."
        raise ValueError(msg)
    return parts


def post(
    base_url: str,
    path: str,
    body: bytes,
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    max_bytes: int,
) -> Reply:
    """Send one request on a connection of its own; no proxy is used, no redirect followed.

    Args:
        base_url: Scheme, host, port and the start of the path.
        path: Rest of the path, with its leading slash.
        body: JSON.
        headers: Besides the content's type and length.
        timeout_s: From connecting to the last byte [s]; positive.
        max_bytes: Of the body; what is longer is left unread.

    Returns:
        The reply, whatever its status.

    Raises:
        TryAgainError: If there was no reply in time, or the connection failed.
    """
    parts = split_url(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    sent = {"Content-Type": "application/json", "Accept-Encoding": "identity", **headers}
    late = threading.Event()
    end = time.monotonic() + timeout_s
    try:
        connection.connect()
        # The socket's own limit holds for one read; a server that drips bytes outlives it.
        with _deadline(connection.sock, max(end - time.monotonic(), 0.0), late):
            connection.request("POST", parts.path.rstrip("/") + path, body, sent)
            response = connection.getresponse()
            content = response.read(max_bytes + 1)
    except TimeoutError as error:
        msg = f"no answer in {timeout_s:g} s"
        raise TryAgainError(msg) from error
    except (OSError, http.client.HTTPException) as error:
        name = f"{type(error).__name__}: {str(error)[:200]}"
        raise TryAgainError(f"no answer in {timeout_s:g} s" if late.is_set() else name) from error
    finally:
        connection.close()
    if late.is_set():
        # A socket that was shut down reads like an end.
        msg = f"no whole answer in {timeout_s:g} s"
        raise TryAgainError(msg)
    pause = _seconds(response.getheader("Retry-After"))
    return Reply(status=response.status, content=content, retry_after_s=pause)


@contextlib.contextmanager
def _deadline(sock: socket.socket, seconds: float, late: threading.Event) -> Iterator[None]:
    """Shut a socket down when its time is over, so that a blocked read returns."""

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _seconds(header: str | None) -> float:
    """Read how long a server asks to wait."""
    try:
        value = float(header or 0.0)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
