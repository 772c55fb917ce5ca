"""Damage to bytes: flips, cuts, doublings, foreign beginnings."""

import random

__all__ = ["damaged"]

FOREIGN = (
    b"",
    b"<!DOCTYPE html><html><body>404</body></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b'{"error":"restricted"}',
    b"\x80\x04\x95",
    b"PK\x03\x04",
    b"\x00" * 64,
    b"\xff\xfea\x00",
)


def damaged(chance: random.Random, content: bytes) -> bytes:
    """Change some bytes of a file, cut it, repeat a part, or put something else in its place."""
    data, kind = bytearray(content), chance.random()
    if kind < 0.05 or not data:
        return chance.choice(FOREIGN)
    if kind < 0.2:
        return bytes(data[: chance.randrange(len(data))])
    if kind < 0.3:
        at, length = chance.randrange(len(data)), chance.randrange(1, 64)
        return bytes(data[:at] + data[at : at + length] * 2 + data[at:])
    # Most of the sense lies at the beginning and the end of a file.
    span = chance.choice([16, 64, 256, len(data)])
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(min(span, len(data)))
        at = len(data) - 1 - at if chance.random() < 0.3 else at
        data[at] = chance.randrange(256)
    return bytes(data)
