"""`reward.service.client`: the scorer's own scores, or an error that says why not."""

import threading
from contextlib import ExitStack

import pytest
import torch

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.service import (
    Limits,
    Patience,
    RefusedError,
    RemoteJointView,
    RemotePerView,
    ScoreCache,
    ScorerInfo,
    ScorerUnavailableError,
    serving,
)
from tests.unit.reward.service.doubles import (
    INFO,
    JOINT,
    PER_VIEW,
    PROMPTS,
    Scripted,
    Time,
    corner,
    http,
    lightest,
    noise,
    version,
)

IMPATIENT = Patience(wait_s=0.0)


def remote(server, **more):
    """Build a client whose pauses cost nothing."""
    time = Time()
    return RemotePerView(server.url, **{"clock": time.clock, "sleep": time.sleep, **more})


def good(objects=3):
    """Write the answer that `corner` gives on `noise`."""
    scores = corner(noise(), PROMPTS)[:objects].tolist()
    return http(200, {**INFO, "dtype": "float32", "scores": scores})


class Counting:
    """The corner's scorer, which remembers the prompts of each call."""

    def __init__(self, dtype=torch.float32):
        self.calls, self.dtype = [], dtype

    def __call__(self, images, prompts):
        self.calls.append("".join(prompts))
        return corner(images, prompts).to(self.dtype) / 3


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [1, 2, 16])
def test_scores_are_the_scorers_own(objects):
    """To the bit, however many travel together; of both kinds."""
    images = noise()
    with serving(corner, info=PER_VIEW) as server:
        per_view = RemotePerView(server.url, objects=objects)(images, PROMPTS)
    with serving(lightest, info=JOINT) as server:
        joint = RemoteJointView(server.url, objects=objects)(images, PROMPTS)

    assert torch.equal(per_view, corner(images, PROMPTS))
    assert torch.equal(joint, lightest(images, PROMPTS))
    assert per_view.dtype == joint.dtype == torch.float32


def test_bytes_are_the_scores_of_rounded_images():
    """With `dtype` uint8."""
    with serving(corner, info=PER_VIEW) as server:
        scores = RemotePerView(server.url, dtype="uint8")(noise(), PROMPTS)

    assert torch.equal(scores, corner((noise() * 255).round() / 255, PROMPTS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_keep_their_precision(dtype):
    """Wide ones stay wide, and narrow ones become fp32."""
    with serving(Counting(dtype), info=PER_VIEW) as server:
        scores = RemotePerView(server.url, objects=2)(noise(), PROMPTS)

    local = Counting(dtype)(noise(), PROMPTS)
    assert scores.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(scores, local.to(scores.dtype))


# -- laws --------------------------------------------------------------------------------


def test_clients_are_scorers():
    """Called as the others are; building one asks no one."""
    assert isinstance(RemotePerView("http://127.0.0.1:9"), PerViewScorer)
    assert isinstance(RemoteJointView("http://127.0.0.1:9"), JointViewScorer)


@pytest.mark.parametrize(
    ("objects", "limits", "calls"),
    [
        (2, Limits(), ["aa", "bb"]),
        (16, Limits(objects=1), ["a", "a", "bb"]),
        # An object is 480 bytes of images, and a prompt of two characters at most 16.
        (16, Limits(body_bytes=1024 + 2 * (480 + 16)), ["aa", "bb"]),
        (16, Limits(body_bytes=1024), ["a", "a", "bb"]),
    ],
)
def test_what_travels_together_fits_the_service(objects, limits, calls):
    """The client's own number, the service's, and the service's bytes."""
    scorer, prompts = Counting(), ["a", "a", "bb"]
    with serving(scorer, info=PER_VIEW, limits=limits) as server:
        scores = RemotePerView(server.url, objects=objects)(noise(), prompts)

    assert scorer.calls == calls
    assert torch.equal(scores, Counting()(noise(), prompts))


def test_no_object_has_no_score():
    """And costs no request but the first."""
    with Scripted(version()) as server:
        assert remote(server)(noise()[:0], []).shape == (0, 2)
    assert server.paths == ["/version"]


def test_the_cache_saves_requests_and_changes_no_bit(tmp_path):
    """In memory, and from a folder in another process; other pixels are asked for."""
    scorer = Counting()
    with serving(scorer, info=PER_VIEW) as server:
        client = remote(server, cache=ScoreCache(folder=tmp_path))
        first, again = client(noise(), PROMPTS), client(noise(), PROMPTS)
        later = remote(server, cache=ScoreCache(folder=tmp_path))(noise(), PROMPTS)
        assert scorer.calls == ["abba"]
        other = client(noise() * 0.5, PROMPTS)

    assert scorer.calls == ["abba", "abba"]
    assert torch.equal(first, again)
    assert torch.equal(first, later)
    assert torch.equal(other, Counting()(noise() * 0.5, PROMPTS))


def test_a_group_is_sent_whole_or_not_at_all():
    """What is computed together does not depend on what is known."""
    scorer = Counting()
    with serving(scorer, info=PER_VIEW) as server:
        client = remote(server, objects=2, cache=ScoreCache())
        client(noise()[:1], PROMPTS[:1])
        scores = client(noise(), PROMPTS)

    assert scorer.calls == ["a", "abb", "a"]
    assert torch.equal(scores, Counting()(noise(), PROMPTS))


def test_another_version_is_another_cache():
    """Its scores are not mixed with the old one's."""
    cache, newer = ScoreCache(), ScorerInfo(name="corner", version="2", kind="per_view")
    with serving(corner, info=PER_VIEW) as server:
        remote(server, cache=cache)(noise(), PROMPTS)
    scorer = Counting()
    with serving(scorer, info=newer) as server:
        scores = remote(server, cache=cache)(noise(), PROMPTS)

    assert scorer.calls == ["abba"]
    assert torch.equal(scores, Counting()(noise(), PROMPTS))


def test_two_clients_at_once_get_their_own_scores():
    """Three times each, in two threads."""
    found = {1.0: [], 0.5: []}
    with serving(corner, info=PER_VIEW) as server:

        def work(factor):
            client = RemotePerView(server.url, objects=1)
            found[factor] += [client(noise() * factor, PROMPTS) for _ in range(3)]

        threads = [threading.Thread(target=work, args=(factor,)) for factor in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for factor, tables in found.items():
        assert len(tables) == 3
        assert all(torch.equal(table, corner(noise() * factor, PROMPTS)) for table in tables)


def test_a_service_that_comes_back_gives_the_same_scores():
    """Between the groups of one call; the client waits in the meantime."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(Stopping(), info=PER_VIEW))
        port = server.server_port
        server.scorer.stop = server.server_close
        back = lambda: stack.enter_context(serving(corner, info=PER_VIEW, port=port))  # noqa: E731
        time = Time(on_sleep=back)
        scores = remote(server, objects=1, clock=time.clock, sleep=time.sleep)(noise(), PROMPTS)

    assert time.pauses == [0.5]
    assert torch.equal(scores, corner(noise(), PROMPTS))


class Stopping:
    """The corner's scorer, whose service lets no one in after its second call."""

    def __init__(self):
        self.calls, self.stop = 0, None

    def __call__(self, images, prompts):
        self.calls += 1
        if self.calls == 2:
            self.stop()
        return corner(images, prompts)


def test_a_service_that_is_not_there_yet_is_waited_for():
    """The first question too."""
    with serving(corner, info=PER_VIEW) as server:
        port = server.server_port
    with ExitStack() as stack:
        back = lambda: stack.enter_context(serving(corner, info=PER_VIEW, port=port))  # noqa: E731
        time = Time(on_sleep=back)
        client = RemotePerView(server.url, clock=time.clock, sleep=time.sleep)

        assert client.info() == PER_VIEW
    assert time.pauses == [0.5]


@pytest.mark.parametrize(
    "wrong",
    [
        b"garbage\r\n\r\n",
        http(200, b"garbage"),
        http(500, {"error": "out of memory"}),
        http(503, {"error": "busy"}),
        good(objects=2),
        http(200, {**INFO, "dtype": "float32", "scores": [[1.0]] * 3}),
        http(200, {**INFO, "version": "2", "dtype": "float32", "scores": [[1.0, 1.0]] * 3}),
        http(200, {**INFO, "dtype": "float32", "scores": [[1.0, None]] * 3}),
    ],
)
def test_a_wrong_answer_is_asked_for_again(wrong):
    """And nothing of it kept."""
    with Scripted(version(), wrong, wrong, good()) as server:
        scores = remote(server, cache=ScoreCache())(noise(), PROMPTS)

    assert torch.equal(scores, corner(noise(), PROMPTS))
    assert server.paths == ["/version"] + ["/score"] * 3


def test_a_wrong_introduction_is_asked_for_again():
    """A name, a kind and limits are needed."""
    answers = [http(200, {}), version(kind="both"), version(limits={"objects": 0})]
    with Scripted(*answers, version(), good()) as server:
        assert remote(server).info() == PER_VIEW
    assert server.paths == ["/version"] * 4


# -- errors ------------------------------------------------------------------------------


def test_wrong_answers_come_to_an_end():
    """After as many as patience says."""
    with Scripted(version(), good(objects=2)) as server:
        client = remote(server, patience=Patience(bad_answers=2))
        with pytest.raises(ScorerUnavailableError, match=r"2 wrong ones.*3 rows of 2"):
            client(noise(), PROMPTS)
    assert server.paths == ["/version", "/score", "/score"]


def test_silence_comes_to_an_end():
    """An exchange has a time limit, and so has the outage."""
    with Scripted(version(), lambda connection: connection.recv(1)) as server:
        client = remote(server)
        client.info()
        hurried = remote(server, patience=Patience(timeout_s=0.1, wait_s=0.0))
        hurried._service = client._described()
        with pytest.raises(ScorerUnavailableError, match=r"no whole answer in 0\.1 s"):
            hurried(noise(), PROMPTS)


def test_no_one_there_comes_to_an_end():
    """After the time that patience says."""
    with serving(corner, info=PER_VIEW) as server:
        pass
    time = Time()
    client = RemotePerView(
        server.url, patience=Patience(wait_s=90.0), clock=time.clock, sleep=time.sleep
    )
    with pytest.raises(ScorerUnavailableError, match=r"gave no usable answer for 90\.0 s"):
        client(noise(), PROMPTS)
    assert sum(time.pauses) == 90.0


def test_a_scorer_of_the_other_kind_is_refused():
    """At the first call, and at each later one."""
    with serving(lightest, info=JOINT) as server:
        client = remote(server)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"of a per_view scorer; the one at .* is joint"):
                client(noise(), PROMPTS)


def test_what_the_scorer_refuses_is_refused_here():
    """As a ValueError with its words, at once."""

    def picky(images, prompts):
        raise ValueError("no such part")

    with serving(picky, info=PER_VIEW) as server:
        with pytest.raises(RefusedError, match=r"\(422\): no such part"):
            remote(server, patience=IMPATIENT)(noise(), PROMPTS)
        limited = [*PROMPTS[:2], "x" * 5000]
        with pytest.raises(ValueError, match="`prompt_chars` must be at most 4096"):
            remote(server, patience=IMPATIENT)(noise(), limited)


def test_names_a_picture_that_is_broken():
    """The view; which object of the iteration it is, only the caller knows."""
    images = noise()
    images[0, 0, 0, 0, 0], images[2, 1, 0, 3, 3] = 2.0, float("nan")
    client = RemotePerView("http://127.0.0.1:9", patience=IMPATIENT)
    with pytest.raises(NonFiniteError, match="`images` must be finite; got nan at view 1"):
        client(images, PROMPTS)


@pytest.mark.parametrize("value", [-0.25, 1.25])
def test_rejects_images_out_of_range(value):
    """With the place."""
    images = noise()
    images[2, 1, 0, 3, 3] = value
    client = RemotePerView("http://127.0.0.1:9", patience=IMPATIENT)
    with pytest.raises(ValueError, match=rf"in \[0, 1\]; got {value} at object 2, view 1"):
        client(images, PROMPTS)


def test_rejects_arguments_that_disagree():
    """A prompt an object; a positive number of objects; one of two dtypes."""
    with pytest.raises(ValueError, match="`prompts` must hold one per object; got 1 for 3"):
        RemotePerView("http://127.0.0.1:9")(noise(), ["a"])
    with pytest.raises(ValueError, match="`objects` must be at least 1; got 0"):
        RemotePerView("http://127.0.0.1:9", objects=0)
