"""`reward.waiting`: an outage is one error, and a stop that is asked for ends the wait."""

import os
import signal
import threading
import time

import pytest
import torch

from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.reward.service.waiting import Asked, Waiting

LONG = 60.0  # seconds that no test takes
IMAGES = torch.zeros(1, 1, 3, 2, 2)


@pytest.fixture
def noted():
    """Numbers of the signals that a run took note of; as a trainer does, it goes on."""
    heard = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    old = {n: signal.signal(n, lambda number, frame: heard.append(number)) for n in numbers}
    yield heard
    for number, handler in old.items():
        signal.signal(number, handler)


def soon(number):
    """Send this process a signal once it sleeps."""
    timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
    timer.start()
    return timer


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_the_wait_and_is_still_noted(noted, number):
    """Within a second of a minute; whoever heard signals before hears them after."""
    waiting, before = Waiting(), signal.getsignal(number)
    timer, began = soon(number), time.monotonic()
    with (
        pytest.raises(ScorerUnavailableError, match="a stop was asked for"),
        waiting.hearing(),
    ):
        waiting.sleep(LONG)
    timer.join()

    assert time.monotonic() - began < LONG / 2
    assert noted == [number]
    assert signal.getsignal(number) is before


def test_a_stop_ends_the_wait_of_another_thread(noted):
    """Where questions are asked side by side."""
    waiting, ended = Waiting(), []

    def wait():
        with pytest.raises(ScorerUnavailableError):
            waiting.sleep(LONG)
        ended.append(True)

    with waiting.hearing():
        worker = threading.Thread(target=wait, daemon=True)
        worker.start()
        timer = soon(signal.SIGTERM)
        worker.join(LONG / 2)
        timer.join()

    assert ended == [True]


def test_a_stop_that_was_asked_for_ends_the_next_wait(noted):
    """It came while the scorer still answered."""
    waiting = Waiting()
    with waiting.hearing():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ScorerUnavailableError):
        waiting.sleep(0.0)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
def test_signals_that_end_or_raise_are_left_alone(noted, handler):
    """There is no run to save."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
    with Waiting().hearing():
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_hear_no_signals(noted):
    """And do not try to."""
    here, found = signal.getsignal(signal.SIGTERM), []

    def hear():
        with Waiting().hearing():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=hear)
    thread.start()
    thread.join()

    assert found == [here]


def test_undisturbed_it_sleeps_as_long_as_it_is_told():
    """In pieces."""
    began = time.monotonic()
    Waiting().sleep(0.3)

    assert 0.3 <= time.monotonic() - began < LONG


def test_a_scorer_that_answers_is_passed_through():
    """To the same object."""
    scores = torch.ones(1, 1)
    asked = Asked(lambda images, prompts: scores, (KeyError,), waiting=Waiting(), version="7")

    assert asked(IMAGES, ["a"]) is scores
    assert asked.version == "7"


# -- errors ------------------------------------------------------------------------------


def test_its_faults_are_an_outage_and_others_are_not():
    """Those are mistakes, of which waiting tells nothing."""

    def fail(images, prompts):
        raise faults.pop()

    faults = [TypeError("mine"), KeyError("theirs")]
    asked = Asked(fail, (KeyError,), waiting=Waiting(), version="")
    with pytest.raises(ScorerUnavailableError, match="the scorer does not serve: 'theirs'"):
        asked(IMAGES, ["a"])
    with pytest.raises(TypeError, match="mine"):
        asked(IMAGES, ["a"])
