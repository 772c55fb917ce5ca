"""`files`: old content or new, and one text for equal values."""

import pytest

from mvczigal_ref import files
from mvczigal_ref.files import atomic_write, to_json


class Killed(BaseException):
    """Stands for a kill: no handler catches it."""


@pytest.mark.parametrize("content", ["naïve\n", b"\x00\xff"])
def test_writes_what_it_is_given(tmp_path, content):
    """Text as UTF-8, bytes as they are, in a folder that is made."""
    path = tmp_path / "a" / "b"
    atomic_write(path, content)

    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in path.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_kill_leaves_the_old_content_or_the_new(tmp_path, monkeypatch, survived):
    """Whichever call of the file system is the last: never a part, never nothing."""
    path = tmp_path / "file"
    atomic_write(path, "old")
    calls = []

    def syncing(_):
        calls.append(path.read_text())
        if len(calls) > survived:
            raise Killed

    monkeypatch.setattr(files, "sync", syncing)
    try:
        atomic_write(path, "new")
    except Killed:
        assert path.read_text() == ("old" if survived == 0 else "new")

    # The content is on the disk before the name is: the first sync still sees the old one.
    assert calls == ["old", "new"][: survived + 1]


def test_equal_values_have_one_text():
    """Whatever the order of their keys; the text reads back to the same bits."""
    assert to_json({"b": 0.1, "a": [1]}) == to_json({"a": [1], "b": 0.1})
    assert to_json({"b": 0.1, "a": [1]}) == '{\n  "a": [\n    1\n  ],\n  "b": 0.1\n}\n'


def test_json_without_words_for_it_is_refused():
    """NaN would be no JSON."""
    with pytest.raises(ValueError, match="JSON"):
        to_json(float("nan"))
