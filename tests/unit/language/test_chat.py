"""`language.chat`: oracle, laws, errors. A real server answers."""

import json

import pytest
import torch

from mvczigal_ref.language import chat as module
from mvczigal_ref.language.chat import (
    ChatAnswerError,
    ChatEndpoint,
    ChatRefusedError,
    ChatUnavailableError,
    png_data_url,
)
from tests.chat_stub import chat, decode, raw, serve
from tests.unannotated import without_shape_checks

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which are not waited for."""
    taken = []
    monkeypatch.setattr(module.time, "sleep", taken.append)
    return taken


def endpoint(url, **settings):
    """Ask with little patience, so that a fault ends a test soon."""
    return ChatEndpoint(url, "judge", **{"timeout_s": 20.0, "retries": 0, **settings})


def image(seed, height=3, width=5):
    """Noise of the given size."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


# -- oracle ------------------------------------------------------------------------------


def test_the_request_is_openais():
    """One user message: images, then text; every setting under the name servers know."""
    with serve(chat("fine")) as stub:
        asked = endpoint(stub.url, max_tokens=7, temperature=0.25, seed=3)
        answer = asked.ask("What is it?", [image(0), image(1)])
    (request,) = stub.requests

    assert answer == "fine"
    assert request.path == "/v1/chat/completions"
    assert request.headers["Content-Type"] == "application/json"
    content = request.body["messages"][0].pop("content")
    assert request.body == {
        "model": "judge",
        "messages": [{"role": "user"}],
        "max_tokens": 7,
        "temperature": 0.25,
        "seed": 3,
        "stream": False,
    }
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert content[-1]["text"] == "What is it?"


def test_an_image_arrives_to_the_byte():
    """Rounded to 8 bits and clamped, height and width not exchanged."""
    values = image(2, height=2, width=7) * 1.5 - 0.25
    expected = (values.clamp(0, 1) * 255).round() / 255

    assert torch.equal(decode(png_data_url(values)), expected)
    assert png_data_url(values) == png_data_url(values.clone())


def test_text_alone_is_a_plain_string():
    """Servers of language models know nothing else."""
    with serve(chat("yes")) as stub:
        endpoint(stub.url).ask("Näher, “bitte”")

    assert stub.requests[0].body["messages"] == [{"role": "user", "content": "Näher, “bitte”"}]


# -- laws --------------------------------------------------------------------------------


def test_images_keep_their_order_and_sizes():
    """The first image is the first that the model sees."""
    images = [image(0, 2, 2), image(1, 4, 3)]
    with serve(chat("yes")) as stub:
        endpoint(stub.url + "/").ask("?", images)

    assert stub.requests[0].path == "/v1/chat/completions"
    for sent, given in zip(stub.requests[0].images, images, strict=True):
        torch.testing.assert_close(sent, given, rtol=0.0, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(("own", "asked", "sent"), [(5, None, 5), (5, 9, 9), (None, 9, 9)])
def test_a_questions_seed_goes_before_the_endpoints(own, asked, sent):
    """So that the same question can be asked anew."""
    with serve(chat("yes")) as stub:
        endpoint(stub.url, seed=own).ask("?", seed=asked)

    assert stub.requests[0].body["seed"] == sent


def test_no_seed_is_not_sent():
    """Some servers refuse the field."""
    with serve(chat("yes")) as stub:
        endpoint(stub.url, seed=None).ask("?")

    assert "seed" not in stub.requests[0].body


def test_the_key_comes_from_the_environment(monkeypatch):
    """It is read when it is needed, and no key is sent where none is named."""
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    with serve(chat("yes")) as stub:
        keyed = endpoint(stub.url, api_key_env="JUDGE_KEY")
        keyed.ask("?")
        endpoint(stub.url).ask("?")

    assert stub.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in stub.requests[1].headers
    assert KEY not in repr(keyed)


def test_the_answer_is_stripped_and_writable():
    """Half a surrogate pair, which JSON can carry, becomes a question mark."""
    with serve(chat(" so\n \ud83d so \n")) as stub:
        assert endpoint(stub.url).ask("?") == "so\n ? so"


def broken(handler, request):
    """Hang up without a word."""
    handler.close_connection = True


@pytest.mark.parametrize(
    "fault",
    [raw(b"", status=500), raw(b"busy", status=429), raw(b"<html>"), raw(b'{"cho'), broken],
    ids=["500", "429", "page", "cut", "hung up"],
)
def test_what_may_pass_is_tried_again(fault, pauses):
    """A server that restarts, is busy or is cut off answers in the end."""
    with serve(fault, fault, chat("at last")) as stub:
        assert endpoint(stub.url, retries=2, backoff_s=0.5).ask("?") == "at last"

    assert len(stub.requests) == 3
    assert pauses == [0.5, 1.0]


def test_tries_and_pauses_end(pauses):
    """Pauses double up to a bound; then the last fault is told."""
    with (
        serve(raw(b"out of memory", status=503)) as stub,
        pytest.raises(ChatUnavailableError, match=r"status 503: 'out of mem.* last of 5 tries"),
    ):
        endpoint(stub.url, retries=4, backoff_s=8.0).ask("?")

    assert len(stub.requests) == 5
    assert pauses == [8.0, 16.0, 30.0, 30.0]


@pytest.mark.parametrize(
    ("header", "pause"), [("3", 3.0), ("86400", 30.0), ("-1", 0.5), ("nan", 0.5), ("soon", 0.5)]
)
def test_a_server_may_ask_for_a_longer_pause(header, pause, pauses):
    """Up to the same bound."""
    wait = raw(b"", status=429, headers={"Retry-After": header})
    with serve(wait, chat("yes")) as stub:
        endpoint(stub.url, retries=1).ask("?")

    assert pauses == [pause]


def test_nobody_there_is_an_outage(pauses):
    """A connection error, which an outage rule can wait for."""
    with serve(chat("gone")) as stub:
        pass
    with pytest.raises(ConnectionError, match="ConnectError"):
        endpoint(stub.url, retries=1).ask("?")

    assert len(pauses) == 1


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 400, 401, 404])
def test_a_refusal_is_not_repeated(status, pauses):
    """And a redirect is not followed, so that no other host sees the key."""
    with serve(
        raw(b"no such model", status=status, headers={"Location": "/v1/elsewhere"}), chat("x")
    ) as stub:
        with pytest.raises(ChatRefusedError, match=f"status {status}: 'no such model'"):
            endpoint(stub.url, retries=3).ask("?")
        assert len(stub.requests) == 1


def test_a_key_that_comes_back_is_not_told(monkeypatch):
    """Servers quote what they refuse."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with (
        serve(raw(f"bad key Bearer {KEY}!".encode(), status=401)) as stub,
        pytest.raises(ChatRefusedError, match=r"bad key Bearer \[key\]!") as caught,
    ):
        endpoint(stub.url, api_key_env="JUDGE_KEY").ask("?")

    assert KEY not in str(caught.value)


def quoting(status_line):
    """Answer by a line that is no HTTP."""

    def reply(handler, request):
        handler.wfile.write(status_line)
        handler.close_connection = True

    return reply


@pytest.mark.parametrize(
    "reply",
    [
        raw(f"<html>{KEY}</html>".encode()),
        raw(json.dumps({"error": KEY}).encode()),
        raw(json.dumps({"choices": [{"message": {"content": [KEY]}}]}).encode()),
    ],
    ids=["page", "other JSON", "no text"],
)
def test_a_key_in_a_failed_answer_is_not_told(reply, monkeypatch, pauses):
    """Whatever the status is."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serve(reply) as stub, pytest.raises((ChatAnswerError, ChatUnavailableError)) as caught:
        endpoint(stub.url, api_key_env="JUDGE_KEY").ask("?")

    assert "[key]" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", [KEY, 'sk-"quoted"\\key'])
def test_a_key_in_an_answer_is_left_out(key, monkeypatch):
    """A caption or a judge's message would quote it; JSON may write it otherwise."""
    monkeypatch.setenv("JUDGE_KEY", key)
    body = json.dumps({"choices": key}).encode()
    with serve(chat(f"You are {key}."), raw(body)) as stub:
        asked = endpoint(stub.url, api_key_env="JUDGE_KEY")

        assert asked.ask("?") == "You are [key]."
        with pytest.raises(ChatAnswerError, match=r"\[key\]"):
            asked.ask("?")


def test_escape_codes_do_not_reach_the_terminal(pauses):
    """A line that is no HTTP is quoted without them."""
    reply = quoting(b"\x1b[2J\x1b]0;owned\x07 \r\n\r\n")
    with serve(reply) as stub, pytest.raises(ChatUnavailableError) as caught:
        endpoint(stub.url).ask("?")

    assert str(caught.value).isprintable()


def test_a_url_with_a_password_is_not_quoted():
    """Nor one with a query, which may hold a key."""
    for url in (
        "http://me:secret@host/v1",
        "http://me:secret@host:port",
        "http://me:secret@[host",
        "me:secret@host",
        "http://host/v1?key=secret",
        "http://me:secret@ho\u2100st",
    ):
        with pytest.raises(ValueError, match="`base_url` must hold a host") as caught:
            ChatEndpoint(url, "judge")
        assert "secret" not in str(caught.value)


def test_a_body_without_end_is_refused(pauses):
    """It is read up to the bound and not again."""
    body = b'{"choices": "' + b"a" * (module.MAX_BODY_BYTES + 10)
    with serve(raw(body)) as stub:
        with pytest.raises(ChatAnswerError, match=f"at most {module.MAX_BODY_BYTES} bytes"):
            endpoint(stub.url, retries=2).ask("?")
        assert len(stub.requests) == 1


def test_the_longest_body_is_read():
    """One byte less than too long."""
    answer = {"choices": [{"message": {"content": "x"}}], "pad": ""}
    answer["pad"] = "a" * (module.MAX_BODY_BYTES - len(json.dumps(answer)))
    with serve(raw(json.dumps(answer).encode())) as stub:
        assert endpoint(stub.url).ask("?") == "x"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        7,
        {"choices": []},
        {"choices": {}},
        {"choices": [{}]},
        {"choices": [[]]},
        {"choices": [{"message": "hello"}]},
        {"choices": [{"message": {}}]},
    ],
)
def test_json_of_another_form_is_no_answer(answer):
    """It is quoted, and not retried."""
    with (
        serve(raw(json.dumps(answer).encode())) as stub,
        pytest.raises(ChatAnswerError, match=r"must hold choices\[0\]\.message\.content"),
    ):
        endpoint(stub.url, retries=1).ask("?")


@pytest.mark.parametrize("content", [None, "", "  \n", ["text"], 5])
def test_an_answer_without_text_is_none(content):
    """Nothing is made up."""
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    with serve(raw(body)) as stub, pytest.raises(ChatAnswerError, match="must hold text"):
        endpoint(stub.url).ask("?")


def test_deep_json_is_refused(pauses):
    """A parser has a depth."""
    with serve(raw(b"[" * 200_000)) as stub, pytest.raises(ChatUnavailableError, match="no JSON"):
        endpoint(stub.url).ask("?")


def test_a_cut_answer_is_refused():
    """A score of 4.5 that ends after the 4 would be another score."""
    with (
        serve(chat("Final Score: 4", reason="length")) as stub,
        pytest.raises(ChatAnswerError, match="Raise `max_tokens`"),
    ):
        endpoint(stub.url).ask("?")


def test_a_filtered_answer_is_refused():
    """What is left of it is not the model's."""
    with (
        serve(chat("I", reason="content_filter")) as stub,
        pytest.raises(ChatAnswerError, match="must hold text"),
    ):
        endpoint(stub.url).ask("?")


@pytest.mark.parametrize("value", [None, "", " ", "schlüssel-ü", "two\r\nlines"])
def test_refuses_a_key_that_no_header_holds(value, monkeypatch):
    """Before anything is sent, and without telling it."""
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with serve(chat("yes")) as stub:
        with pytest.raises(ValueError, match=r"`api_key_env` must name.*'JUDGE_KEY'") as caught:
            endpoint(stub.url, api_key_env="JUDGE_KEY").ask("?")
        assert not stub.requests

    assert not (value and value.strip()) or value.strip() not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000/v1",
        "ftp://host/v1",
        "http:///v1",
        "http://host:0/v1",
        "http://host:99999/v1",
        "http://host:port/v1",
        "http://[::1/v1",
        "http://host/v1?x=1",
        "http://host/v1#x",
        "http://host/v 1",
        "http://host/v1\r\nX: y",
        "http://hóst/v1",
    ],
)
def test_refuses_what_is_no_base_url(url):
    """When it is set, not when it is used."""
    with pytest.raises(ValueError, match="`base_url` must"):
        ChatEndpoint(url, "judge")


def test_refuses_a_password_in_the_url():
    """It would be saved with the settings; it is not quoted either."""
    with pytest.raises(ValueError, match="no password") as caught:
        ChatEndpoint("http://me:hunter2@host/v1", "judge")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""),
        ("timeout_s", 0.0),
        ("timeout_s", float("inf")),
        ("retries", -1),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("backoff_s", -1.0),
    ],
)
def test_refuses_settings_out_of_range(name, value):
    """By name."""
    with pytest.raises(ValueError, match=f"`{name}` must"):
        ChatEndpoint("http://host/v1", **{"model": "judge", name: value})


def test_refuses_unfit_images():
    """No pixels, other channels, or NaN."""
    for shape in [(1, 2, 2), (3, 0, 2)]:
        with pytest.raises(ValueError, match="`image` must be of shape"):
            png_data_url(torch.zeros(shape))
    with without_shape_checks(), pytest.raises(ValueError, match="`image` must be of shape"):
        png_data_url(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="`image` must be finite"):
        png_data_url(torch.full((3, 1, 1), float("nan")))
