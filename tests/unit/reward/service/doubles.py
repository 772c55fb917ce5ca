"""Scorers of one pixel, a clock that only sleeping moves, and a server that says anything."""

import json
import socket
import threading
from contextlib import suppress

import torch

from mvczigal_ref.reward.service.terms import ScorerInfo

PER_VIEW = ScorerInfo(name="corner", version="1", kind="per_view")
JOINT = ScorerInfo(name="lightest", version="1", kind="joint")
INFO = {"name": "corner", "version": "1", "kind": "per_view"}
LIMITS = {"objects": 256, "body_bytes": 2**28}
PROMPTS = ["a", "bb", "a"]


def corner(images, prompts):
    """Score a view by its first pixel and the length of its prompt."""
    return images[:, :, 0, 0, 0] + torch.tensor([float(len(p)) for p in prompts])[:, None]


def lightest(images, prompts):
    """Score an object by its lightest pixel."""
    return images.amax((1, 2, 3, 4))


def noise(objects=3, views=2):
    """Draw images; the same ones always."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand(objects, views, 3, 4, 5, generator=generator)


class Time:
    """A clock that only its own sleep moves."""

    def __init__(self, on_sleep=None):
        self.now, self.pauses, self.on_sleep = 100.0, [], on_sleep

    def clock(self):
        """Give the time."""
        return self.now

    def sleep(self, seconds):
        """Let it pass."""
        self.now += seconds
        self.pauses.append(seconds)
        if self.on_sleep is not None:
            self.on_sleep()


def http(status, said):
    """Write an answer: JSON values, or bytes as they are."""
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def version(**other):
    """Write a good answer to the question who is there."""
    return http(200, {**INFO, "limits": LIMITS, **other})


class Scripted:
    """A server that reads each request and gives the next answer of its script, the last for ever.

    An answer is the bytes to send, or a function that is handed the connection.
    """

    def __init__(self, *script):
        self.script, self.paths = list(script), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.ended = False
        self.thread = threading.Thread(target=self.loop, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended = True
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            pass
        self.thread.join()
        self.listener.close()

    def loop(self):
        """Answer one connection after the other."""
        while True:
            connection, _ = self.listener.accept()
            with connection, suppress(OSError):
                if self.ended:
                    return
                self.answer(connection)

    def answer(self, connection):
        """Read a request to its end and answer it."""
        with connection.makefile("rb") as file:
            self.paths.append(file.readline().split()[1].decode())
            length = 0
            while (line := file.readline()).strip():
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            file.read(length)
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        said(connection) if callable(said) else connection.sendall(said)
