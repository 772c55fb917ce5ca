"""`stored`: oracle, laws (resume, threads), errors."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.offline import OfflineEnhancer
from mvczigal_ref.condition.protocol import CaptionError, ConditionEnhancer
from mvczigal_ref.condition.stored import StoredCaptions, enhance_prompts
from mvczigal_ref.language.chat import ChatUnavailableError
from tests.unit.condition.fakes import Scripted, Talker

PROMPTS = ["a cat", "a \u732b by the sea", "two birds\nand a dog"]


def enhance(out, *, prompts=PROMPTS, model=None, count=3, attempts=50, **options):
    enhancer = OfflineEnhancer(model or Talker(), num_captions=count, attempts=attempts)
    arguments = {"enhancer": enhancer, "seed": 0, "model_name": "talker", **options}
    return enhance_prompts(prompts, out, **arguments)


class Mortal(Talker):
    """Answer a number of questions, and then be gone."""

    def __init__(self, answers):
        super().__init__()
        self.left = answers

    def ask(self, text, images=(), *, seed=None):
        if not self.left:
            raise ChatUnavailableError("gone")
        self.left -= 1
        return super().ask(text, images, seed=seed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the bytes of a file made in one go."""
    out = tmp_path_factory.mktemp("whole") / "captions.jsonl"
    enhance(out)
    return out.read_bytes()


# -- oracle ------------------------------------------------------------------------------


def test_the_file_is_a_header_and_a_line_a_prompt(tmp_path):
    """Read without the package: how it was made, then captions in the prompts' order."""
    out = tmp_path / "folder" / "captions.jsonl"
    outcome = enhance(out)
    header, *records = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    enhancer = OfflineEnhancer(Talker(), num_captions=3, attempts=50)

    assert header == {"captions_file": 1, "model": "talker", "seed": 0, **enhancer.settings}
    assert [record["prompt"] for record in records] == PROMPTS
    for record, captions in zip(records, enhancer(PROMPTS, seed=0), strict=True):
        assert record["captions"] == [
            {"caption": c.caption, "instruction": c.instruction} for c in captions
        ]
    assert (outcome.written, outcome.skipped, outcome.refused) == (3, 0, {})


def test_what_was_stored_is_served(tmp_path):
    """In the order asked for, a prompt as often as it is asked for."""
    out = tmp_path / "captions.jsonl"
    enhance(out)
    made = OfflineEnhancer(Talker(), num_captions=3, attempts=50)(PROMPTS, seed=0)
    stored = StoredCaptions(out, num_captions=3)

    assert isinstance(stored, ConditionEnhancer)
    assert not stored.needs_images
    assert stored.num_captions(24) == 3
    assert stored([PROMPTS[2], PROMPTS[0], PROMPTS[2]], seed=9) == [made[2], made[0], made[2]]


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.data())
def test_resuming_after_any_cut_gives_the_same_file(tmp_path_factory, whole, data):
    """A cut at any byte: inside the header, a letter, a line, or at a line's end."""
    out = tmp_path_factory.mktemp("cut") / "captions.jsonl"
    out.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    lines = out.read_bytes().count(b"\n")
    outcome = enhance(out)

    assert out.read_bytes() == whole
    assert outcome.skipped == max(lines - 1, 0)


@pytest.mark.parametrize("answers", [0, 1, 4, 8])
def test_a_server_that_goes_away_costs_nothing_stored(tmp_path, whole, answers):
    """What was made before stays, and the next call goes on."""
    out = tmp_path / "captions.jsonl"
    with pytest.raises(ChatUnavailableError):
        enhance(out, model=Mortal(answers))
    assert whole.startswith(out.read_bytes())
    enhance(out)

    assert out.read_bytes() == whole


def test_threads_do_not_change_the_file(tmp_path, whole):
    """Nor does the number of prompts asked about at once."""
    enhance(tmp_path / "captions.jsonl", workers=3)

    assert (tmp_path / "captions.jsonl").read_bytes() == whole


def test_prompts_are_done_once(tmp_path, whole):
    """A prompt that occurs twice, and all of a file that is whole, are skipped."""
    out = tmp_path / "captions.jsonl"
    first = enhance(out, prompts=[*PROMPTS, PROMPTS[0]])
    again = enhance(out, model=Mortal(0))

    assert out.read_bytes() == whole
    assert (first.written, first.skipped) == (3, 1)
    assert (again.written, again.skipped) == (0, 3)


def test_a_refused_prompt_is_named_and_the_others_stored(tmp_path):
    """One bad prompt of many does not stop a long run, and is tried again by the next."""
    out = tmp_path / "captions.jsonl"
    outcome = enhance(out, model=Scripted("", "a cat at dusk"), count=1, attempts=1)

    assert (outcome.written, list(outcome.refused)) == (2, [PROMPTS[0]])
    assert "it is empty" in outcome.refused[PROMPTS[0]]
    again = enhance(out, model=Scripted("a cat at dusk"), count=1, attempts=1)
    assert (again.written, again.skipped) == (1, 2)


def test_fewer_captions_than_stored_are_drawn_anew_for_each_seed(tmp_path):
    """Without repeats, and alike for equal seeds."""
    out = tmp_path / "captions.jsonl"
    enhance(out, count=5)
    stored = StoredCaptions(out, num_captions=2)
    draws = [tuple(c.caption for c in stored(["a cat"], seed=seed)[0]) for seed in range(20)]

    assert all(len(set(pair)) == 2 for pair in draws)
    assert len(set(draws)) > 4
    assert stored(["a cat"], seed=3) == stored(["a cat"], seed=3)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "`seed` is 0 there and 1 here"),
        ({"count": 2}, "`num_captions` is 3 there and 2 here"),
        ({"model_name": "other"}, "`model` is 'talker' there and 'other' here"),
    ],
)
def test_rejects_a_file_made_in_another_way(tmp_path, whole, options, message):
    """And leaves it as it is."""
    out = tmp_path / "captions.jsonl"
    out.write_bytes(whole + b'{"cut')
    with pytest.raises(CaptionError, match=message):
        enhance(out, **options)

    assert out.read_bytes() == whole + b'{"cut'


def test_rejects_a_file_of_something_else(tmp_path):
    """A prompts file named as output by mistake is not cut."""
    out = tmp_path / "prompts.txt"
    for content in (b"a cat", b"a cat\na dog\n"):
        out.write_bytes(content)
        with pytest.raises(CaptionError, match="must hold"):
            enhance(out)
        assert out.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[1]",
        b"not JSON",
        b"\xff",
        b'{"prompt": 3, "captions": []}',
        b'{"prompt": "a cow", "captions": [{"caption": "a cow"}]}',
        b'{"prompt": "a cow", "captions": [{"caption": 1, "instruction": "add"}]}',
        b'{"prompt": "a cat", "captions": []}',
    ],
)
def test_rejects_a_damaged_line(tmp_path, whole, line):
    """By its number; a prompt that stands there twice is damage too."""
    out = tmp_path / "captions.jsonl"
    out.write_bytes(whole + line + b"\n")
    for read in (lambda: StoredCaptions(out, num_captions=3), lambda: enhance(out)):
        with pytest.raises(
            CaptionError,
            match=r"line 5 (of .* must hold one new prompt's captions|holds the byte 0xff)",
        ):
            read()


@pytest.mark.parametrize("line", [b"[1]\n", b'{"captions_file": 2}\n', b'{"prompt": "a"}\n'])
def test_rejects_another_header(tmp_path, line):
    """Such as that of a later version."""
    (tmp_path / "captions.jsonl").write_bytes(line)
    with pytest.raises(CaptionError, match=r"line 1 .* must hold the header"):
        StoredCaptions(tmp_path / "captions.jsonl", num_captions=1)


def test_rejects_absent_prompts_by_name(tmp_path):
    """Three are named and the others counted."""
    out = tmp_path / "captions.jsonl"
    enhance(out)
    stored = StoredCaptions(out, num_captions=1)
    with pytest.raises(CaptionError, match=r"absent: 'one', 'two', 'three' and 2 more\. Make them"):
        stored(["a cat", "one", "two", "one", "three", "four", "five"], seed=0)


def test_rejects_fewer_captions_than_asked_for(tmp_path):
    """When the file is opened, not in the midst of training."""
    out = tmp_path / "captions.jsonl"
    enhance(out)
    with pytest.raises(
        CaptionError, match=r"`num_captions` must be at most .* 3 for 'a cat'; got 4"
    ):
        StoredCaptions(out, num_captions=4)
    with pytest.raises(ValueError, match="`num_captions` must be at least 1; got 0"):
        StoredCaptions(out, num_captions=0)


def test_rejects_a_file_that_is_absent_or_empty(tmp_path):
    """There is nothing to serve."""
    with pytest.raises(CaptionError, match="cannot read captions from"):
        StoredCaptions(tmp_path / "absent.jsonl", num_captions=1)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CaptionError, match="holds no whole line"):
        StoredCaptions(tmp_path / "empty.jsonl", num_captions=1)


def test_rejects_an_enhancer_with_a_memory(tmp_path):
    """What it served before would change the file."""
    enhancer = OfflineEnhancer(Talker(), num_captions=1, memory=CaptionMemory())
    with pytest.raises(ValueError, match="`enhancer` must have no memory"):
        enhance(tmp_path / "captions.jsonl", enhancer=enhancer)


def test_a_file_that_an_editor_saved_is_read(tmp_path):
    """With a byte-order mark and its own line ends; in another encoding it is refused by name."""
    out = tmp_path / "captions.jsonl"
    enhance(out)
    stored = StoredCaptions(out, num_captions=1)
    text = out.read_bytes().decode().replace("\n", "\r\n")
    out.write_bytes(text.encode("utf-8-sig"))
    again = StoredCaptions(out, num_captions=1)
    assert again(PROMPTS, seed=0) == stored(PROMPTS, seed=0)
    for encoding, told in (("utf-16", "it is in UTF-16"), ("utf-16-le", "NUL bytes")):
        out.write_bytes(text.encode(encoding))
        with pytest.raises(
            CaptionError, match=rf"captions\.jsonl' must be text in UTF-8; .*{told}"
        ):
            StoredCaptions(out, num_captions=1)
    out.write_bytes(text.encode() + b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(CaptionError, match="holds the byte 0xe9"):
        StoredCaptions(out, num_captions=1)
    out.write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(CaptionError, match=r"line 1 .* must hold the header"):
        StoredCaptions(out, num_captions=1)
