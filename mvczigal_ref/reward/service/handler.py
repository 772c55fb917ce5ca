"""Requests to a scorer's service: `POST /score` in two formats, and the service's description.

No web framework stands behind it: those in use leave the time and the memory of a header and a body
to the application, so each bound kept here would have to be built around them.
"""

import io
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import torch
from torch import Tensor

from mvczigal_ref.language.bounded_http import is_loopback
from mvczigal_ref.reward.service.bounds import Incoming, Memory, Places
from mvczigal_ref.reward.service.json_wire import JSON_TYPE, parse_json
from mvczigal_ref.reward.service.openapi import openapi
from mvczigal_ref.reward.service.terms import Limits, RefusedError, ScorerInfo
from mvczigal_ref.reward.service.wire import (
    CONTENT_TYPE,
    Head,
    encode_scores,
    from_pixels,
    parse_head,
)
from mvczigal_ref.shapes import Images

__all__ = ["Handler", "Service"]

_LOG: Final = logging.getLogger(__name__)
_HEAD: Final = 4  # bytes of the head's length
_NO_HOST: Final = "Host must name this machine, such as 127.0.0.1."
_PIECE: Final = 2**20  # bytes read at a time
_DRAIN_BYTES: Final = 2**26
_DRAIN_S: Final = 2.0


class Service(Protocol):
    """Parts of a server that requests need."""

    scorer: Callable[[Images, Sequence[str]], Tensor]
    """Scorer that is called for one request at a time."""

    info: ScorerInfo
    """Info of the scorer."""

    limits: Limits
    """Limits on requests."""

    allow_remote: bool
    """Whether other machines may reach the service."""

    turn: threading.Lock
    """Held by the request that is being scored."""

    places: Places
    """Places for whole requests."""

    memory: Memory
    """Bytes of all bodies."""

    answered: int
    """Requests that were scored [1]."""

    def came_whole(self, request: socket.socket) -> None:
        """Spare a connection whose request has come as a whole."""


class Handler(BaseHTTPRequestHandler):
    """Handler of one connection, which carries one request."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mvczigal", ""
    server: "Service"  # type: ignore[assignment]  # by the parts that are used

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
        elif self.path == "/openapi.json":
            self._answer(200, openapi(server.info, server.limits))
        else:
            self.send_error(404, "there are /score, /health, /version and /openapi.json.")

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
        length = self._length()
        opened = self._json(length) if self._is_json() else self._pixels(length)
        server.came_whole(self.connection)
        with server.places.one(), server.turn, torch.no_grad():
            if self._is_gone():
                raise ConnectionAbortedError("the client hung up before its turn")
            head, content = opened()  # only here, as it takes more memory than what was sent
            images = from_pixels(content, head)
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

    def _json(self, length: int) -> Callable[[], tuple[Head, bytearray | memoryview]]:
        """Read a body of JSON; the pictures in it are opened later."""
        body, server = self._read(length), self.server
        return lambda: parse_json(body, kind=server.info.kind, limits=server.limits)

    def _pixels(self, length: int) -> Callable[[], tuple[Head, bytearray | memoryview]]:
        """Read a body of head and pixels, of which the head decides whether the rest is read."""
        server = self.server
        (head_bytes,) = struct.unpack("<I", self._read(min(length, _HEAD)).ljust(_HEAD, b"\xff"))
        if _HEAD + head_bytes > length:
            raise RefusedError("the body must hold its head.")
        if head_bytes > server.limits.head_bytes:
            msg = f"the head must be at most {server.limits.head_bytes} bytes; got {head_bytes}."
            raise RefusedError(msg, status=413)
        head = parse_head(self._read(head_bytes), kind=server.info.kind, limits=server.limits)
        if length != _HEAD + head_bytes + head.image_bytes:
            msg = (
                f"Content-Length must be {_HEAD + head_bytes + head.image_bytes}, as `shape` and "
                f"`dtype` say; got {length}."
            )
            raise RefusedError(msg)
        body = self._read(head.image_bytes)
        return lambda: (head, body)

    def _is_json(self) -> bool:
        return self.headers.get_content_type() == JSON_TYPE

    def _is_addressed(self) -> bool:
        """Return whether the client named this machine; a web page under another name may not.

        A page whose name resolves to this machine could otherwise use the service in a browser.
        """
        try:
            hosts = [urlsplit(f"//{name}").hostname for name in self.headers.get_all("Host", [])]
        except ValueError:
            hosts = [None]
        return self.server.allow_remote or all(is_loopback(host or "") for host in hosts)

    def _length(self) -> int:
        """Check the header of the request; return the length of the body."""
        limits = self.server.limits
        if not self._is_addressed():
            raise RefusedError(_NO_HOST, status=421)
        if self.path != "/score":
            raise RefusedError("there is /score.", status=404)
        if self.headers.get("Content-Type") != CONTENT_TYPE and not self._is_json():
            msg = f"Content-Type must be {CONTENT_TYPE} or {JSON_TYPE}."
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
        return length

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
