"""`reward.service.server`, `.handler`, `.bounds`: what is answered, what is refused, and when."""

import base64
import errno
import http.client
import io
import json
import select
import socket
import struct
import threading
import time
import tracemalloc
from pathlib import Path
from socketserver import TCPServer

import pytest
import torch
from PIL import Image

from mvczigal_ref.reward.service import bounds
from mvczigal_ref.reward.service import handler as service
from mvczigal_ref.reward.service.bounds import Memory
from mvczigal_ref.reward.service.server import ScorerServer, serve, serving
from mvczigal_ref.reward.service.terms import Limits, RefusedError
from mvczigal_ref.reward.service.wire import CONTENT_TYPE, Head, to_pixels
from tests.unit.reward.service.doubles import JOINT, PER_VIEW, PROMPTS, corner, lightest, noise

LONG = 30  # seconds that no test takes


def body(images, prompts=PROMPTS, *, kind="per_view", dtype="float32"):
    """Write a request's body."""
    head = Head(kind=kind, prompts=tuple(prompts), shape=tuple(images.shape), dtype=dtype)
    return head.encode() + to_pixels(images, dtype).tobytes()


def json_body(images, prompts=PROMPTS):
    """Write the same request in JSON."""
    rows = []
    for views in (images * 255).round().byte().permute(0, 1, 3, 4, 2).numpy():
        rows.append([])
        for view in views:
            buffer = io.BytesIO()
            Image.fromarray(view).save(buffer, "PNG")
            rows[-1].append(base64.b64encode(buffer.getvalue()).decode())
    return json.dumps({"prompts": list(prompts), "images": rows}).encode()


# Both formats of a request: its content type, and its writer.
FORMATS = pytest.mark.parametrize(
    ("type_", "written"), [(CONTENT_TYPE, body), ("application/json", json_body)]
)


def ask(server, method, path, content=None, headers=None):
    """Send a request as it is; give status and JSON of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=LONG)
    sent = {"Content-Type": CONTENT_TYPE} if headers is None else headers
    connection.request(method, path, content, sent)
    response = connection.getresponse()
    said = json.loads(response.read())
    connection.close()
    return response.status, said


def send(server, raw):
    """Send bytes and wait for the answer's status, the connection still open."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=LONG) as client:
        client.sendall(raw)
        with client.makefile("rb") as file:
            return int(file.readline().split()[1]), file.read()


def post(*lines, path="/score"):
    """Write a request's header."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


TYPE = f"Content-Type: {CONTENT_TYPE}"


@pytest.fixture
def server():
    """A service of small limits."""
    limits = Limits(body_bytes=2000, objects=3, views=2, image_size=8, prompt_chars=5, requests=2)
    with serving(corner, info=PER_VIEW, limits=limits) as running:
        yield running


# -- what is answered --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_scores_are_the_scorers(server, dtype):
    """To the bit, with the name and the version of who scored."""
    images = noise()
    seen = images if dtype == "float32" else (images * 255).round() / 255
    status, said = ask(server, "POST", "/score", body(images, dtype=dtype))

    assert status == 200
    assert said == {
        "name": "corner",
        "version": "1",
        "kind": "per_view",
        "dtype": "float32",
        "scores": corner(seen, PROMPTS).tolist(),
    }


def test_json_is_scored_as_pixels_are(server):
    """The same answer as to the same pixels in the other format."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = ask(server, "POST", "/score", json_body(noise()), headers)

    assert answer == ask(server, "POST", "/score", body(noise(), dtype="uint8"))
    assert answer[0] == 200


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "cannot be read as JSON"),
        (b'{"prompts": ["a"], "images": [["AAAA"]]}', 400, "must be PNG files"),
        (b'{"prompts": ["a"], "images": "' + b"A" * 1971, 413, "`body_bytes` must be at most 2000"),
        (json_body(noise(), ["a", "b", "longer"]), 413, "`prompt_chars` must be at most 5"),
    ],
)
def test_json_is_refused_in_one_line(server, content, status, message):
    """And the service goes on."""
    headers = {"Content-Type": "application/json"}
    found, said = ask(server, "POST", "/score", content, headers)

    assert found == status
    assert message in said["error"]
    assert said["error"].isprintable()
    assert server.places.taken == server.memory.held == 0


def test_a_joint_scorer_gives_one_an_object():
    """A row of one."""
    with serving(lightest, info=JOINT) as server:
        _, said = ask(server, "POST", "/score", body(noise(), kind="joint"))

    assert said["scores"] == lightest(noise(), PROMPTS)[:, None].tolist()


def test_tells_its_health_and_its_version(server):
    """Who it is, what it accepts, and how much it has answered."""
    assert ask(server, "GET", "/health") == (200, {"status": "ok", "answered": 0})
    ask(server, "POST", "/score", body(noise()))
    ask(server, "POST", "/score", b"")
    assert ask(server, "GET", "/health") == (200, {"status": "ok", "answered": 1})
    status, said = ask(server, "GET", "/version")

    assert status == 200
    assert (said["name"], said["version"], said["kind"]) == ("corner", "1", "per_view")
    assert said["limits"] == {
        "body_bytes": 2000,
        "objects": 3,
        "views": 2,
        "image_size": 8,
        "prompt_chars": 5,
        "requests": 2,
        "read_s": 60.0,
    }


def test_scores_one_request_at_a_time_without_gradients():
    """Though both have come; gradients are off in a thread of the service too."""
    inside, most, modes = [], [], []

    def scorer(images, prompts):
        inside.append(1)
        modes.append(torch.is_grad_enabled())
        if len(modes) == 1:
            while server.places.taken < 3:  # until all have come
                time.sleep(0.005)
            time.sleep(0.1)
        most.append(len(inside))
        inside.pop()
        return corner(images, prompts)

    with serving(scorer, info=PER_VIEW, limits=Limits(requests=3)) as server:
        arguments = (server, "POST", "/score", body(noise()))
        clients = [threading.Thread(target=ask, args=arguments) for _ in range(3)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    assert most == [1, 1, 1]
    assert modes == [False] * 3


def test_a_full_house_is_told_so_at_once():
    """And answers again once there is room; its health never waits."""
    started, free = threading.Event(), threading.Event()

    def scorer(images, prompts):
        started.set()
        free.wait(LONG)
        return corner(images, prompts)

    with serving(scorer, info=PER_VIEW, limits=Limits(requests=1)) as server:
        arguments = (server, "POST", "/score", body(noise()))
        first = threading.Thread(target=ask, args=arguments)
        first.start()
        started.wait(LONG)
        refused, health = ask(*arguments), ask(server, "GET", "/health")
        free.set()
        first.join()
        while (later := ask(*arguments))[0] == 503:
            pass

    assert refused[0] == 503
    assert health == (200, {"status": "ok", "answered": 0})
    assert later[0] == 200


def test_who_did_not_wait_is_not_scored():
    """Its turn goes to the next."""
    started, free, calls = threading.Event(), threading.Event(), []

    def scorer(images, prompts):
        calls.append(list(prompts))
        started.set()
        free.wait(LONG)
        return corner(images, prompts)

    with serving(scorer, info=PER_VIEW, limits=Limits(requests=2)) as server:
        first = threading.Thread(target=ask, args=(server, "POST", "/score", body(noise())))
        first.start()
        started.wait(LONG)
        content = body(noise(), ["x", "y", "z"])
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.sendall(post(TYPE, f"Content-Length: {len(content)}") + content)
            # The house is full once the second request is inside.
            while server.places.taken < 2:
                time.sleep(0.005)
        free.set()
        first.join()
        # When both have left, the second has had its turn.
        while server.places.taken:
            time.sleep(0.005)

    assert calls == [PROMPTS]


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        ([TYPE, "Content-Length: 2001"], 413, b"`body_bytes` must be at most 2000"),
        ([TYPE, "Content-Length: 999999999999999999999"], 400, b"a number"),
        ([TYPE, "Content-Length: -1"], 400, b"a number"),
        ([TYPE, "Content-Length: 1_0"], 400, b"a number"),
        ([TYPE, "Content-Length: 1", "Content-Length: 1"], 411, b"once"),
        ([TYPE], 411, b"once"),
        ([TYPE, "Content-Length: 9", "Transfer-Encoding: chunked"], 411, b"once"),
        (["Content-Type: text/plain", "Content-Length: 9"], 415, b"Content-Type must be"),
        (["Content-Length: 9"], 415, b"Content-Type must be"),
    ],
)
def test_refuses_by_the_header_alone(server, lines, status, message):
    """No byte of the body is waited for."""
    found, answer = send(server, post(*lines))

    assert found == status
    assert message in answer


@pytest.mark.parametrize(
    ("head", "length", "status", "message"),
    [
        (100, 50, 400, b"must hold its head"),
        (2**31, 2000, 400, b"must hold its head"),
    ],
)
def test_refuses_by_the_heads_length(server, head, length, status, message):
    """A head that the body cannot hold is not waited for."""
    found, answer = send(server, post(TYPE, f"Content-Length: {length}") + struct.pack("<I", head))

    assert found == status
    assert message in answer


def test_refuses_a_head_over_the_limit():
    """Before it is read."""
    limits = Limits(objects=1, prompt_chars=1, body_bytes=10**6)
    with serving(corner, info=PER_VIEW, limits=limits) as server:
        header = post(TYPE, "Content-Length: 1000000")
        status, answer = send(server, header + struct.pack("<I", limits.head_bytes + 1))

    assert status == 413
    assert b"head must be at most 522 bytes" in answer


def test_refuses_by_the_head(server):
    """No image is waited for: neither too many, nor another number of bytes."""
    shape = (4, 2, 3, 4, 5)
    head = Head(kind="per_view", prompts=("a",) * 4, shape=shape, dtype="uint8").encode()
    many = send(server, post(TYPE, f"Content-Length: {len(head) + 480}") + head)
    shape = (3, 2, 3, 4, 5)
    head = Head(kind="per_view", prompts=("a",) * 3, shape=shape, dtype="uint8").encode()
    long = send(server, post(TYPE, f"Content-Length: {len(head) + 361}") + head)
    short = send(server, post(TYPE, f"Content-Length: {len(head) + 359}") + head)

    assert many[0] == 413
    assert b"`objects` must be at most 3" in many[1]
    assert (long[0], short[0]) == (400, 400)
    assert f"must be {len(head) + 360}".encode() in long[1]


def test_refuses_what_it_does_not_serve(server):
    """Other paths, other methods, and pixels out of range; in JSON."""
    assert ask(server, "GET", "/score")[0] == 404
    assert ask(server, "GET", "/../etc/passwd")[0] == 404
    assert ask(server, "POST", "/version", b"x")[0] == 404
    assert ask(server, "PUT", "/score", b"x")[0] == 501
    status, said = ask(server, "POST", "/score", body(noise() + 1))
    assert (status, said) == (400, {"error": "every pixel must be in [0, 1]; got one that is not."})
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=LONG) as client:
        client.sendall(b"nonsense\r\n\r\n")
        with client.makefile("rb") as file:
            assert b'{"error": "Bad request syntax' in file.read()


@pytest.mark.parametrize("type_", [CONTENT_TYPE, "application/json"])
def test_does_not_wait_for_a_body_that_drips(type_):
    """The time limit is on the whole of it, though each byte comes soon."""
    with (
        serving(corner, info=PER_VIEW, limits=Limits(read_s=0.2)) as server,
        socket.create_connection(("127.0.0.1", server.server_port), timeout=LONG) as client,
    ):
        header = post(f"Content-Type: {type_}", "Content-Length: 204")
        client.sendall(header + struct.pack("<I", 200))
        for _ in range(200):
            if select.select([client], [], [], 0.01)[0]:
                break
            client.sendall(b" ")
        with client.makefile("rb") as file:
            answer = file.read()

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too slowly" in answer


def test_does_not_wait_for_a_header_that_drips():
    """Header and body have one time limit together."""
    with (
        serving(corner, info=PER_VIEW, limits=Limits(read_s=0.3)) as server,
        socket.create_connection(("127.0.0.1", server.server_port), timeout=LONG) as client,
    ):
        start = time.monotonic()
        client.sendall(b"POST /score HTTP/1.1\r\nX: ")
        while not select.select([client], [], [], 0.01)[0]:
            client.sendall(b"x")

        assert time.monotonic() - start < 5


def silent(server, content):
    """Send the beginning of a request, and nothing more."""
    client = socket.create_connection(("127.0.0.1", server.server_port), timeout=LONG)
    client.sendall(content)
    return client


def until(condition):
    """Wait for a condition of the service's threads."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@FORMATS
def test_silent_clients_take_no_place(type_, written):
    """A place is for a request that has come as a whole."""
    content = written(noise())
    begun = post(f"Content-Type: {type_}", f"Content-Length: {len(content)}") + content[:-1]
    with serving(corner, info=PER_VIEW, limits=Limits(requests=1)) as server:
        clients = [silent(server, begun) for _ in range(8)]
        until(lambda: server.memory.held == 8 * (len(content) - 1))

        assert ask(server, "POST", "/score", content, {"Content-Type": type_})[0] == 200
        for client in clients:
            client.close()
        until(lambda: server.memory.held == 0)


def test_memory_of_json_grows_with_the_bytes_received():
    """Not with the length that a client names; it is given back."""
    begun = post("Content-Type: application/json", f"Content-Length: {2**28}") + b"x" * 100
    with serving(corner, info=PER_VIEW) as server:
        tracemalloc.start()
        try:
            with silent(server, begun):
                until(lambda: server.memory.held == 100)
            until(lambda: server.memory.held == 0)
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()


def test_memory_grows_with_the_bytes_received():
    """Not with the length that a client names; it is given back."""
    shape = (16, 6, 3, 512, 512)
    head = Head(kind="per_view", prompts=("a",) * 16, shape=shape, dtype="uint8").encode()
    begun = post(TYPE, f"Content-Length: {len(head) + 16 * 6 * 3 * 512 * 512}") + head + b"x" * 100
    with serving(corner, info=PER_VIEW) as server:
        tracemalloc.start()
        try:
            with silent(server, begun):
                until(lambda: server.memory.held == len(head) + 100)
            until(lambda: server.memory.held == 0)
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()


def test_images_are_made_one_request_at_a_time(server, monkeypatch):
    """Bytes become four times as many when they become numbers; PNGs are opened then too."""
    turns = []

    def watched(name):
        work = getattr(service, name)

        def noted(*arguments, **more):
            turns.append((name, server.turn.locked()))
            return work(*arguments, **more)

        monkeypatch.setattr(service, name, noted)

    watched("from_pixels")
    watched("parse_json")
    assert ask(server, "POST", "/score", body(noise(), dtype="uint8"))[0] == 200
    headers = {"Content-Type": "application/json"}
    assert ask(server, "POST", "/score", json_body(noise()), headers)[0] == 200
    assert turns == [("from_pixels", True), ("parse_json", True), ("from_pixels", True)]


def test_all_bodies_together_are_bounded():
    """The one that goes beyond is refused, and may come again later."""
    memory = Memory(10)
    memory.take(6)
    with pytest.raises(RefusedError, match="too many requests") as caught:
        memory.take(5)
    memory.give(6)
    memory.take(10)

    assert caught.value.status == 503


@pytest.mark.parametrize(
    "begun", [b"", b"POST /score HTTP/1.1\r\nHost: 127", post(TYPE, "Content-Length: 9") + b"x"]
)
def test_whoever_has_been_sending_for_longest_gives_way(monkeypatch, begun):
    """Silent clients that take every connection keep nobody out."""
    monkeypatch.setattr(bounds, "_CONNECTIONS", 3)
    content = body(noise())
    with serving(corner, info=PER_VIEW) as server:
        clients = []
        for _ in range(3):
            clients.append(silent(server, begun))
            until(lambda: server.connections._value == 3 - len(clients))
        headers = {"Content-Type": CONTENT_TYPE}
        assert ask(server, "POST", "/score", content, headers)[0] == 200
        assert clients[0].recv(1) == b""
        assert not select.select(clients[1:], [], [], 0)[0]
        for client in clients:
            client.close()


def test_connections_are_bounded(monkeypatch):
    """One too many is closed where all others wait for their scores; there is room again after."""
    monkeypatch.setattr(bounds, "_CONNECTIONS", 2)
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(images, prompts):
        begun.release()
        assert go_on.wait(LONG)
        return corner(images, prompts)

    content = body(noise())
    sent = post(TYPE, f"Content-Length: {len(content)}") + content
    with serving(slow, info=PER_VIEW) as server:
        clients = [silent(server, sent) for _ in range(2)]
        assert begun.acquire(timeout=LONG)
        until(lambda: server.places.taken == 2)
        with silent(server, b"") as late:
            assert late.recv(1) == b""
        go_on.set()
        assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients)
        for client in clients:
            client.close()
        until(lambda: server.connections._value == 2)
        assert ask(server, "GET", "/health")[0] == 200


def test_the_service_outlives_a_lack_of_descriptors(monkeypatch):
    """It pauses and accepts again."""
    accept, failures = TCPServer.get_request, []

    def lacking(self):
        if len(failures) < 3:
            failures.append(time.monotonic())
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(bounds, "_PAUSE_S", 0.02)
    monkeypatch.setattr(TCPServer, "get_request", lacking)
    with serving(corner, info=PER_VIEW) as server:
        assert ask(server, "GET", "/health")[0] == 200

    assert len(failures) == 3
    assert failures[2] - failures[0] >= 0.04


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8763", 200),
        ("localhost", 200),
        ("[::1]:1", 200),
        ("example.org", 421),
        ("127.0.0.1.example.org:8763", 421),
        ("192.168.0.1", 421),
        ("", 421),
        ("[", 421),
    ],
)
@FORMATS
def test_another_host_is_refused(server, type_, written, host, status):
    """A web page whose name leads to this machine gets no answer from its browser."""
    content = written(noise())
    headers = {"Content-Type": type_, "Host": host}

    assert ask(server, "GET", "/version", None, headers)[0] == status
    assert ask(server, "GET", "/openapi.json", None, headers)[0] == status
    assert ask(server, "POST", "/score", content, headers)[0] == status


@pytest.mark.parametrize(
    ("scorer", "status", "message"),
    [
        (lambda i, p: int("red"), 422, "invalid literal for int"),
        (lambda i, p: {}["red"], 500, "KeyError: 'red'"),
        (lambda i, p: Path("/no/such/file").read_text(), 500, "FileNotFoundError"),
        (lambda i, p: torch.zeros(2, 2), 500, r"shape (3, 2)"),
        (lambda i, p: torch.full((3, 2), torch.nan), 500, "must be finite"),
    ],
)
def test_what_goes_wrong_in_the_scorer_is_told(scorer, status, message):
    """A refusal is the client's fault, anything else the service's; it serves on."""
    with serving(scorer, info=PER_VIEW) as server:
        found, said = ask(server, "POST", "/score", body(noise()))

        assert found == status
        assert message in said["error"]
        assert ask(server, "GET", "/health")[0] == 200


# -- where it listens --------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "", "192.168.0.1", "example.org", "::"])
def test_listens_to_this_machine_alone(host):
    """Anything else has to be asked for."""
    with pytest.raises(ValueError, match="`host` must be of this machine alone"):
        ScorerServer(corner, info=PER_VIEW, host=host)


def test_a_port_has_one_service():
    """A second would take half of the first one's requests."""
    with serving(corner, info=PER_VIEW) as server, pytest.raises(OSError, match="in use"):
        ScorerServer(corner, info=PER_VIEW, port=server.server_port)


def interrupted(self, poll_interval=0.5):
    """Stand for Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("host", "allowed", "warning"),
    [
        ("127.0.0.1", False, ""),
        ("0.0.0.0", True, "; OPEN TO OTHER MACHINES, without a password"),
    ],
)
def test_serve_says_where_and_ends_with_ctrl_c(monkeypatch, host, allowed, warning):
    """A line when it begins and one when it ends; the port is free again."""
    lines = []
    monkeypatch.setattr(ScorerServer, "serve_forever", interrupted)
    serve(
        corner, name="corner", version="1", kind="per_view", host=host, port=0,
        allow_remote=allowed, say=lines.append,
    )  # fmt: skip
    begin, end = lines
    port = int(begin.partition(f"http://{host}:")[2].split(";")[0].split(" ")[0])

    assert begin == f"serving corner (per_view, 1) at http://{host}:{port}{warning} (Ctrl-C stops)"
    assert end == "stopped after 0 answers"
    socket.create_server((host, port)).close()
