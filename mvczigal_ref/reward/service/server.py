"""Run any scorer as an HTTP service: `POST /score`, `GET /health`, `GET /version`."""

import io
import ipaddress
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import Any, Final
from urllib.parse import urlsplit

import torch
from torch import Tensor

from mvczigal_ref.reward.service.bounds import BoundedServer, Incoming, Memory, Places
from mvczigal_ref.reward.service.terms import Kind, Limits, RefusedError, ScorerInfo
from mvczigal_ref.reward.service.wire import (
    CONTENT_TYPE,
    encode_scores,
    from_pixels,
    parse_head,
)
from mvczigal_ref.shapes import Images

__all__ = ["Handler", "Scorer", "ScorerServer", "serve", "serving"]

Scorer = Callable[[Images, Sequence[str]], Tensor]
"""A per-view or a joint-view scorer."""


_LOG: Final = logging.getLogger(__name__)


_LAST_CALL_S: Final = 10.0  # most time that the end waits for the scorer


class ScorerServer(BoundedServer):
    """A service bound to its port; `serve_forever` answers.

    Args:
        scorer: Called for one request at a time, in threads, without gradients.
        info: Name, version and kind of the scorer.
        host: Address to bind.
        port: Port to bind; 0 for any free one.
        limits: Limits on requests.
        allow_remote: Whether other machines may reach the service. There is no password:
            whoever reaches the port can use it.

    Raises:
        ValueError: If other machines can reach the address and ``allow_remote`` is false.
        OSError: If the address cannot be bound.
    """

    allow_reuse_port = False  # two services behind one port would answer in turn
    request_queue_size = 32

    def __init__(
        self,
        scorer: Scorer,
        *,
        info: ScorerInfo,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        allow_remote: bool = False,
    ) -> None:
        if not (allow_remote or _is_loopback(host)):
            msg = (
                f"`host` must be of this machine alone, such as 127.0.0.1; got {host!r}. The "
                "service has no password: pass `allow_remote` if whoever reaches it may use it."
            )
            raise ValueError(msg)
        self.scorer, self.info, self.limits = scorer, info, limits or Limits()
        self.allow_remote = allow_remote
        self.turn = threading.Lock()
        self.places = Places(self.limits.requests)
        self.memory = Memory(self.limits.requests * self.limits.body_bytes)
        self.answered = 0
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Bind, without asking a name server what this machine is called."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    @property
    def url(self) -> str:
        """Address for clients."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Log the failure of a connection, and serve the others."""
        _LOG.info("connection of %s ended early", client_address, exc_info=True)


def serve(
    scorer: Scorer,
    *,
    name: str,
    version: str,
    kind: Kind,
    host: str = "127.0.0.1",
    port: int = 8763,
    limits: Limits | None = None,
    allow_remote: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a scorer until Ctrl-C.

    Args:
        scorer: Called for one request at a time.
        name: Name of the scorer in a configuration.
        version: Version that changes whenever scores may change; clients' caches depend on it.
        kind: Kind of the scorer: one number per view, or one per object.
        host: Address to bind.
        port: Port to bind; 0 for any free one.
        limits: Limits on requests.
        allow_remote: Whether other machines may reach the service; there is no password.
        say: Takes one line when the service begins, and one when it ends.

    Raises:
        ValueError: If other machines can reach ``host`` and ``allow_remote`` is false.
        OSError: If the address cannot be bound.
    """
    info = ScorerInfo(name=name, version=version, kind=kind)
    with ScorerServer(
        scorer, info=info, host=host, port=port, limits=limits, allow_remote=allow_remote
    ) as server:
        open_to = "" if _is_loopback(host) else "; OPEN TO OTHER MACHINES, without a password"
        try:
            say(f"serving {name} ({kind}, {version}) at {server.url}{open_to} (Ctrl-C stops)")
            server.serve_forever()
        except KeyboardInterrupt:
            # The end of the process during a scorer's work may crash it.
            server.turn.acquire(timeout=_LAST_CALL_S)
            say(f"stopped after {server.answered} answers")


@contextmanager
def serving(
    scorer: Scorer,
    *,
    info: ScorerInfo,
    port: int = 0,
    limits: Limits | None = None,
) -> Iterator[ScorerServer]:
    """Serve a scorer from a thread of this process, for this machine, inside a context.

    Args:
        scorer: Called for one request at a time.
        info: Name, version and kind of the scorer.
        port: Port to bind; 0 for any free one.
        limits: Limits on requests.

    Yields:
        The server; clients use its ``url``.

    Examples:
        >>> import torch
        >>> from mvczigal_ref.reward.service.client import RemotePerView
        >>> info = ScorerInfo(name="brightness", version="1", kind="per_view")
        >>> with serving(lambda images, prompts: images.mean((2, 3, 4)), info=info) as server:
        ...     RemotePerView(server.url)(torch.full((1, 2, 3, 4, 4), 0.5), ["grey"]).tolist()
        [[0.5, 0.5]]
    """
    with ScorerServer(scorer, info=info, port=port, limits=limits) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_HEAD: Final = 4  # bytes of the head's length


_NO_HOST: Final = "Host must name this machine, such as 127.0.0.1."


_PIECE: Final = 2**20  # bytes read at a time


_DRAIN_BYTES: Final = 2**26


_DRAIN_S: Final = 2.0


class Handler(BaseHTTPRequestHandler):
    """Handler of one connection, which carries one request."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mvczigal", ""
    server: "ScorerServer"

    def setup(self) -> None:
        """Bound the time in which the request, header and body together, must arrive."""
        super().setup()
        self.connection.settimeout(self.server.limits.read_s)
        deadline = time.monotonic() + self.server.limits.read_s
        self.rfile.close()
        self.rfile = io.BufferedReader(Incoming(self.connection, deadline))
        self._held = 0

    def do_GET(self) -> None:
        """Answer about the service's health, or its scorer and limits."""
        server = self.server
        if not self._is_addressed():
            self.send_error(421, _NO_HOST)
        elif self.path == "/health":
            self._answer(200, {"status": "ok", "answered": server.answered})
        elif self.path == "/version":
            self._answer(200, {**asdict(server.info), "limits": asdict(server.limits)})
        else:
            self.send_error(404, "there are /score, /health and /version.")

    def do_POST(self) -> None:
        """Score, or refuse with the reason."""
        content: Mapping[str, Any]
        try:
            status, content = 200, self._score()
        except RefusedError as error:
            status, content = error.status, {"error": str(error)}
        except OSError:
            raise  # of the connection: there is no one to answer
        except Exception as error:
            _LOG.exception("%s failed", self.server.info.name)
            status, content = 500, {"error": f"{type(error).__name__}: {error}"}
        finally:
            self.server.memory.give(self._held)
        self._answer(status, content)
        if status != 200:
            self._drain()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse in JSON, and end the connection."""
        self._answer(code, {"error": message or HTTPStatus(code).phrase})
        self._drain()

    def log_message(self, format: str, *args: object) -> None:
        """Log through `logging`."""
        _LOG.debug(format, *args)

    def _score(self) -> dict[str, Any]:
        """Read, check, wait for a turn, score."""
        server = self.server
        server.places.require_free()  # so that no body is sent in vain
        head_bytes, length = self._lengths()
        head = parse_head(self._read(head_bytes), kind=server.info.kind, limits=server.limits)
        if length != _HEAD + head_bytes + head.image_bytes:
            msg = (
                f"Content-Length must be {_HEAD + head_bytes + head.image_bytes}, as `shape` and "
                f"`dtype` say; got {length}."
            )
            raise RefusedError(msg)
        body = self._read(head.image_bytes)
        with server.places.one(), server.turn, torch.no_grad():
            if self._is_gone():
                raise ConnectionAbortedError("the client hung up before its turn")
            images = from_pixels(body, head)  # only here, as it may take five times the memory
            try:
                reward = server.scorer(images, list(head.prompts))
            except ValueError as error:  # would be raised again
                raise RefusedError(str(error), status=422) from error
            except OSError as error:  # not the connection's
                msg = f"{type(error).__name__}: {error}"
                raise RuntimeError(msg) from error
            answer = encode_scores(server.info, reward, objects=head.shape[0], views=head.shape[1])
            server.answered += 1
        return answer

    def _is_addressed(self) -> bool:
        """Return whether the client named this machine; a web page under another name may not.

        A page whose name resolves to this machine could otherwise use the service in a browser.
        """
        try:
            hosts = [urlsplit(f"//{name}").hostname for name in self.headers.get_all("Host", [])]
        except ValueError:
            hosts = [None]
        return self.server.allow_remote or all(_is_loopback(host or "") for host in hosts)

    def _lengths(self) -> tuple[int, int]:
        """Check the header of the request; return the lengths of the head and of the body."""
        limits = self.server.limits
        if not self._is_addressed():
            raise RefusedError(_NO_HOST, status=421)
        if self.path != "/score":
            raise RefusedError("there is /score.", status=404)
        if self.headers.get("Content-Type") != CONTENT_TYPE:
            msg = f"Content-Type must be {CONTENT_TYPE}."
            raise RefusedError(msg, status=415)
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or "Transfer-Encoding" in self.headers:
            raise RefusedError("Content-Length must be given, once.", status=411)
        if not re.fullmatch("[0-9]{1,18}", lengths[0]):
            raise RefusedError("Content-Length must be a number.")
        length = int(lengths[0])
        if length > limits.body_bytes:
            msg = f"`body_bytes` must be at most {limits.body_bytes} in a request; got {length}."
            raise RefusedError(msg, status=413)
        (head_bytes,) = struct.unpack("<I", self._read(min(length, _HEAD)).ljust(_HEAD, b"\xff"))
        if _HEAD + head_bytes > length:
            raise RefusedError("the body must hold its head.")
        if head_bytes > limits.head_bytes:
            msg = f"the head must be at most {limits.head_bytes} bytes; got {head_bytes}."
            raise RefusedError(msg, status=413)
        return head_bytes, length

    def _read(self, count: int) -> bytearray:
        """Read this many bytes before the deadline; memory grows with the bytes received."""
        data = bytearray()
        while len(data) < count:
            try:
                piece = self.rfile.read1(min(count - len(data), _PIECE))
            except TimeoutError:
                raise RefusedError("the request came too slowly.", status=408) from None
            if not piece:
                raise ConnectionAbortedError("the client hung up in the middle of its request")
            self.server.memory.take(len(piece))
            self._held += len(piece)
            data += piece
        return data

    def _is_gone(self) -> bool:
        """Return whether the client has hung up, without taking a byte."""
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(self.server.limits.read_s)

    def _answer(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content, allow_nan=False).encode()
        self.close_connection = True
        self.send_response(status)
        for name, value in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drain(self) -> None:
        """Read the rest that the client sends: closing at once could destroy the answer."""
        end, left = time.monotonic() + _DRAIN_S, _DRAIN_BYTES
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (rest := end - time.monotonic()) > 0:
                self.connection.settimeout(rest)
                got = len(self.connection.recv(2**16))
                left = left - got if got else 0
