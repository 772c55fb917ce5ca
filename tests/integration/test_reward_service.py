"""The reward service in earnest: the world's judges, a killed process, lies, and whole runs."""

import os
import re
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import count
from urllib.request import urlopen

import pytest
import torch

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
from mvczigal_ref.reward.tiny_world import WorldJointView, WorldPerView
from mvczigal_ref.system import scorers
from mvczigal_ref.training.checkpoint import load_checkpoint
from mvczigal_ref.training.loop import Events
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
        with patched(scorers, "per_view_scorer", lambda *_: remote):
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
            patched(scorers, "per_view_scorer", lambda *_: remote),
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
            patched(scorers, "per_view_scorer", lambda *_: remote),
            pytest.raises(ScorerUnavailableError, match="resume"),
        ):
            run(small_config(prompts), tmp_path, events=Outage(stack.close))

    assert checkpoints(tmp_path) == ["iteration_000001", "iteration_000002"]
    assert load_checkpoint(tmp_path / "checkpoints" / "iteration_000002").iteration == 2
    run(small_config(prompts), tmp_path)
    assert_same_run(undisturbed(), tmp_path)
