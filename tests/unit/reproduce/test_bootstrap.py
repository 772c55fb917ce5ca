"""`reproduce.bootstrap`: oracle, laws."""

import math
from itertools import product

import pytest
import torch

from mvczigal_ref.reproduce.bootstrap import (
    Interval,
    improvement,
    interval,
    resampled_means,
    student_quantile,
)


def generator(seed=0):
    """Make a generator of a test."""
    return torch.Generator().manual_seed(seed)


# -- oracle ------------------------------------------------------------------------------


def test_means_are_of_seeds_and_prompts_that_were_drawn():
    """Two seeds and two prompts: every draw is one of the 16 that can be, each as often."""
    table = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=torch.float64)
    means = resampled_means(table[None], draws=40_000, generator=generator())[:, 0]
    whole = [
        table[list(seeds)][:, list(prompts)].mean().item()
        for seeds in product(range(2), repeat=2)
        for prompts in product(range(2), repeat=2)
    ]

    for value in set(whole):
        share = (means - value).abs().lt(1e-9).double().mean().item()
        assert share == pytest.approx(whole.count(value) / 16, abs=0.01)


def test_improvement_counts_pairs_of_runs_prompt_by_prompt():
    """Three of four pairs are better on the first prompt, one and two ties of four on the other."""
    first = torch.tensor([[2.0, 1.0], [4.0, 2.0]])
    second = torch.tensor([[1.0, 1.0], [3.0, 2.0]])
    expected = (3 / 4 + (1 + 2 / 2) / 4) / 2

    assert improvement(first, second, generator=generator()).estimate == pytest.approx(expected)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (60, 2.0003)]
)
def test_students_quantile_is_that_of_the_tables(degrees, expected):
    """Two sides, 95 %."""
    assert student_quantile(degrees) == pytest.approx(expected, abs=1e-4)


def test_five_seeds_widen_the_percentiles_by_students_factor():
    """2.7764 / 1.95996 times the root of 5/4, about the estimate."""
    found = interval(torch.arange(41.0), estimate=20.0, seeds=5)
    wider = 2.776445 / 1.959964 * math.sqrt(5 / 4)

    assert found.low == pytest.approx(20.0 - 19.0 * wider, abs=1e-4)
    assert found.high == pytest.approx(20.0 + 19.0 * wider, abs=1e-4)


# -- laws --------------------------------------------------------------------------------


def test_intervals_hold_the_mean_of_a_known_normal():
    """95 % of experiments of 5 seeds and 40 prompts, whichever of the two scatters more."""
    draw = generator(1)
    for of_seeds, of_prompts in ((1.0, 0.3), (0.2, 1.0)):
        held = 0
        for _ in range(200):
            table = (
                of_seeds * torch.randn(5, 1, generator=draw)
                + of_prompts * torch.randn(1, 40, generator=draw)
                + 0.5 * torch.randn(5, 40, generator=draw)
            )
            means = resampled_means(table[None], draws=400, generator=draw)[:, 0]
            found = interval(means, estimate=table.mean().item(), seeds=5)
            held += found.low <= 0.0 <= found.high
        assert held / 200 >= 0.93


def test_one_seed_has_the_interval_of_its_prompts():
    """It says nothing of other seeds, and is not widened for them."""
    table = torch.randn(1, 400, generator=generator())
    means = resampled_means(table[None], draws=4000, generator=generator())[:, 0]
    found = interval(means, estimate=table.mean().item(), seeds=1)
    error = table.std().item() / math.sqrt(400)

    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.06)


def test_equal_tables_differ_by_nothing_in_every_draw():
    """Tables are paired: one draw of seeds and prompts serves all."""
    table = torch.randn(1, 5, 40, generator=generator())
    means = resampled_means(table.expand(2, -1, -1), draws=100, generator=generator())

    assert torch.allclose(means[:, 0], means[:, 1], rtol=0, atol=1e-12)


def test_improvements_of_both_sides_add_up_to_one():
    """Ties count half for each, and what is always better improves with certainty."""
    first, second = torch.randn(2, 5, 40, generator=generator())
    one = improvement(first, second, generator=generator())
    other = improvement(second, first, generator=generator())
    same = improvement(first, first, generator=generator())

    assert one.estimate + other.estimate == pytest.approx(1.0)
    assert same.estimate == 0.5
    assert same.low < 0.5 < same.high
    assert improvement(first + 99, second, generator=generator()) == Interval(1.0, 1.0, 1.0)


def test_the_same_generator_gives_the_same_numbers():
    """A table can be made again."""
    table = torch.randn(1, 5, 40, generator=generator())
    one, other = (resampled_means(table, draws=50, generator=generator(3)) for _ in range(2))

    assert torch.equal(one, other)
