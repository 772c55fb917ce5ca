"""`memory`: oracle, laws, errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.condition.captions import normalised
from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.protocol import CaptionError

TEXTS = st.text("aB, 1", min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["cat", "dog"]), TEXTS), max_size=12))
def test_equals_a_list_of_forms(pairs):
    """What is kept is what no earlier caption of the same prompt equals in normal form."""
    memory, kept = CaptionMemory(), []
    for prompt, caption in pairs:
        known = (prompt, normalised(caption)) in [(p, normalised(c)) for p, c in kept]
        assert memory.knows(prompt, caption) == known
        if not known:
            memory.remember(prompt, caption)
            kept.append((prompt, caption))
    for prompt in ("cat", "dog"):
        assert memory.earlier(prompt) == tuple(c for p, c in kept if p == prompt)


def test_a_prompt_knows_itself():
    """A caption that says what the prompt says is no new one."""
    assert CaptionMemory().knows("a cat", " A CAT!")


def test_rejects_what_it_knows():
    """And keeps it once."""
    memory = CaptionMemory({"a cat": ["a cat at dusk"]})
    with pytest.raises(CaptionError, match="repeats the prompt or an earlier caption"):
        memory.remember("a cat", "A cat, at dusk.")

    assert memory.earlier("a cat") == ("a cat at dusk",)
