"""`condition.edits`: oracle, laws, errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.condition.tiny_world import GrammarEditor, one_word_edits
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.tiny_world.grammar import all_prompts, parse

PROMPTS = st.sampled_from([str(prompt) for prompt in all_prompts()])


@given(PROMPTS)
def test_edits_are_all_prompts_at_a_distance_of_one_word(prompt):
    """Found by comparing with all 240."""
    words = prompt.split()
    near = {
        other
        for other in map(str, all_prompts())
        if sum(a != b for a, b in zip(words, other.split(), strict=True)) == 1
    }

    assert {str(edit) for _, edit in one_word_edits(parse(prompt))} == near


@given(PROMPTS, st.integers(1, 8), st.integers(0, 99))
def test_captions_are_distinct_edits_that_depend_on_prompt_and_seed_alone(prompt, count, seed):
    """Each says which word it changes; company and images do not count."""
    edit = GrammarEditor(num_captions=count)
    (alone,), (_, beside) = (
        edit(prompts, seed=seed) for prompts in ([prompt], ["a red cube with a white nose", prompt])
    )
    known = {str(text): name for name, text in one_word_edits(parse(prompt))}

    assert alone == beside
    assert len({c.caption for c in alone}) == count == edit.num_captions(3)
    assert all(known[c.caption] == c.instruction for c in alone)


@pytest.mark.parametrize("words", [("part",), ("part_colour", "part"), ("shape",)])
def test_only_the_words_that_may_be_changed_are(words):
    """All of them, over some seeds."""
    edit = GrammarEditor(num_captions=1, words=words)
    drawn = {edit(["a red cube with a white nose"], seed=seed)[0][0] for seed in range(40)}

    assert {caption.instruction for caption in drawn} == set(words)


def test_another_seed_draws_other_edits():
    """Otherwise a run would see K captions per prompt for ever."""
    edit = GrammarEditor(num_captions=4)
    drawn = {edit(["a red cube with a white nose"], seed=seed)[0] for seed in range(8)}

    assert len(drawn) > 4


@pytest.mark.parametrize("count", [0, 99])
def test_a_number_that_cannot_be_is_refused(count):
    """One word makes a dozen prompts at most."""
    with pytest.raises(ValueError, match="`num_captions` must be from 1 to"):
        GrammarEditor(num_captions=count)


@pytest.mark.parametrize("words", [(), ("size",), ("part", "head")])
def test_words_that_prompts_do_not_have_are_refused(words):
    """With those they have; so are more captions than the words allow."""
    with pytest.raises(ValueError, match=r"`words` must be some of \('body_colour', 'shape',"):
        GrammarEditor(num_captions=1, words=words)
    with pytest.raises(ValueError, match="`num_captions` must be from 1 to 5; got 6"):
        GrammarEditor(num_captions=6, words=("part_colour", "part"))


def test_a_prompt_outside_the_grammar_is_refused():
    """There is no word to change."""
    with pytest.raises(ConfigError):
        GrammarEditor(num_captions=1)(["a photo of a cat"], seed=0)
