"""Run any scorer as an HTTP service: `POST /score`, `GET /health`, `GET /version`."""

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from mvczigal_ref.reward.service.terms import Kind, Limits, RefusedError, ScorerInfo
from mvczigal_ref.reward.service.wire import (
    CONTENT_TYPE,
    encode_scores,
    from_pixels,
    parse_head,
)
from mvczigal_ref.shapes import Images

if TYPE_CHECKING:
    pass  # import gone

__all__ = ["Handler", "Scorer", "ScorerServer", "serve", "serving"]

Scorer = Callable[[Images, Sequence[str]], Tensor]
"""A per-view or a joint-view scorer."""


_LOG: Final = logging.getLogger(__name__)


_LAST_CALL_S: Final = 10.0


class ScorerServer(ThreadingHTTPServer):
    """A service bound to its port; `serve_forever` answers.

    Args:
        scorer: Called by one request at a time, in threads, without gradients.
        info: What it is called.
        host: Address to bind.
        port: Port to bind; 0 for any that is free.
        limits: What is accepted.
        allow_remote: Whether other machines may be let in. There is no password: whoever
            reaches the port can use it.

    Raises:
        ValueError: If the address is not of this machine alone, and that was not asked for.
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
        self.turn = threading.Lock()
        self.room = threading.BoundedSemaphore(self.limits.requests)
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
        """Where clients find it."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what a connection met, and go on with the others."""
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
        scorer: Called by one request at a time.
        name: As a configuration names it.
        version: Changes whenever its scores may; clients' caches go by it.
        kind: One number a view, or one an object.
        host: Address to bind.
        port: Port to bind; 0 for any that is free.
        limits: What is accepted.
        allow_remote: Whether ``host`` may be reached from other machines; there is no password.
        say: Told one line when clients may come, and one at the end.

    Raises:
        ValueError: If ``host`` is not of this machine alone, and that was not asked for.
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
            # A scorer that is cut off by the end of the process may crash it.
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
    """Serve a scorer from a thread of this process, for this machine, while inside.

    Args:
        scorer: Called by one request at a time.
        info: What it is called.
        port: Port to bind; 0 for any that is free.
        limits: What is accepted.

    Yields:
        The server; its ``url`` is for clients.

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


_DRAIN_BYTES: Final = 2**26


_DRAIN_S: Final = 2.0


class Handler(BaseHTTPRequestHandler):
    """One connection, one request."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mvczigal", ""
    server: "ScorerServer"

    def setup(self) -> None:
        """Bound each wait for the client."""
        super().setup()
        self.connection.settimeout(self.server.limits.read_s)

    def do_GET(self) -> None:
        """Say that the service is there, or what it is."""
        server = self.server
        if self.path == "/health":
            self._answer(200, {"status": "ok", "answered": server.answered})
        elif self.path == "/version":
            self._answer(200, {**asdict(server.info), "limits": asdict(server.limits)})
        else:
            self.send_error(404, "there are /score, /health and /version.")

    def do_POST(self) -> None:
        """Score, or say why not."""
        if not self.server.room.acquire(blocking=False):
            status, said = 503, {"error": "too many requests are waiting; try again later."}
        else:
            try:
                status, said = 200, self._score()
            except RefusedError as error:
                status, said = error.status, {"error": str(error)}
            except OSError:
                raise  # of the connection: there is no one to answer
            except Exception as error:
                _LOG.exception("%s failed", self.server.info.name)
                status, said = 500, {"error": f"{type(error).__name__}: {error}"}
            finally:
                self.server.room.release()
        self._answer(status, said)
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
        head_bytes, length = self._lengths()
        head = parse_head(self._read(head_bytes), kind=server.info.kind, limits=server.limits)
        if length != _HEAD + head_bytes + head.image_bytes:
            msg = (
                f"Content-Length must be {_HEAD + head_bytes + head.image_bytes}, as `shape` and "
                f"`dtype` say; got {length}."
            )
            raise RefusedError(msg)
        images = from_pixels(self._read(head.image_bytes), head)
        with server.turn, torch.no_grad():
            if self._is_gone():
                raise ConnectionAbortedError("the client did not wait for its turn")
            try:
                reward = server.scorer(images, list(head.prompts))
            except ValueError as error:  # it would refuse again
                raise RefusedError(str(error), status=422) from error
            except OSError as error:  # not the connection's
                msg = f"{type(error).__name__}: {error}"
                raise RuntimeError(msg) from error
            said = encode_scores(server.info, reward, objects=head.shape[0], views=head.shape[1])
            server.answered += 1
        return said

    def _lengths(self) -> tuple[int, int]:
        """Check what comes before the head; give the head's length and the body's."""
        limits = self.server.limits
        if self.path != "/score":
            raise RefusedError("there is /score.", status=404)
        if self.headers.get("Content-Type") != CONTENT_TYPE:
            msg = f"Content-Type must be {CONTENT_TYPE}."
            raise RefusedError(msg, status=415)
        said = self.headers.get_all("Content-Length", [])
        if len(said) != 1 or "Transfer-Encoding" in self.headers:
            raise RefusedError("the body's length must be said, once.", status=411)
        if not re.fullmatch("[0-9]{1,18}", said[0]):
            raise RefusedError("Content-Length must be a number.")
        length = int(said[0])
        if length > limits.body_bytes:
            msg = f"`body_bytes` must be at most {limits.body_bytes} in a request; got {length}."
            raise RefusedError(msg, status=413)
        self._deadline = time.monotonic() + limits.read_s
        (head_bytes,) = struct.unpack("<I", self._read(min(length, _HEAD)).ljust(_HEAD, b"\xff"))
        if _HEAD + head_bytes > length:
            raise RefusedError("the body must hold its head.")
        if head_bytes > limits.head_bytes:
            msg = f"the head must be at most {limits.head_bytes} bytes; got {head_bytes}."
            raise RefusedError(msg, status=413)
        return head_bytes, length

    def _read(self, count: int) -> bytearray:
        """Read so many bytes before the deadline, however slowly they drip."""
        data = bytearray(count)
        view = memoryview(data)
        while view:
            self.connection.settimeout(max(1e-3, self._deadline - time.monotonic()))
            try:
                got = self.rfile.readinto1(view)
            except TimeoutError:
                raise RefusedError("the body came too slowly.", status=408) from None
            if not got:
                raise ConnectionAbortedError("the client hung up in the middle of its request")
            view = view[got:]
        return data

    def _is_gone(self) -> bool:
        """Say whether the client has hung up, by looking without taking."""
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(self.server.limits.read_s)

    def _answer(self, status: int, said: Mapping[str, Any]) -> None:
        body = json.dumps(said, allow_nan=False).encode()
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
        """Take what the client still sends: closing on it could destroy the answer on its way."""
        end, left = time.monotonic() + _DRAIN_S, _DRAIN_BYTES
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (rest := end - time.monotonic()) > 0:
                self.connection.settimeout(rest)
                got = len(self.connection.recv(2**16))
                left = left - got if got else 0
