"""Run any scorer as an HTTP service: `POST /score`, `GET /health`, `GET /version`."""

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final

from torch import Tensor

from mvczigal_ref.reward.service.handler import Handler
from mvczigal_ref.reward.service.terms import Kind, Limits, ScorerInfo
from mvczigal_ref.shapes import Images

__all__ = ["Scorer", "ScorerServer", "serve", "serving"]

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
