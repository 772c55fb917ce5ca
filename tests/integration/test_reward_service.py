"""The reward service in earnest: the world's judges, a killed process, lies, and whole runs."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from PIL import Image

from mvczigal_ref.cli.scoring import ServeReward
from mvczigal_ref.reward.service import (
    Patience,
    RemoteJointView,
    RemotePerView,
    ScorerInfo,
    ScorerUnavailableError,
    serve,
    serving,
)
from mvczigal_ref.reward.service.handler import Handler
from mvczigal_ref.reward.service.wire import CONTENT_TYPE, Head
from mvczigal_ref.reward.tiny_world import WorldJointView, WorldPerView
from mvczigal_ref.system import scorers
from mvczigal_ref.training.checkpoint import load_checkpoint
from mvczigal_ref.training.events import Events
from tests.integration.faults import patched
from tests.integration.killable import SERVER
from tests.integration.runs import PROMPTS, assert_same_run, checkpoints, run, small_config
from tests.unit.reward.service.doubles import http

PER_VIEW = ScorerInfo(name="world.per_view", version="1", kind="per_view")
JOINT = ScorerInfo(name="world.joint", version="1", kind="joint")
ASKED = "asked"


def views():
    """Draw six views of two objects."""
    return torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


# -- bits --------------------------------------------------------------------------------


def test_the_worlds_scores_are_the_same_to_the_bit():
    """Both judges, through the service and here."""
    images = views()
    with serving(WorldPerView(), info=PER_VIEW) as server:
        per_view = RemotePerView(server.url)(images, PROMPTS)
    with serving(WorldJointView(), info=JOINT) as server:
        joint = RemoteJointView(server.url)(images, PROMPTS)

    assert torch.equal(per_view, WorldPerView()(images, PROMPTS))
    assert torch.equal(joint, WorldJointView()(images, PROMPTS))


# -- processes ---------------------------------------------------------------------------


def _work(pipe, port, answers):
    """Serve the per-view judge; after so many answers it says that it was asked, and no more."""
    torch.set_num_threads(1)
    # A test run in the background ignores Ctrl-C, and what it starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    calls = count()

    def judge(images, prompts):
        if next(calls) == answers:
            pipe.send(ASKED)
            time.sleep(600)
        return WorldPerView()(images, prompts)

    serve(judge, name="world.per_view", version="1", kind="per_view", port=port, say=pipe.send)


@contextmanager
def service(port=0, *, answers=-1):
    """Serve in a process of its own; give the process, the pipe and the port."""
    here, there = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_work, args=(there, port, answers))
    process.start()
    there.close()
    try:
        yield process, here, int(re.search(r"127\.0\.0\.1:(\d+) ", here.recv())[1])
    finally:
        process.kill()
        process.join()
        here.close()


def test_the_help_s_line_for_curl_is_scored(tmp_path):
    """As it stands there, but for the port and the file."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    line = " ".join(re.search(r"(?s)printf .*/score", ServeReward.__doc__)[0].split())
    Image.new("RGB", (300, 300), (51, 102, 153)).save(tmp_path / "a.png")
    info = ScorerInfo(name="mean", version="1", kind="per_view")
    with serving(lambda images, prompts: images.mean((2, 3, 4)), info=info) as server:
        line = line.replace("http://127.0.0.1:8763", server.url).replace("curl", "curl --silent")
        answer = subprocess.check_output(["sh", "-c", line], cwd=tmp_path, timeout=60)

    assert json.loads(answer)["scores"] == [[pytest.approx(0.4, abs=1e-6)]]


def _limited(pipe, descriptors):
    """Serve with room for so many descriptors more than are open; report the process's memory."""
    import resource

    def peak():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024

    def judge(images, prompts):
        return images.mean((2, 3, 4))

    torch.set_num_threads(1)
    if descriptors:
        many = len(os.listdir("/proc/self/fd")) + descriptors
        resource.setrlimit(resource.RLIMIT_NOFILE, (many, many))
    info = ScorerInfo(name="mean", version="1", kind="per_view")
    with serving(judge, info=info) as server:
        pipe.send((server.url, server.server_port))
        pipe.recv()
        pipe.send(peak())


@contextmanager
def limited(descriptors=0):
    """Serve in a process of its own; give its address, port and the pipe."""
    here, there = SERVER.Pipe()
    process = SERVER.Process(target=_limited, args=(there, descriptors))
    process.start()
    there.close()
    try:
        yield *here.recv(), here
    finally:
        process.kill()
        process.join()
        here.close()


def test_the_service_outlives_its_last_descriptor():
    """It answers again once some are free."""
    with limited(descriptors=12) as (url, port, _):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(24)]
        time.sleep(0.3)
        for client in silent:
            client.close()
        with urlopen(f"{url}/health", timeout=30) as answer:
            assert answer.status == 200


def _post(url, type_, body):
    """Send a body; return the scores."""
    with urlopen(Request(f"{url}/score", body, {"Content-Type": type_}), timeout=300) as answer:
        return json.load(answer)["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True], ids=["pixels", "JSON"])
def test_four_large_requests_stay_within_a_gibibyte(as_json):
    """72 MiB each, all at once; the process and its libraries included."""
    if as_json:
        picture = torch.randint(0, 256, (1024, 1024, 3), dtype=torch.uint8)
        buffer = io.BytesIO()
        Image.fromarray(picture.numpy()).save(buffer, "PNG", compress_level=1)
        text = base64.b64encode(buffer.getvalue()).decode()
        objects = -(-72 * 2**20 // len(text))
        rows = [[text]] * objects
        body = json.dumps({"prompts": ["a"] * objects, "images": rows}).encode()
        expected, type_ = [picture.double().mean().item() / 255], "application/json"
    else:
        objects = 24
        shape = (objects, 1, 3, 1024, 1024)
        head = Head(kind="per_view", prompts=("a",) * objects, shape=shape, dtype="uint8")
        body, expected, type_ = head.encode() + b"\x33" * head.image_bytes, [0.2], CONTENT_TYPE
    assert 72 * 2**20 <= len(body) < 77 * 2**20
    with limited() as (url, _, pipe), ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: _post(url, type_, body), range(4)):
            assert scores == [pytest.approx(expected, abs=1e-4)] * objects
        pipe.send("done")
        peak = pipe.recv()
    print(f"peak: {peak / 2**20:.0f} MiB")
    assert peak < 2**30


def test_ctrl_c_ends_the_service():
    """With a last line and a clean exit."""
    with service() as (process, pipe, port):
        with urlopen(f"http://127.0.0.1:{port}/health") as answer:
            assert answer.status == 200
        os.kill(process.pid, signal.SIGINT)
        process.join(60)

        assert process.exitcode == 0
        assert pipe.recv() == "stopped after 0 answers"


# -- runs --------------------------------------------------------------------------------


class Outage(Events):
    """Ends a service after the second iteration."""

    def __init__(self, end):
        self.end = end

    def iteration(self, finished, total, metrics):
        if finished == 2:
            self.end()


@pytest.mark.slow
def test_a_run_outlives_its_service(undisturbed, prompts, tmp_path):
    """SIGKILL while it scores; the run waits, asks the new one, and ends with the same bits."""
    pauses = []
    with ExitStack() as stack:
        # Held-out scores come first, then each iteration asks about two slices.
        process, pipe, port = stack.enter_context(service(answers=8))

        def kill():
            assert pipe.recv() == ASKED
            os.kill(process.pid, signal.SIGKILL)

        def again(seconds):
            pauses.append(seconds)
            process.join()
            stack.enter_context(service(port))

        killer = threading.Thread(target=kill)
        killer.start()
        remote = RemotePerView(f"http://127.0.0.1:{port}", sleep=again)
        with patched(scorers, "per_view_scorer", lambda *_, **__: remote):
            run(small_config(prompts), tmp_path)
        killer.join()

    assert process.exitcode == -signal.SIGKILL
    assert pauses == [0.5]
    assert_same_run(undisturbed(), tmp_path)


SAID = {"name": "world.per_view", "version": "1", "kind": "per_view", "dtype": "float32"}


def drip(connection):
    """Say too little for too long."""
    connection.sendall(b"HTTP/1.1 200 X\r\nA: ")
    for _ in range(200):
        connection.sendall(b"a")
        time.sleep(0.05)


FAULTS = {
    "garbage": b"\x00\xff garbage\r\n\r\n",
    "no JSON": http(200, b"<html>"),
    "a score too few": http(200, {**SAID, "scores": [[1.0] * 5] * 4}),
    "an object too many": http(200, {**SAID, "scores": [[1.0] * 6] * 5}),
    "no number": http(200, b'{"scores": [[NaN, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]}'),
    "another scorer": http(200, {**SAID, "version": "2", "scores": [[1.0] * 6] * 4}),
    "a body without end": http(200, b" " * 2**22),
    "out of memory": http(500, {"error": "out of memory"}),
    "busy": http(503, {"error": "busy"}),
    "nothing": b"",
    "slow": drip,
}


def test_a_run_outlives_whatever_its_service_says(undisturbed, prompts, tmp_path):
    """Two answers of three are wrong; none of them reaches a score."""
    truth, left, said = Handler._answer, list(FAULTS.values()), count()

    def answer(handler, status, content):
        if handler.path != "/score" or not left or next(said) % 3 == 2:
            return truth(handler, status, content)
        fault = left.pop(0)
        handler.close_connection = True
        return fault(handler.connection) if callable(fault) else handler.connection.sendall(fault)

    pauses = []
    one_by_one = {"run": {"objects_per_slice": 1}}  # as many calls as there are faults
    with serving(WorldPerView(), info=PER_VIEW) as server:
        patience = Patience(timeout_s=3.0)
        remote = RemotePerView(server.url, patience=patience, sleep=pauses.append)
        with (
            patched(Handler, "_answer", answer),
            patched(scorers, "per_view_scorer", lambda *_, **__: remote),
        ):
            run(small_config(prompts, **one_by_one), tmp_path)

    assert not left
    assert len(pauses) >= len(FAULTS)
    assert_same_run(undisturbed(**one_by_one), tmp_path)


def test_a_run_ends_with_a_good_checkpoint_where_its_service_does_not_come_back(
    undisturbed, prompts, tmp_path
):
    """After as long as it was to wait; resumed, it goes on to the same bits."""
    moments = iter(range(1000))
    with ExitStack() as stack:
        server = stack.enter_context(serving(WorldPerView(), info=PER_VIEW))
        remote = RemotePerView(
            server.url,
            patience=Patience(wait_s=5.0),
            clock=lambda: float(next(moments)),
            sleep=lambda seconds: None,
        )
        with (
            patched(scorers, "per_view_scorer", lambda *_, **__: remote),
            pytest.raises(ScorerUnavailableError, match="resume"),
        ):
            run(small_config(prompts), tmp_path, events=Outage(stack.close))

    assert checkpoints(tmp_path) == ["iteration_000001", "iteration_000002"]
    assert load_checkpoint(tmp_path / "checkpoints" / "iteration_000002").iteration == 2
    run(small_config(prompts), tmp_path)
    assert_same_run(undisturbed(), tmp_path)
