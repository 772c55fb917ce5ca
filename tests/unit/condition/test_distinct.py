"""`condition.distinct`: laws, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.condition.distinct import distinct_texts, every_condition

TEXTS = st.integers(1, 4).flatmap(
    lambda prompts: st.lists(
        st.lists(st.sampled_from("abc"), min_size=prompts, max_size=prompts),
        min_size=1,
        max_size=5,
    )
)


@given(TEXTS)
def test_every_text_is_there_once_and_stands_for_its_conditions(texts):
    """Each condition of each prompt is held by one column, with its own text."""
    held = {}
    for column in distinct_texts(texts):
        for prompt, text, places in zip(
            column.prompts, column.texts, column.conditions, strict=True
        ):
            for condition in places:
                assert (condition, prompt) not in held
                held[condition, prompt] = text
        assert column.weights([1.0] * len(texts)) == tuple(map(len, column.conditions))

    assert held == {
        (k, prompt): text for k, row in enumerate(texts) for prompt, text in enumerate(row)
    }


@given(TEXTS)
def test_columns_begin_with_the_prompts_and_repeat_no_text(texts):
    """As few as the prompt with most texts has."""
    columns = distinct_texts(texts)
    by_prompt = [{row[n] for row in texts} for n in range(len(texts[0]))]
    said = [
        [text for column in columns for p, text in zip(column.prompts, column.texts, strict=True)
         if p == n]
        for n in range(len(by_prompt))
    ]  # fmt: skip

    assert columns[0].texts == tuple(texts[0])
    assert [sorted(mine) for mine in said] == [sorted(mine) for mine in by_prompt]
    assert len(columns) == max(map(len, by_prompt))


@given(TEXTS)
def test_tables_of_distinct_texts_are_laid_out_for_all(texts):
    """As if every condition had been asked."""
    columns = distinct_texts(texts)
    value = {letter: torch.tensor([ord(letter), 0.5]) for letter in "abc"}
    found = every_condition(
        columns, [torch.stack([value[text] for text in column.texts]) for column in columns]
    )

    assert torch.equal(found, torch.stack([torch.stack([value[t] for t in row]) for row in texts]))


def test_a_table_is_narrowed_to_a_columns_prompts():
    """The same memory where it has all of them."""
    first, second = distinct_texts([["a", "b", "c"], ["a", "x", "y"]])
    table = torch.arange(6.0).reshape(3, 2)

    assert first.of(table) is table
    assert second.of(table).tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert first.weights([1.0, 0.25]) == (1.25, 1.0, 1.0)


@pytest.mark.parametrize("texts", [[], [[]], [["a"], ["a", "b"]]])
def test_rows_that_do_not_fit_are_refused(texts):
    """There is nothing to say of them."""
    with pytest.raises(
        ValueError, match=r"`texts` must hold one text per prompt in every condition"
    ):
        distinct_texts(texts)
