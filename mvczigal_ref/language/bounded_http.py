"""One HTTP request whose answer is bounded in time and in bytes, whatever the server does."""

import contextlib
import http.client
import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from mvczigal_ref.errors import quoted

__all__ = [
    "TRANSIENT",
    "Reply",
    "TryAgainError",
    "post",
    "printable",
    "read_bounded",
    "split_url",
]

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses after which another try may succeed."""


class TryAgainError(Exception):
    """One try failed, and another may succeed.

    Args:
        message: Cause of the failure.
        pause_s: Pause that the server asks for [s].
    """

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """Answer of a server."""

    status: int
    """HTTP status."""

    content: bytes
    """Body, cut one byte beyond the longest allowed one, so that a longer one is noticed."""

    retry_after_s: float
    """Pause that the server asks for [s]; 0 if it asks for none, or gives a date."""


def split_url(base_url: str, *, name: str = "base_url") -> SplitResult:
    """Split a base URL into its parts, or refuse it.

    Args:
        base_url: URL with scheme and host; port and path are optional.
        name: Name of the argument, for the message.

    Returns:
        Parts of the URL.

    Raises:
        ValueError: If it is not such a URL, or holds a password, query or fragment.

    Examples:
        >>> split_url("http://127.0.0.1:8000/v1").port
        8000
    """
    try:
        parts = urlsplit(base_url)
        fits = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    # A password would end up in messages and saved settings; these messages quote none either.
    if not fits or "@" in parts.netloc or any(mark in base_url for mark in "?#"):
        msg = (
            f"`{name}` must hold a host, a port if any, no password and no query; got another form."
        )
        raise ValueError(msg)
    plain = base_url.isascii() and base_url.isprintable() and " " not in base_url
    if parts.scheme not in ("http", "https") or not plain:
        msg = f"`{name}` must be like http://127.0.0.1:8000/v1; got {quoted(base_url)}."
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
        headers: Headers besides the content's type and length.
        timeout_s: Longest time from connecting to the last byte [s]; positive.
        max_bytes: Longest body [bytes]; the rest of a longer one is left unread.

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
        # The socket's own limit holds for one read; a server that sends single bytes outlives it.
        with _deadline(connection.sock, max(end - time.monotonic(), 0.0), late):
            connection.request("POST", parts.path.rstrip("/") + path, body, sent)
            response = connection.getresponse()
            content = read_bounded(response, max_bytes + 1)
    except TimeoutError as error:
        msg = f"no answer in {timeout_s:g} s"
        raise TryAgainError(msg) from error
    except (OSError, http.client.HTTPException) as error:
        name = f"{type(error).__name__}: {printable(str(error)[:200])}"
        raise TryAgainError(f"no answer in {timeout_s:g} s" if late.is_set() else name) from error
    finally:
        connection.close()
    if late.is_set():
        # A socket that was shut down reads like an end.
        msg = f"no whole answer in {timeout_s:g} s"
        raise TryAgainError(msg)
    pause = _seconds(response.getheader("Retry-After"))
    return Reply(status=response.status, content=content, retry_after_s=pause)


def read_bounded(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Read a body up to a length, whatever length the server announces.

    One `read` of a body in chunks would follow a chunk of size -1 to the end of the connection.

    Args:
        response: Response whose body is not read yet.
        max_bytes: Longest body [bytes].

    Returns:
        The body, or its first ``max_bytes`` bytes.
    """
    body = bytearray()
    while len(body) < max_bytes and (part := response.read1(max_bytes - len(body))):
        body += part
    return bytes(body[:max_bytes])


def printable(text: str) -> str:
    r"""Replace the characters that a terminal would obey instead of showing.

    Args:
        text: Text from elsewhere.

    Returns:
        Text of the same length on one line.

    Examples:
        >>> printable("\x1b[31mred\n")
        ' [31mred '
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


@contextlib.contextmanager
def _deadline(sock: socket.socket, seconds: float, late: threading.Event) -> Iterator[None]:
    """Shut a socket down after some seconds, so that a blocked read returns."""

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
    """Read the pause that a server asks for [s]."""
    try:
        value = float(header or 0.0)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
