"""`language.bounded_http`: bounds on time and bytes, proxies, no secret in a message."""

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
import traceback
import tracemalloc
from contextlib import contextmanager, suppress

import pytest

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.language import bounded_http
from mvczigal_ref.language.bounded_http import Reply, TryAgainError, checked_url, exchange
from tests.chat_stub import raw, serve

BOUND = 1000  # longest answer [bytes]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    """Leave the machine's own proxies out."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def post(url, *, timeout_s=20.0, **headers):
    """Send an empty JSON object."""
    return exchange(
        "POST", url, b"{}", headers={"X-Key": "secret", **headers}, timeout_s=timeout_s,
        max_bytes=BOUND,
    )  # fmt: skip


def saying(*parts, pause=0.0, times=1):
    """Send bytes as they are, some of them again and again."""

    def reply(handler, request):
        handler.close_connection = True
        handler.wfile.write(parts[0])
        for _ in range(times):
            for part in parts[1:]:
                handler.wfile.write(part)
                time.sleep(pause)

    return reply


# -- laws --------------------------------------------------------------------------------


def test_an_answer_is_given_as_it_came():
    """Status, body, and the pause that was asked for."""
    reply = raw(b"busy", status=503, headers={"Retry-After": "7"})
    with serve(reply) as stub:
        answer = post(stub.url)

    assert answer == Reply(status=503, content=b"busy", retry_after_s=7.0)
    assert stub.requests[0].headers["X-Key"] == "secret"
    assert stub.requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "reply",
    [
        raw(b"a" * (BOUND + 50)),
        raw(b"a" * (BOUND + 1), headers={"Content-Length": str(10**15)}),
        saying(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 2**20, times=99),
        saying(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", b"a" * 2**20,
            times=99,
        ),
        saying(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"400\r\n" + b"a" * 1024,
            b"\r\n", times=10**5,
        ),
    ],
    ids=["too long", "cut", "endless", "one chunk", "chunks"],
)  # fmt: skip
def test_a_body_is_read_up_to_the_bound(reply):
    """One byte more than allowed shows that it is longer; memory stays small."""
    tracemalloc.start()
    try:
        with serve(reply) as stub:
            answer = post(stub.url)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()

    assert answer.content == b"a" * (BOUND + 1)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"a" * 2**20),
            "RemoteProtocolError",
        ),
        (saying(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 2**16, times=999), "RemoteProtocolError"),
        (
            raw(gzip.compress(b"a" * 10**6), headers={"Content-Encoding": "gzip"}),
            "a compressed answer",
        ),
        (saying(b""), "RemoteProtocolError"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), "RemoteProtocolError"),
    ],
    ids=["chunk of -1", "endless header", "gzip", "nothing", "cut"],
)
def test_a_broken_answer_may_be_asked_for_again(reply, message):
    """In little memory."""
    tracemalloc.start()
    try:
        with serve(reply) as stub, pytest.raises(TryAgainError, match=message):
            post(stub.url)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "slow",
    [
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b" ", pause=0.05, times=60),
        saying(b"HTTP/1.1 200 OK\r\nX: ", b"x", pause=0.05, times=60),
        saying(b"", b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.05, times=60),
        saying(b"", b"", pause=3.0),
    ],
    ids=["body", "header", "continue", "silence"],
)
def test_a_slow_server_is_left_in_time(slow):
    """The limit holds for the whole exchange, not for each byte of it."""
    with serve(slow) as stub:
        start = time.monotonic()
        with pytest.raises(TryAgainError, match=r"no whole answer in 0\.3 s"):
            post(stub.url, timeout_s=0.3)
        assert time.monotonic() - start < 2.0


def test_a_server_that_takes_no_body_is_left_in_time():
    """Sending has the same limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = time.monotonic()
        with pytest.raises(TryAgainError, match=r"no whole answer in 0\.3 s"):
            exchange(
                "POST", f"http://127.0.0.1:{listener.getsockname()[1]}", bytes(2**25), headers={},
                timeout_s=0.3, max_bytes=BOUND,
            )  # fmt: skip
        assert time.monotonic() - start < 2.0


@pytest.fixture
def certificate(tmp_path):
    """Make a certificate of this machine that nobody has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1",
         *files],
        check=True, capture_output=True,
    )  # fmt: skip
    yield tmp_path / "cert.pem"
    bounded_http._certificates.cache_clear()


@contextmanager
def secure(certificate, *parts):
    """Answer one request over TLS, by parts with a pause after each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with suppress(OSError), context.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.recv(2**16)
                for part in parts:
                    wrapped.sendall(part)
                    time.sleep(0.05)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join()


def test_a_certificate_is_trusted_where_the_environment_names_it(certificate, monkeypatch):
    """Otherwise the key would go to anyone; trying again would not help."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
    with (
        secure(certificate, answer) as url,
        pytest.raises(ConfigError, match="SSL_CERT_FILE") as caught,
    ):
        post(url)
    assert str(caught.value).isprintable()

    bounded_http._certificates.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with secure(certificate, answer) as url:
        assert post(url).content == b"yes"


def test_a_slow_answer_over_tls_is_left_in_time(certificate, monkeypatch):
    """The connection that is hung up is the encrypted one."""
    bounded_http._certificates.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with secure(certificate, b"HTTP/1.1 200 OK\r\nX: ", *[b"x"] * 60) as url:
        start = time.monotonic()
        with pytest.raises(TryAgainError, match=r"no whole answer in 0\.3 s"):
            post(url, timeout_s=0.3)
        assert time.monotonic() - start < 2.0


@contextmanager
def dripping_tls():
    """Begin a TLS handshake that never ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"\x16\x03\x03\x3f\xff\x02")  # a record of 16383 bytes
                try:
                    for _ in range(60):
                        connection.sendall(b"\x00")
                        time.sleep(0.05)
                except OSError:
                    pass

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_a_slow_handshake_is_left_in_time():
    """TLS is part of the exchange."""
    with dripping_tls() as url:
        start = time.monotonic()
        with pytest.raises(TryAgainError, match=r"no whole answer in 0\.3 s"):
            post(url, timeout_s=0.3)
        assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    "reply",
    [
        saying(b"Bearer secret\x1b[2J\r\n\r\n"),
        saying(b"HTTP/1.1 200 OK\r\nBearer secret\x1b[2J\r\n\r\n"),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: Bearer secret\x1b[2J\r\n\r\n"),
        saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\x1b[2J\r\n"),
    ],
)
def test_an_answer_that_is_no_http_is_not_quoted(reply):
    """It may hold the key, and codes that a terminal obeys."""
    with serve(reply) as stub, pytest.raises(TryAgainError, match="RemoteProtocolError") as caught:
        post(stub.url)

    trace = "".join(traceback.format_exception(caught.value))
    assert "secret" not in trace.replace('"X-Key": "secret"', "")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status):
    """Another host would see the key."""
    with (
        serve(raw(b"yes")) as other,
        serve(raw(b"go", status=status, headers={"Location": other.url})) as stub,
    ):
        assert post(stub.url).status == status

    assert not other.requests


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    """It gets the whole address."""
    with serve(raw(b"by proxy")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        answer = post("http://judge.example:8000/v1")

    assert answer.content == b"by proxy"
    assert proxy.requests[0].path == "http://judge.example:8000/v1"


def test_this_machine_is_reached_without_a_proxy(monkeypatch):
    """A proxy elsewhere would not find it."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serve(raw(b"direct")) as stub:
        assert post(stub.url).content == b"direct"
        assert post(stub.url.replace("127.0.0.1", "localhost")).content == b"direct"


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", ["ftp://me:hunter2@proxy", "http://me:hunter2@proxy:port"])
def test_a_proxy_that_cannot_be_used_is_a_setting(monkeypatch, proxy):
    """Its password is not quoted."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigError, match="HTTP_PROXY") as caught:
        post("http://judge.example/v1")

    assert "hunter2" not in str(caught.value)


def test_no_connection_is_a_fault_that_may_pass():
    """A server that is not there yet."""
    with serve(raw(b"")) as stub:
        pass
    with pytest.raises(TryAgainError, match="ConnectError"):
        post(stub.url)


@pytest.mark.parametrize("url", ["http://[fe80::1%25x]:y", "http://a b", "http://host:0", "x"])
def test_rejects_what_is_no_base_url(url):
    """By the argument's name."""
    with pytest.raises(ValueError, match="`place` must"):
        checked_url(url, name="place")
