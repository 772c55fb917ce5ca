"""Advantages that are left out: oracle, laws, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.advantage.pruning import prune_nodes, prune_samples, spread_weights
from tests.unannotated import without_shape_checks

NUMBERS = st.lists(st.floats(-3, 3).map(lambda x: round(x, 2)), min_size=1, max_size=12)
SHARES = st.floats(0.0, 0.95)


def held(values):
    """Hold numbers in fp64."""
    return torch.tensor(values, dtype=torch.float64)


def kept_of(values, places):
    """Write what stays, raised so that the mean is one over it."""
    factor = len(values) / len(places)
    return [value * factor if i in places else 0.0 for i, value in enumerate(values)]


# -- oracle ------------------------------------------------------------------------------


@given(NUMBERS, SHARES)
def test_samples_of_largest_size_stay(values, share):
    """Sorted in plain Python, of equal ones the earlier first."""
    count = max(1, math.floor(len(values) * (1 - share)))
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
    found = prune_samples(held(values), share=share)
    assert found.tolist() == pytest.approx(kept_of(values, order[:count]))


@given(st.integers(1, 4), st.integers(1, 4), SHARES, st.data())
def test_the_best_children_of_each_node_stay(families, siblings, share, data):
    """Node by node."""
    number = st.floats(-3, 3).map(lambda x: round(x, 2))
    count = families * siblings
    values = data.draw(st.lists(number, min_size=count, max_size=count))
    kept = max(1, math.floor(siblings * (1 - share)))
    places = []
    for first in range(0, count, siblings):
        family = range(first, first + siblings)
        places += sorted(family, key=lambda i: -values[i])[:kept]
    found = prune_nodes(held(values), keep="siblings", siblings=siblings, share=share)
    assert found.tolist() == pytest.approx(kept_of(values, places))


@given(NUMBERS, SHARES)
def test_the_best_and_the_worst_of_a_tree_stay(values, share):
    """Half and half, the worst one more of an odd number."""
    count = min(len(values), max(2, math.floor(len(values) * (1 - share))))
    order = sorted(range(len(values)), key=lambda i: -values[i])
    places = order[: count // 2] + order[len(values) - (count - count // 2) :]
    found = prune_nodes(held(values), keep="extremes", siblings=1, share=share)
    assert found.tolist() == pytest.approx(kept_of(values, places))


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_groups_without_spread_weigh_nothing(alike):
    """And the others what they would alone."""
    table = held([[0.0, 0.0] if same else [1.0, -1.0] for same in alike])
    left = len(alike) - sum(alike)
    expected = [0.0 if same else len(alike) / left for same in alike]
    assert spread_weights(table).tolist() == pytest.approx(expected)


# -- laws --------------------------------------------------------------------------------


@given(NUMBERS, st.integers(1, 3))
def test_nothing_pruned_changes_nothing(values, groups):
    """Bit for bit, in every group."""
    table = held(values).expand(groups, -1)
    assert torch.equal(prune_samples(table, share=0.0), table)
    for keep in ("siblings", "extremes"):
        kept = prune_nodes(table, keep=keep, siblings=len(values), share=0.0)
        assert torch.equal(kept, table)


def test_each_group_is_pruned_by_itself():
    """Whatever axes stand before."""
    table = held([[[1.0, -3.0], [4.0, 2.0]]])
    assert prune_samples(table, share=0.5).tolist() == [[[0.0, -6.0], [8.0, 0.0]]]


def test_a_mean_is_one_over_what_stays():
    """The factor makes up for what is 0."""
    values = held([4.0, -3.0, 1.0, 0.5])
    assert prune_samples(values, share=0.5).mean().item() == 0.5
    assert prune_samples(values, share=0.99).mean().item() == 4.0


def test_all_groups_alike_weigh_nothing_and_are_no_division_by_zero():
    """Then there is nothing to learn."""
    assert spread_weights(torch.zeros(3, 2)).tolist() == [0.0, 0.0, 0.0]


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_outside_its_range_is_refused(share):
    """Something must stay."""
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\); got"):
        prune_samples(torch.ones(2), share=share)
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\); got"):
        prune_nodes(torch.ones(2), keep="siblings", siblings=2, share=share)


def test_families_that_do_not_fit_and_an_unknown_rule_are_refused():
    """By their names."""
    with pytest.raises(ValueError, match="`siblings` must divide the 4 nodes of a tree; got 3"):
        prune_nodes(torch.ones(4), keep="siblings", siblings=3)
    with without_shape_checks(), pytest.raises(ValueError, match="`keep` must be"):
        prune_nodes(torch.ones(4), keep="best", siblings=2)
