"""A real HTTP server on a free loopback port that answers as a test tells it."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image
from torch import Tensor

__all__ = ["Request", "Stub", "chat", "decode", "raw", "serve"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client sent."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The text of the message."""
        content = self.body["messages"][0]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    @property
    def images(self) -> list[Tensor]:
        """The images of the message, in [0, 1]."""
        content = self.body["messages"][0]["content"]
        return [decode(part["image_url"]["url"]) for part in content[:-1]]


@dataclass(kw_only=True)
class Stub:
    """A running server: where it is, and what it was asked."""

    url: str
    requests: list[Request] = field(default_factory=list)


Reply = Callable[[BaseHTTPRequestHandler, Request], None]


@contextmanager
def serve(*replies: Reply) -> Iterator[Stub]:
    """Answer the first request by the first reply and so on; the last one stays."""
    left = list(replies)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(path=self.path, headers=dict(self.headers), body=body)
            with lock:
                stub.requests.append(request)
                reply = left.pop(0) if len(left) > 1 else left[0]
            try:
                reply(self, request)
            except OSError:
                # The client went away, which is what some tests are about.
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub = Stub(url=f"http://127.0.0.1:{server.server_port}/v1")
    # Ends within this time of being told to [s].
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def raw(content: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """Answer with these bytes."""

    def reply(handler: BaseHTTPRequestHandler, request: Request) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return reply


def chat(answer: str | Callable[[Request], str], reason: str = "stop") -> Reply:
    """Answer as a chat model, with a text or with what a function makes of the request."""

    def reply(handler: BaseHTTPRequestHandler, request: Request) -> None:
        text = answer if isinstance(answer, str) else answer(request)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
        raw(json.dumps({"choices": [choice]}).encode())(handler, request)

    return reply


def decode(url: str) -> Tensor:
    """Read a PNG from a data URL, in [0, 1]."""
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255
