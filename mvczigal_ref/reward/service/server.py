"""Run any scorer as an HTTP service, until Ctrl-C or inside a context."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from socketserver import TCPServer
from typing import Final

from torch import Tensor

from mvczigal_ref.language.bounded_http import is_loopback
from mvczigal_ref.reward.service.bounds import BoundedServer, Memory, Places
from mvczigal_ref.reward.service.handler import Handler
from mvczigal_ref.reward.service.terms import Kind, Limits, ScorerInfo
from mvczigal_ref.shapes import Images

__all__ = ["Scorer", "ScorerServer", "serve", "serving"]

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
        if not (allow_remote or is_loopback(host)):
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
        open_to = "" if is_loopback(host) else "; OPEN TO OTHER MACHINES, without a password"
        try:
            say(f"serving {name} ({kind}, {version}) at {server.url}{open_to} (Ctrl-C stops)")
            server.serve_forever()
        except KeyboardInterrupt:
            # The end of the process during a scorer's work may crash it.
            server.turn.acquire(timeout=_LAST_CALL_S)
            say(f"stopped after {server.answered} answer{'s' * (server.answered != 1)}")


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
