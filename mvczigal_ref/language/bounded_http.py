"""One HTTP exchange whose answer is bounded in time and in bytes, whatever the server does."""

import contextlib
import ipaddress
import math
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2

from mvczigal_ref.errors import ConfigError, printable, quoted

__all__ = [
    "TRANSIENT",
    "Reply",
    "TryAgainError",
    "checked_url",
    "exchange",
    "is_loopback",
]

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses after which another try may succeed."""


class TryAgainError(ConnectionError):
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


def checked_url(base_url: str, *, name: str = "base_url") -> str:
    """Refuse a base URL that requests cannot be sent to, or that would give a secret away.

    Args:
        base_url: URL with scheme and host; port and path are optional.
        name: Name of the argument, for the message.

    Returns:
        The URL without a slash at its end.

    Raises:
        ValueError: If it is not such a URL, or holds a password, query or fragment.

    Examples:
        >>> checked_url("http://127.0.0.1:8000/v1/")
        'http://127.0.0.1:8000/v1'
    """
    try:
        parts = urlsplit(base_url)
        fits = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        httpx2.URL(base_url)
    except (ValueError, httpx2.InvalidURL):
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
    return base_url.rstrip("/")


def exchange(
    method: Literal["GET", "POST"],
    url: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    max_bytes: int,
) -> Reply:
    """Send one request on a connection of its own, and read its answer.

    No redirect is followed, so that headers go to the named host alone. Proxies that the
    environment names are used, but not on the way to this machine itself.

    Args:
        method: HTTP method.
        url: Address, from :func:`checked_url`, and path.
        body: Body of the request.
        headers: Headers besides the content's length.
        timeout_s: Longest time from connecting to the last byte [s]; positive.
        max_bytes: Longest body of the answer [bytes]; the rest of a longer one is left unread.

    Returns:
        The reply, whatever its status.

    Raises:
        TryAgainError: If there was no reply in time, or the connection failed.
        ConfigError: If the environment names a proxy or certificates that cannot be used, or the
            server's certificate is not trusted.
    """
    late = f"no whole answer in {timeout_s:g} s"
    # Nothing is unpacked: a small body could become a huge one.
    sent = {"Accept-Encoding": "identity", "User-Agent": "mvczigal", **headers}
    try:
        with (
            _client(url, timeout_s) as client,
            _Deadline(timeout_s) as deadline,
            client.stream(
                method, url, content=body, headers=sent, extensions={"trace": deadline.trace}
            ) as response,
        ):
            content = _start(response.iter_raw(), max_bytes + 1)
            pause = _seconds(response.headers.get("Retry-After"))
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise TryAgainError("a compressed answer, which was not asked for")
    except httpx2.TimeoutException:
        raise TryAgainError(late) from None
    except httpx2.TransportError as error:
        words = str(error)
        if isinstance(error, httpx2.ProtocolError):  # after a colon it quotes the server
            words = words.partition(":")[0]
        words = f"{type(error).__name__}: {printable(words[:200])}"
        if "CERTIFICATE_VERIFY_FAILED" in words:
            msg = (
                f"the server of {url} must have a certificate that is trusted here; got {words}. "
                "Name the authority's certificate in SSL_CERT_FILE."
            )
            raise ConfigError(msg) from None
        raise TryAgainError(late if deadline.passed else words) from None
    if deadline.passed:  # a connection that was hung up reads like an end
        raise TryAgainError(late)
    return Reply(status=response.status_code, content=content, retry_after_s=pause)


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine alone.

    Args:
        host: Name or address.

    Returns:
        Whether no other machine reaches it.

    Examples:
        >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
        (True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Deadline:
    """Moment at which a connection is hung up, so that a blocked read or write returns.

    The library's own time limits are on one read each; a server that sends single bytes outlives
    them.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        for connection in self._sockets:
            connection.close()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take a second handle of each new connection; TLS takes the first one away."""
        if event.endswith("connect_tcp.complete"):
            self._sockets.append(info["return_value"].get_extra_info("socket").dup())
            if self.passed:
                self._pass()

    def _pass(self) -> None:
        self.passed = True
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _client(url: str, timeout_s: float) -> httpx2.Client:
    """Make the client of one request, which keeps no cookie and no connection."""
    try:
        return httpx2.Client(
            timeout=timeout_s, verify=_certificates(), follow_redirects=False,
            trust_env=not is_loopback(urlsplit(url).hostname or ""),  # which no proxy would find
        )  # fmt: skip
    except (ValueError, ImportError, OSError, httpx2.InvalidURL) as error:
        # The cause may quote the proxy's password.
        msg = (
            "the environment must name proxies and certificates that can be used, in HTTP_PROXY, "
            f"HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE; got a {type(error).__name__}."
        )
        raise ConfigError(msg) from None


@cache
def _certificates() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _start(parts: Iterator[bytes], max_bytes: int) -> bytes:
    """Read a body up to a length, whatever length the server announces."""
    body = bytearray()
    for part in parts:
        body += part
        if len(body) >= max_bytes:
            break
    return bytes(body[:max_bytes])


def _seconds(header: str | None) -> float:
    """Read the pause that a server asks for [s]."""
    try:
        value = float(header or 0.0)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
