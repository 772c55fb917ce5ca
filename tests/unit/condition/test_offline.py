"""`offline`: oracle, laws, errors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.condition.captions import CaptionRules, normalised
from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.offline import EDITS, OfflineEnhancer
from mvczigal_ref.condition.protocol import CaptionError, stream
from tests.unit.condition.fakes import Scripted, Talker

PROMPTS = ["a cat", "a dog by the sea", "two birds"]


def test_each_caption_draws_its_own_edit():
    """By seed, prompt and number of the caption; the question holds the edit and the prompt."""
    model = Scripted("one", "two", "three")
    (captions,) = OfflineEnhancer(model, num_captions=3)(["a cat"], seed=7)
    drawn = [stream(7, "a cat", k).choice(list(EDITS)) for k in range(3)]

    assert [(c.caption, c.instruction, c.sample) for c in captions] == [
        (text, name, None) for text, name in zip(["one", "two", "three"], drawn, strict=True)
    ]
    for asked, name in zip(model.asked, drawn, strict=True):
        assert EDITS[name] in asked
        assert "Caption: a cat" in asked


def test_every_edit_is_drawn():
    """About equally often: each within five standard errors of a third of 300."""
    model = Talker(10**6)
    captions = OfflineEnhancer(model, num_captions=1, attempts=50)(
        [f"a cat {n}" for n in range(300)], seed=0
    )
    names = [each[0].instruction for each in captions]

    assert all(abs(names.count(name) - 100) < 5 * (300 * 2 / 9) ** 0.5 for name in EDITS)


@settings(max_examples=10)
@given(st.permutations(PROMPTS), st.integers(0, 9))
def test_permuting_prompts_permutes_captions(order, seed):
    """A prompt's captions are its own; equal seeds give equal captions."""
    enhancer = OfflineEnhancer(Talker(), num_captions=3, attempts=50)
    whole = dict(zip(PROMPTS, enhancer(PROMPTS, seed=seed), strict=True))

    assert enhancer(order, seed=seed) == [whole[prompt] for prompt in order]


@settings(max_examples=10)
@given(st.integers(1, 8), st.integers(0, 9))
def test_captions_are_counted_and_differ(count, seed):
    """K of them, though the model knows a dozen answers; none repeats another or the prompt."""
    enhancer = OfflineEnhancer(Talker(12), num_captions=count, attempts=200)
    for captions in enhancer(PROMPTS, seed=seed):
        assert len({normalised(c.caption) for c in captions}) == len(captions) == count


def test_a_memory_lasts_over_calls():
    """Three calls for four captions give twelve; without a memory each call starts anew."""
    memory = CaptionMemory()
    for keeps in (memory, None):
        enhancer = OfflineEnhancer(Talker(30), num_captions=4, attempts=500, memory=keeps)
        calls = [enhancer(["a cat"], seed=0)[0] for _ in range(3)]
        texts = {c.caption for captions in calls for c in captions}
        assert len(texts) == (12 if keeps is memory else 4)
    assert len(memory.earlier("a cat")) == 12


def test_settings_tell_what_decides_the_captions():
    """As JSON values."""
    enhancer = OfflineEnhancer(
        Talker(), num_captions=2, edits={"add": "Add."}, rules=CaptionRules(max_sentences=2)
    )

    assert enhancer.settings == {
        "num_captions": 2,
        "edits": {"add": "Add."},
        "rules": {"max_characters": 600, "max_sentences": 2},
        "attempts": 6,
        "on_refusal": "raise",
    }


def test_rules_hold_for_every_answer():
    """An answer that breaks them is refused."""
    enhancer = OfflineEnhancer(
        Scripted("One. Two."), num_captions=1, rules=CaptionRules(max_sentences=1)
    )
    with pytest.raises(CaptionError, match="2 sentences"):
        enhancer(["a cat"], seed=0)


def test_rejects_no_captions():
    """K is at least 1."""
    with pytest.raises(ValueError, match="`num_captions` must be at least 1; got 0"):
        OfflineEnhancer(Talker(), num_captions=0)


def test_rejects_a_blank_prompt():
    """There is nothing to vary."""
    with pytest.raises(ValueError, match="blanks alone"):
        OfflineEnhancer(Talker(), num_captions=1)([""], seed=0)
