"""`reward.service.connection`: one exchange, and how long it is tried again."""

import logging
import socket
import time
import tracemalloc

import pytest

from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.language.bounded_http import TryAgainError
from mvczigal_ref.reward.service.connection import BadAnswerError, Connection, Patience
from mvczigal_ref.reward.service.server import serving
from mvczigal_ref.reward.service.terms import Limits, RefusedError
from tests.unit.reward.service.doubles import PER_VIEW, Scripted, Time, corner, http

PATIENCE = Patience(
    timeout_s=60.0, wait_s=20.0, bad_answers=3, first_pause_s=1.0, longest_pause_s=4.0
)
NO_ONE = "http://127.0.0.1:9"


def failing(*errors):
    """Raise these in order, then return "done"."""
    left = list(errors)

    def attempt():
        if left:
            raise left.pop(0)
        return "done"

    return attempt


def connect(url=NO_ONE, patience=PATIENCE):
    """Connect with a clock of the test's own."""
    time = Time()
    return Connection(url, patience=patience, clock=time.clock, sleep=time.sleep), time


# -- oracle ------------------------------------------------------------------------------


def test_pauses_double_up_to_the_longest():
    """From the first: 1, 2, 4, 4 ..."""
    connection, time = connect()

    assert connection.persist(failing(*[TryAgainError("down")] * 5)) == "done"
    assert time.pauses == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_an_outage_is_waited_for_up_to_the_bound():
    """The last pause is cut to what is left, and an exchange follows it."""
    connection, time = connect()
    with pytest.raises(ScorerUnavailableError, match=r"for 20\.0 s .*: down") as caught:
        connection.persist(failing(*[TryAgainError("down")] * 99))

    assert time.pauses == [1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 1.0]
    assert isinstance(caught.value, ConnectionError)


def test_wrong_answers_are_counted():
    """However patient the clock is; an outage between them does not count."""
    connection, time = connect()
    errors = [BadAnswerError("x"), TryAgainError("down"), BadAnswerError("x"), BadAnswerError("y")]
    with pytest.raises(ScorerUnavailableError, match=r"3 wrong ones.*last time: y"):
        connection.persist(failing(*errors))

    assert time.pauses == [1.0, 2.0, 4.0]
    assert connect()[0].persist(failing(*errors[:3])) == "done"


# -- laws --------------------------------------------------------------------------------


def test_a_refusal_is_final():
    """Asking again would not help."""
    connection, time = connect()
    with pytest.raises(RefusedError, match="no"):
        connection.persist(failing(RefusedError("no")))

    assert time.pauses == []


def test_an_outage_is_told_once_and_so_is_its_end(caplog):
    """However many exchanges it takes; what goes well is not told."""
    connection, _ = connect()
    with caplog.at_level(logging.WARNING):
        connection.persist(failing())
        connection.persist(failing(*[TryAgainError("down")] * 4))

    assert [record.getMessage() for record in caplog.records] == [
        f"the scorer at {NO_ONE} does not serve (down); trying again for 20 s",
        f"the scorer at {NO_ONE} is back after 11.0 s",
    ]


def test_a_service_may_ask_for_a_longer_pause():
    """Up to the longest, and to what is left."""
    connection, time = connect()
    errors = [TryAgainError("busy", 3.0), TryAgainError("busy"), TryAgainError("busy", 99.0)]

    assert connection.persist(failing(*errors)) == "done"
    assert time.pauses == [3.0, 2.0, 4.0]


def test_what_is_no_outage_is_not_repeated():
    """Such as a fault of this program."""
    connection, time = connect()
    with pytest.raises(OSError, match="no such file"):
        connection.persist(failing(OSError("no such file")))

    assert time.pauses == []


def test_no_patience_is_one_exchange():
    """With `wait_s` 0."""
    connection, time = connect(patience=Patience(wait_s=0.0))
    with pytest.raises(ScorerUnavailableError):
        connection.persist(failing(TryAgainError("down")))

    assert time.pauses == []


def test_a_path_of_the_url_comes_first():
    """Behind a server that sorts by path."""
    with Scripted(http(200, {"a": 1})) as server:
        connection, _ = connect(f"{server.url}/scorers/corner/")

        assert connection.get("/version") == {"a": 1}
    assert server.paths == ["/scorers/corner/version"]


def test_a_refusal_is_read_though_the_body_was_not():
    """Of a body that fits into no buffer between the two."""
    with serving(corner, info=PER_VIEW, limits=Limits(body_bytes=1000)) as server:
        connection, _ = connect(server.url)
        with pytest.raises(RefusedError, match=r"\(413\).*`body_bytes` must be at most 1000"):
            connection.post("/score", bytes(2**24))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (http(200, b"<html>"), BadAnswerError, "cannot be read"),
        (http(200, [1]), BadAnswerError, "cannot be read: it must be a JSON object"),
        (http(200, b" " * (2**20 + 1)), BadAnswerError, "longer than 1048576 bytes"),
        (http(301, {}), BadAnswerError, "status 301"),
        (http(500, {"error": "out of memory"}), BadAnswerError, "status 500: out of memory"),
        (http(503, {"error": "busy"}), TryAgainError, "status 503: busy"),
        (http(502, b"<html>"), TryAgainError, "status 502: no reason"),
        (http(422, {"error": "no such part"}), RefusedError, r"\(422\): no such part"),
        (http(404, b""), RefusedError, r"\(404\): no reason"),
    ],
)
def test_answers_are_sorted(answer, error, message):
    """Into wrong ones, an outage, and what is final."""
    with Scripted(answer) as server, pytest.raises(error, match=message):
        connect(server.url)[0].get("/version")


def endless(size):
    """Send chunks of a named size, and bytes for as long as they are taken."""

    def answer(connection):
        connection.sendall(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + size)
        for _ in range(200):
            connection.sendall(b"a" * 2**20)

    return answer


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (b"-1\r\n", TryAgainError, "RemoteProtocolError"),
        (b"7fffffffff\r\n", BadAnswerError, "longer than 1048576 bytes"),
    ],
)
def test_a_chunk_without_end_is_bounded(size, error, message):
    """The answer is read up to the bound, whatever size the service names."""
    tracemalloc.start()
    try:
        with Scripted(endless(size)) as server, pytest.raises(error, match=message):
            connect(server.url)[0].get("/version")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", [400, 500, 503])
def test_escape_codes_do_not_reach_the_terminal(status):
    """The service's words are shown without them."""
    with (
        Scripted(http(status, {"error": "\x1b[2J\x07bad\nluck"})) as server,
        pytest.raises((BadAnswerError, TryAgainError, RefusedError)) as caught,
    ):
        connect(server.url)[0].get("/version")

    assert str(caught.value).isprintable()
    assert "bad luck" in str(caught.value)


def test_escape_codes_of_a_wrong_answer_are_not_logged(caplog):
    """Neither in the log nor in the error."""
    connection, _ = connect()
    with pytest.raises(ScorerUnavailableError) as caught:
        connection.persist(failing(*[BadAnswerError("\x1b[2J")] * 3))

    assert all(text.isprintable() for text in (str(caught.value), *caplog.messages))


@pytest.mark.parametrize("url", ["http://me:secret@host", "me:secret@host", "http://h/?k=secret"])
def test_a_url_with_a_password_is_not_quoted(url):
    """The message says what is wrong without it."""
    with pytest.raises(ValueError, match=r"`url` must hold a host.* no password") as caught:
        connect(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"", b"\x00\xff\r\n\r\n", b"HTTP/1.1 200"])
def test_what_is_no_http_is_an_outage_or_a_wrong_answer(answer):
    """And is tried again."""
    good = http(200, {"a": 1})
    with Scripted(answer, answer, good) as server:
        connection, time = connect(server.url)

        assert connection.persist(lambda: connection.get("/version")) == {"a": 1}
    assert time.pauses == [1.0, 2.0]


def test_no_one_there_is_an_outage():
    """A port that was let go."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TryAgainError, match=r"ConnectError: .*refused"):
        connect(f"http://127.0.0.1:{port}")[0].get("/version")


def drip(connection):
    """Send a header byte by byte, for far too long."""
    connection.sendall(b"HTTP/1.1 200 X\r\nA: ")
    for _ in range(500):
        connection.sendall(b"a")
        time.sleep(0.01)


def silence(connection):
    """Say nothing until the client has gone."""
    connection.recv(1)


@pytest.mark.parametrize(("answer", "limit"), [(drip, 0.5), (silence, 0.1)])
def test_an_exchange_ends_in_time(answer, limit):
    """Also where every single byte comes in time."""
    with Scripted(answer) as server:
        connection, _ = connect(server.url, Patience(timeout_s=limit))
        with pytest.raises(TryAgainError, match=rf"no whole answer in {limit:g} s"):
            connection.get("/version")


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:80",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "http://",
        "http://a:b@host",
        "http://host/?a=b",
        "http://host/#a",
        "http://host:port",
    ],
)
def test_rejects_what_is_no_address(url):
    """HTTP or HTTPS, a host, perhaps a port and a path."""
    with pytest.raises(ValueError, match=r"`url` must (be like|hold a host)"):
        connect(url)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("timeout_s", 0.0, "positive"),
        ("wait_s", -1.0, "0 or more"),
        ("wait_s", float("nan"), "0 or more"),
        ("bad_answers", 0, "positive"),
        ("first_pause_s", 0.0, "positive"),
        ("longest_pause_s", 0.0, "positive"),
    ],
)
def test_rejects_a_patience_without_bounds(name, value, rule):
    """Pauses of nothing would be no pauses."""
    with pytest.raises(ValueError, match=f"`{name}` must be {rule}; got {value!r}"):
        Patience(**{name: value})
