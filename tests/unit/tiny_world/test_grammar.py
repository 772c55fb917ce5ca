"""`grammar`: oracle, laws, errors."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.tiny_world.grammar import (
    COLOURS,
    PARTS,
    SHAPES,
    Prompt,
    all_prompts,
    parse,
    split_prompts,
)

PROMPTS = st.sampled_from(all_prompts())


# -- oracle ------------------------------------------------------------------------------


def test_the_sentences_are_every_shape_colour_other_colour_and_part():
    """4 shapes, 6 colours, 5 other colours, 2 parts: 240 sentences, none twice."""
    expected = {
        f"a {body} {shape} with a {other} {part}"
        for shape in ("ball", "cube", "cone", "can")
        for body in ("red", "green", "blue", "yellow", "purple", "white")
        for other in ("red", "green", "blue", "yellow", "purple", "white")
        for part in ("nose", "fin")
        if other != body
    }

    assert len(all_prompts()) == 240
    assert set(all_prompts()) == expected


def test_the_order_is_shape_then_colour_then_other_colour_then_part():
    """The split draws from this order, so it must never change."""
    prompts = all_prompts()

    assert prompts[:3] == [
        "a red ball with a green nose",
        "a red ball with a green fin",
        "a red ball with a blue nose",
    ]
    assert prompts[60] == "a red cube with a green nose"
    assert prompts[-1] == "a white can with a purple fin"


def test_parse_reads_each_word_into_its_place():
    """Body colour, shape, part colour, part."""
    assert parse("a red cube with a white nose") == Prompt(
        body_colour="red", shape="cube", part_colour="white", part="nose"
    )


def test_the_held_out_prompts_are_these():
    """Shipped weights never saw them: another split would judge on trained prompts."""
    _, held_out = split_prompts()

    assert held_out[:3] == [
        "a green ball with a red nose",
        "a green ball with a white nose",
        "a blue ball with a yellow nose",
    ]
    assert held_out[-1] == "a purple can with a yellow fin"


# -- laws --------------------------------------------------------------------------------


@given(PROMPTS)
def test_a_sentence_survives_parsing(prompt):
    """`parse` and `str` are inverse."""
    assert str(parse(prompt)) == prompt


@given(PROMPTS)
def test_case_blanks_and_the_article_do_not_matter(prompt):
    """People write `An` and capitals."""
    assert parse(f"  {prompt.upper()}\n") == parse(prompt)
    assert parse(prompt.replace("a ", "an ", 1)) == parse(prompt)


@given(st.integers(0, 240), st.integers(0, 5))
def test_a_split_deals_every_prompt_once(num_held_out, seed):
    """Nothing is in both parts, nothing is lost, and both keep the grammar's order."""
    train, held_out = split_prompts(num_held_out=num_held_out, seed=seed)

    assert len(held_out) == num_held_out
    assert sorted(train + held_out) == sorted(all_prompts())
    assert train == [p for p in all_prompts() if p in set(train)]
    assert held_out == [p for p in all_prompts() if p in set(held_out)]


def test_a_split_depends_on_its_seed_and_on_nothing_else():
    """Whatever the global generator stands at."""
    random.seed(7)
    one = split_prompts(seed=1)
    random.seed(8)

    assert split_prompts(seed=1) == one
    assert split_prompts(seed=0) != one


def test_every_word_is_held_out_and_trained():
    """Held-out prompts are new combinations, not new words."""
    for prompts in split_prompts():
        words = {word for prompt in prompts for word in prompt.split()}
        assert words == {"a", "with", *COLOURS, *SHAPES, *PARTS}


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red cube",
        "a red cube with a white nose and a fin",
        "a mauve cube with a white nose",
        "a red pyramid with a white nose",
        "a red cube with a mauve nose",
        "a red cube with a white tail",
        "a red cube with a red nose",
        "the red cube with a white nose",
        "x a red cube with a white nose",
    ],
)
def test_a_sentence_outside_the_grammar_is_told_the_vocabulary(prompt):
    """The message lists each word that may stand, and what was said."""
    with pytest.raises(ConfigError, match=r"^`prompt` must read 'a COLOUR SHAPE with") as caught:
        parse(prompt)

    for word in (*COLOURS, *SHAPES, *PARTS, repr(prompt)):
        assert word in str(caught.value)


@pytest.mark.parametrize("num_held_out", [-1, 241])
def test_an_impossible_split_is_refused(num_held_out):
    """At most all prompts can be held out."""
    with pytest.raises(
        ConfigError, match=rf"`num_held_out` must lie in 0..240; got {num_held_out}"
    ):
        split_prompts(num_held_out=num_held_out)
