"""`training.prompt_batch`: laws, errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.training.prompt_batch import prompt_batch

# -- laws --------------------------------------------------------------------------------


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 9))
def test_prompts_come_in_shuffled_passes(total, count, seed):
    """Each once per pass, however passes and iterations meet."""
    names = [f"p{i}" for i in range(total)]
    drawn = [
        name
        for index in range(2 * total)
        for name in prompt_batch(names, seed=seed, iteration=index, count=count)
    ]
    passes = [drawn[i : i + total] for i in range(0, len(drawn), total)]

    assert len(passes) == 2 * count
    assert all(sorted(turn) == names for turn in passes)


def test_passes_differ_by_seed_and_by_turn():
    """An order is not repeated."""
    names = [f"p{i}" for i in range(12)]
    orders = {
        tuple(prompt_batch(names, seed=seed, iteration=turn, count=12))
        for seed in (0, 1)
        for turn in (0, 1)
    }

    assert len(orders) == 4
    assert tuple(names) not in orders


# -- errors ------------------------------------------------------------------------------


def test_rejects_no_prompts():
    """There is nothing to shuffle."""
    with pytest.raises(ValueError, match="`prompts` must hold at least one prompt; got none"):
        prompt_batch([], seed=0, iteration=0, count=1)
