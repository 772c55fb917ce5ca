"""`condition.description`: laws."""

import pytest

from mvczigal_ref.condition.description import INSTRUCTIONS, SIDES, SIZES, Description
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.tiny_world.grammar import all_prompts, parse
from tests.unit.condition.fakes import read_caption
from tests.unit.condition.pictures import PROMPT


def test_captions_say_one_thing_more():
    """If it can be said; else they are plain."""
    said = parse(PROMPT)
    both = Description(prompt=said, size="large", side="right", error=0.0)
    none = Description(prompt=said, size=None, side=None, error=0.0)

    assert [both.caption(name) for name in INSTRUCTIONS] == [
        PROMPT,
        "a large red cube with a white nose",
        "a red cube with a white nose at right",
    ]
    assert {none.caption(name) for name in INSTRUCTIONS} == {PROMPT}


@pytest.mark.parametrize("prompt", all_prompts()[::7])
def test_every_caption_reads_back_and_fits_the_text_encoders(prompt):
    """The four added words are the only ones, and none is cut off by 16 tokens."""
    tokenizer = tiny_tokenizer()
    for size in (None, *SIZES):
        for side in (None, *SIDES):
            found = Description(prompt=parse(prompt), size=size, side=side, error=0.0)
            for name in INSTRUCTIONS:
                caption = found.caption(name)
                words = (size if name == "size" else None, side if name == "side" else None)
                assert read_caption(caption) == (prompt, *words)
                assert len(tokenizer(caption).input_ids) <= tokenizer.model_max_length
