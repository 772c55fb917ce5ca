"""Hostile servers: whatever one answers, a client scores, asks again or refuses, in time."""

import json
import os
import random
from pathlib import Path

import torch

from mvczigal_ref.errors import ServiceUnavailableError
from mvczigal_ref.language.chat import ChatAnswerError, ChatEndpoint
from mvczigal_ref.reward.service import Patience, RefusedError, RemotePerView
from tests.torture.damage import damaged
from tests.torture.tally import Tally, require_line
from tests.unit.reward.service.doubles import (
    INFO,
    PROMPTS,
    Scripted,
    Time,
    corner,
    http,
    noise,
    version,
)

KEY, VARIABLE = "sk-very-secret", "TORTURE_KEY"
VALUES = (None, -1, 1e999, "x", [], {}, [[]], [[1.0, None]] * 3, [["1", "2"]] * 3, True, 2**70,
          [[1.0, 2.0]] * 3, [[1.0, 2.0]] * 2, "\x1b[2J", "x" * 100_000)  # fmt: skip
HEADS = (
    "Content-Length: -1", "Content-Length: 99999999999", "Content-Length: x",
    "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Location: http://127.0.0.1:9/",
    "Content-Length: 3\r\nContent-Length: 4", "X: " + "y" * 70_000, "Retry-After: 1e99",
)  # fmt: skip


def torture(tally: Tally, chance: random.Random, count: int, folder: Path) -> None:
    """Answer a scorer's client, and a chat model's, by what no service should say."""
    del folder
    tally.limit = 20.0
    os.environ[VARIABLE] = KEY
    for place in range(count):
        kind, call = chance.choice([("scorer", _score), ("chat", _chat)])
        with tally.attempt(f"{kind} {place}"):
            call(tally, chance)


def tell(message: str) -> None:
    """Fail where a message tells the key."""
    assert KEY not in message, "the key is told"


def _answer(chance: random.Random, good: dict) -> bytes:
    """Make a bad answer of a good one."""
    kind, status = (
        chance.random(),
        chance.choice([200, 200, 200, 204, 301, 400, 401, 429, 500, 503]),
    )
    if kind < 0.3:
        name = chance.choice(list(good))
        return http(status, good | {name: chance.choice(VALUES)})
    body = json.dumps(good).encode()
    if kind < 0.6:
        return http(status, damaged(chance, body))
    if kind < 0.8:
        head = chance.choice(HEADS)
        size = chance.choice([b"", b"-1\r\n", b"ffffffffff\r\n", b"5\r\nabc"])
        return f"HTTP/1.1 {status} X\r\n{head}\r\n\r\n".encode() + size + body
    return damaged(chance, http(status, body))


def _score(tally: Tally, chance: random.Random) -> None:
    scores = corner(noise(), PROMPTS)
    good = {**INFO, "dtype": "float32", "scores": scores.tolist()}
    answers = [_answer(chance, good) for _ in range(2)]
    first = version() if chance.random() < 0.8 else _answer(chance, {**INFO, "limits": {}})
    time = Time()
    patience = Patience(timeout_s=2.0, wait_s=3.0, bad_answers=3)
    with Scripted(first, *answers) as server:
        client = RemotePerView(server.url, patience=patience, clock=time.clock, sleep=time.sleep)
        try:
            found = client(noise(), PROMPTS)
        except (ServiceUnavailableError, RefusedError) as error:
            tally.note("refused")
            require_line(str(error))
        else:
            # A number in the answer may have been damaged into another one.
            assert found.shape == scores.shape
            assert bool(torch.isfinite(found).all())


def _chat(tally: Tally, chance: random.Random) -> None:
    message = {"role": "assistant", "content": f"a red cube {KEY}"}
    good = {"choices": [{"message": message, "finish_reason": "stop"}], "key": KEY}
    answers = [_answer(chance, good) for _ in range(2)]
    with Scripted(*answers) as server:
        endpoint = ChatEndpoint(
            server.url, "m", api_key_env=VARIABLE, timeout_s=2.0, retries=1, sleep=lambda _: None
        )
        try:
            text = endpoint.ask("a question")
        except (ServiceUnavailableError, ChatAnswerError) as error:
            tally.note("refused")
            require_line(str(error))
            tell(str(error))
        else:
            assert isinstance(text, str)
