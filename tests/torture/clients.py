"""Hostile clients: whatever one sends, the service answers others rightly, in time."""

import random
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from mvczigal_ref.reward.service import Limits, RemotePerView, serving
from mvczigal_ref.reward.service.wire import CONTENT_TYPE, Head, to_pixels
from tests.torture.damage import damaged
from tests.torture.tally import Tally
from tests.unit.reward.service.doubles import PER_VIEW, PROMPTS, corner, noise

HEADS = (
    "Content-Length: -1", "Content-Length: 99999999999999", "Content-Length: 1e3",
    "Transfer-Encoding: chunked", "Content-Length: 4\r\nContent-Length: 5", "Expect: 100-continue",
    "Host: evil.example", "X: " + "y" * 70_000, "Content-Type: text/html", "\x00: \xff",
)  # fmt: skip
HONEST_EVERY = 20
SLOWEST = 10.0  # seconds that an honest request may take beside hostile ones


def torture(tally: Tally, chance: random.Random, count: int, folder: Path) -> None:
    """Send damaged requests, some slowly or not to the end, and an honest one between."""
    del folder
    tally.limit = 60.0
    images = noise()
    head = Head(kind="per_view", prompts=tuple(PROMPTS), shape=tuple(images.shape), dtype="float32")
    body = head.encode() + to_pixels(images, "float32").tobytes()
    with serving(corner, info=PER_VIEW, limits=Limits(read_s=2.0)) as server:
        silent: list[socket.socket] = []
        for place in range(count):
            with tally.attempt(f"request {place}"):
                status = _send(chance, server.server_port, body, silent)
                tally.note("refused") if 400 <= status < 500 else None
                assert status not in (500, 502), f"status {status}"
            if place % HONEST_EVERY == 0:
                with tally.attempt(f"honest {place}"):
                    started = time.monotonic()
                    scores = RemotePerView(server.url)(images, PROMPTS)
                    assert torch.equal(scores, corner(images, PROMPTS))
                    assert time.monotonic() - started < SLOWEST
        for client in silent:
            client.close()
    with tally.attempt("end"):
        left = [t.name for t in threading.enumerate() if "process_request" in t.name]
        assert len(left) < HONEST_EVERY, left


def _request(chance: random.Random, body: bytes) -> bytes:
    lines = [f"POST {chance.choice(['/score', '/score', '/x', '*', '//'])} HTTP/1.1",
             "Host: 127.0.0.1", f"Content-Type: {CONTENT_TYPE}"]  # fmt: skip
    if chance.random() < 0.4:
        lines.append(chance.choice(HEADS))
    else:
        lines.append(f"Content-Length: {len(body) + chance.choice([0, 0, 0, 1, -1, 1000])}")
    content = damaged(chance, body) if chance.random() < 0.6 else body
    whole = "\r\n".join([*lines, "", ""]).encode("latin-1") + content
    return damaged(chance, whole) if chance.random() < 0.3 else whole


def _send(chance: random.Random, port: int, body: bytes, silent: list[socket.socket]) -> int:
    """Send a request; give the status, 0 where none came."""
    client = socket.create_connection(("127.0.0.1", port), timeout=8.0)
    with suppress(OSError):
        client.sendall(_request(chance, body))
        if chance.random() < 0.1:  # leave it open and say nothing more
            silent.append(client)
            while len(silent) > 12:
                silent.pop(0).close()
            return 0
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(4096)
        client.close()
        words = answer.split(maxsplit=2)
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    client.close()
    return 0
