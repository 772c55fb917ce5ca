"""Bounds on connections, on the time of requests, and on the memory of their bodies."""

import errno
import io
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from typing import Any, Final

from mvczigal_ref.reward.service.terms import RefusedError

__all__ = ["BoundedServer", "Incoming", "Memory", "Places"]

_LOG: Final = logging.getLogger(__name__)
_CONNECTIONS: Final = 256  # most connections open at a time
_GIVE_WAY_S: Final = 0.5  # time for a connection that was hung up to end
_PAUSE_S: Final = 0.1  # pause when the system has no descriptor for a connection


class BoundedServer(ThreadingHTTPServer):
    """A server with a bounded number of threads, which outlives a lack of descriptors.

    Where all are taken, the client that has been sending its request for longest gives way.
    """

    def __init__(self, address: tuple[str, int], handler: Any) -> None:  # noqa: ANN401 - a class
        self.connections = threading.BoundedSemaphore(_CONNECTIONS)
        self._sending: dict[socket.socket, None] = {}  # in the order in which they came
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; without a free descriptor, pause instead of spinning."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                _LOG.warning("no connection can be accepted: %s", error)
                time.sleep(_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Serve a connection in a thread; of too many one ends, and this one if no other can."""
        if not (self.connections.acquire(blocking=False) or self._make_way()):
            _LOG.warning("a connection was closed: %d are open", _CONNECTIONS)
            self.shutdown_request(request)
            return
        self._sending[request] = None
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started, which would have released it
            self.came_whole(request)
            self.connections.release()
            raise

    def came_whole(self, request: socket.socket) -> None:
        """Spare a connection whose request has come as a whole, or that has ended."""
        self._sending.pop(request, None)

    def _make_way(self) -> bool:
        """Hang up on the client that has been sending for longest; say whether it has ended."""
        slowest = next(iter(list(self._sending)), None)
        if slowest is None:
            return False
        _LOG.warning("a connection gave way to another: %d are open", _CONNECTIONS)
        self.came_whole(slowest)
        with suppress(OSError):
            slowest.shutdown(socket.SHUT_RDWR)
        return self.connections.acquire(timeout=_GIVE_WAY_S)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Serve a connection in this thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.came_whole(request)
            self.connections.release()


class Places:
    """Places for whole requests, one of which is being scored while the others wait."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self._lock = threading.Lock()

    def require_free(self) -> None:
        """Refuse a request for which there is no place now."""
        if self.taken >= self.most:
            raise RefusedError("too many requests are waiting; try again later.", status=503)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take a place inside a context, or refuse."""
        with self._lock:
            self.require_free()
            self.taken += 1
        try:
            yield
        finally:
            with self._lock:
                self.taken -= 1


class Memory:
    """Bytes of all bodies that the service holds, up to a bound."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Count received bytes, or refuse their request if there are too many."""
        with self._lock:
            if self.held + count > self.most:
                raise RefusedError("too many requests are coming in; try again later.", status=503)
            self.held += count

    def give(self, count: int) -> None:
        """Count the bytes of a request that has ended."""
        with self._lock:
            self.held -= count


class Incoming(io.RawIOBase):
    """Bytes of a connection, with one deadline for all reads."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        """Return that bytes can be read."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a writable buffer
        """Read what has come, or wait for it until the deadline."""
        self._connection.settimeout(max(1e-3, self._deadline - time.monotonic()))
        return self._connection.recv_into(buffer)
