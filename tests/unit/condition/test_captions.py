"""`captions`: oracle (answers and what is in them), laws, errors."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.condition.captions import CaptionRules, normalised
from mvczigal_ref.condition.protocol import CaptionError

RULES = CaptionRules()
WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=1, max_size=8, unique=True)


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("  A cat at dusk. \n", "A cat at dusk."),
        ('"A cat at dusk."', "A cat at dusk."),
        ("\u201cA cat\u201d", "A cat"),
        ("**A cat**", "A cat"),
        ("'It's a cat's toy'", "It's a cat's toy"),
        ('**"A  cat"**', "A cat"),
        ('"A" beside "B"', '"A" beside "B"'),
        ('A sign that says "open"', 'A sign that says "open"'),
        ("<think>\nHm.\n\nLight?\n</think>\n\nA cat at dusk", "A cat at dusk"),
        ("It wants light.</think>A cat at dusk", "A cat at dusk"),
        ("<think></think>A cat", "A cat"),
        ("A cat\tat dusk", "A cat at dusk"),
        ("Sure-footed goats on a cliff", "Sure-footed goats on a cliff"),
        ("Notes pinned to a wall", "Notes pinned to a wall"),
        ("a very, very, very old cat", "a very, very, very old cat"),
        ("\u4e00\u53ea\u732b", "\u4e00\u53ea\u732b"),
        ("A 3 a.m. street", "A 3 a.m. street"),
        ("A sign that says a < b, and 5 <3 > 2", "A sign that says a < b, and 5 <3 > 2"),
    ],
)
def test_the_caption_is_taken_out_of_the_answer(answer, caption):
    """Thoughts, quotes around the whole and blanks go; the rest stays as it is."""
    assert RULES.read(answer) == caption


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ('"..."', "empty"),
        ("<think>Hm.</think>", "empty"),
        ("<think>Hm, a cat", "thoughts do not end"),
        ("A cat.\nA dog.", "more than one line"),
        ("A cat\u2028at dusk", "more than one line"),
        ("A c\u0007at", "does not print"),
        ("A cat \ufffd", "does not print"),
        ("A \ud800 cat", "does not print"),
        ("A cat<|im_end|>", "markup"),
        ("```A cat```", "markup"),
        ("A cat<tool_call>", "markup"),
        ("A cat</tool_call> at dusk", "markup"),
        ("<image>A cat", "markup"),
        ("A cat<br />", "markup"),
        ("A cat</s>", "markup"),
        ("A cat <0x0A>", "markup"),
        ("A cat<extra-id_0>", "markup"),
        ("A cat<\uff5cend\u2581of\u2581sentence\uff5c>", "markup"),
        ("Here is the caption: a cat", "speaks of the caption"),
        ("Here's a cat", "speaks of the caption"),
        ("Sure! A cat", "speaks of the caption"),
        ("Caption: a cat", "speaks of the caption"),
        ("**Rewritten caption:** a cat", "speaks of the caption"),
        ("I am sorry", "speaks of the caption"),
        ("Sorry, no cats", "speaks of the caption"),
        ("A cat. I added a lamp.", "speaks of the caption"),
        ("A cat, unlike the original caption", "speaks of the caption"),
        ("As an AI, a cat", "speaks of the caption"),
        ("a cat a cat a cat a cat", "the same four times"),
        ("Blue light. Blue light. Blue light. Blue light.", "the same four times"),
    ],
)
def test_what_is_no_caption_is_refused_with_its_reason(answer, reason):
    """Every kind of refusal."""
    with pytest.raises(CaptionError, match=reason):
        RULES.read(answer)


# -- laws --------------------------------------------------------------------------------


@given(WORDS)
def test_reading_twice_is_reading_once(words):
    """A caption is its own answer."""
    text = " ".join(words)

    assert RULES.read(text) == RULES.read(f'<think>x</think> "{text}"\n') == text


@given(WORDS, st.integers(0, 30))
def test_a_bound_is_the_longest_that_passes(words, more):
    """One character over the bound is refused, and nothing is cut to fit."""
    text = " ".join(words)

    assert CaptionRules(max_characters=len(text) + more).read(text) == text
    if len(text) > 1:
        with pytest.raises(CaptionError, match=f"{len(text)} characters; at most"):
            CaptionRules(max_characters=len(text) - 1).read(text)


@pytest.mark.parametrize("end", [".", "!", "?!", '."', "\u3002"])
def test_sentences_are_counted(end):
    """Three sentences pass a bound of three and not one of two, whatever ends them."""
    text = " ".join(f"Number {number}{end}" for number in "abc")

    assert CaptionRules(max_sentences=3).read(text) == text
    with pytest.raises(CaptionError, match="3 sentences; at most 2"):
        CaptionRules(max_sentences=2).read(text)


@given(st.text(max_size=30))
def test_normal_form_is_its_own(text):
    """Case, punctuation, blanks and composition do not count, once and for all."""
    form = normalised(text)

    assert normalised(form) == form
    assert normalised(f"  {unicodedata.normalize('NFD', text)} !") == form


def test_normal_form_keeps_words_apart():
    """Letters, marks and digits count."""
    assert normalised("A cat-fish, 2!") == "a cat fish 2"
    assert normalised("catfish") != normalised("cat fish")
    assert normalised("\u0915\u093f") != normalised("\u0915\u0940")  # two vowel signs


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_characters", "max_sentences"])
def test_rejects_a_bound_below_one(name):
    """Nothing would pass."""
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1; got 0"):
        CaptionRules(**{name: 0})
