"""`condition.tiny_world`, its two enhancers: oracle, laws, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.condition.description import INSTRUCTIONS
from mvczigal_ref.condition.protocol import Caption, CaptionError
from mvczigal_ref.condition.tiny_world import GrammarEditor, GrammarEnhancer, one_word_edits
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.tiny_world.grammar import all_prompts, parse
from tests.unit.condition.pictures import PROMPT, group, picture

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


# -- captions measured in pictures ---------------------------------------------------------


def test_describes_each_sample_and_names_what_was_said():
    """Whatever the prompt claims; a word that cannot be said makes the caption plain."""
    images = group(picture(), picture(size=0.6), picture(azimuth=0.0, size=0.56))
    for name, captions in {
        "plain": [(PROMPT, "plain")] * 3,
        "size": [
            ("a small red cube with a white nose", "size"),
            ("a large red cube with a white nose", "size"),
            (PROMPT, "plain"),
        ],
        "side": [(f"{PROMPT} at left", "side")] * 2 + [(PROMPT, "plain")],
    }.items():
        (made,) = GrammarEnhancer(instructions=[name])(
            ["a blue ball with a red fin"], images, seed=0
        )
        assert [(c.caption, c.instruction) for c in made] == captions
        assert [c.sample for c in made] == [0, 1, 2]


def test_of_several_views_the_best_explained_is_described():
    """One that hides the part does not matter, and a side is not said."""
    exact = picture(size=0.52, height=0.075, radius=0.425)
    views = torch.stack([picture(azimuth=180.0), exact, picture(size=0.6, height=0.15)])
    for name, caption in {"size": "a small red cube with a white nose", "side": PROMPT}.items():
        (made,) = GrammarEnhancer(instructions=[name])(["x"], views[None, None], seed=0)
        told = "plain" if caption == PROMPT else name
        assert made == (Caption(caption=caption, instruction=told, sample=0),)


@settings(max_examples=5)
@given(st.permutations(range(3)), st.integers(0, 99))
def test_permuting_prompts_permutes_captions(order, seed):
    """Instructions are drawn by prompt and sample; equal seeds draw alike."""
    prompts = ["one", "two", "three"]
    images = torch.cat([group(picture(size=size), picture(size=0.6)) for size in (0.5, 0.56, 0.62)])
    enhancer = GrammarEnhancer(instructions=INSTRUCTIONS)
    whole = enhancer(prompts, images, seed=seed)

    assert all(len(captions) == enhancer.num_captions(2) == 2 for captions in whole)
    assert enhancer([prompts[i] for i in order], images[list(order)], seed=seed) == [
        whole[i] for i in order
    ]


def test_every_instruction_is_drawn():
    """Over twenty seeds, each of the three appears."""
    enhancer = GrammarEnhancer(instructions=INSTRUCTIONS)
    images = group(picture())
    told = {enhancer(["x"], images, seed=seed)[0][0].instruction for seed in range(20)}

    assert told == set(INSTRUCTIONS)


def test_raises_or_keeps_the_prompt():
    """A sample that cannot be described is named, or has the prompt for a caption."""
    images = group(picture(), torch.full((3, 32, 32), 0.45))
    with pytest.raises(CaptionError, match="the prompt 'a cow', sample 1: the image shows 0"):
        GrammarEnhancer()(["a cow"], images, seed=0)
    (made,) = GrammarEnhancer(on_refusal="prompt")(["a cow"], images, seed=0)

    assert [(c.caption, c.instruction) for c in made] == [(PROMPT, "plain"), ("a cow", "none")]


def test_rejects_no_images():
    """There is nothing to measure."""
    with pytest.raises(ValueError, match="got no images"):
        GrammarEnhancer()(["a cow"], seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instructions": []}, r"`instructions` must be some of .*; got \(\)"),
        ({"instructions": ["mood"]}, r"`instructions` must be some of .*'mood'"),
        ({"max_error": 0.0}, "`max_error` must be positive; got 0.0"),
    ],
)
def test_rejects_bad_settings(options, message):
    """By name."""
    with pytest.raises(ValueError, match=message):
        GrammarEnhancer(**options)
