"""Arithmetic on reward tables: oracle, laws, gradients, errors. Nothing was recorded of it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mvczigal_ref.reward.aggregate import joint_to_views, mean_over_views, weighted_sum
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import pair_rewards, same_shape

WEIGHT = st.floats(-5.0, 5.0)
PER_VIEW = pair_rewards().map(lambda rewards: rewards["per_view_zigzag"])
JOINT = pair_rewards().map(lambda rewards: rewards["joint_view_zigzag"])
VIEWS = st.integers(1, 6)


# -- oracle --------------------------------------------------------------------------------


@given(same_shape(3), st.lists(WEIGHT, min_size=3, max_size=3))
def test_weighted_sum_adds_entry_by_entry(tables, weights):
    """Weights find their table by name, whatever the order they come in."""
    total = weighted_sum(
        dict(zip("abc", tables, strict=True)),
        weights=dict(reversed(list(zip("abc", weights, strict=True)))),
    )
    flat = zip(*(table.flatten().tolist() for table in tables), strict=True)
    expected = [math.fsum(w * x for w, x in zip(weights, row, strict=True)) for row in flat]

    assert total.shape == tables[0].shape
    assert total.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


@given(PER_VIEW)
def test_mean_over_views_keeps_the_objects_apart(reward):
    """One mean an object."""
    expected = [math.fsum(row) / len(row) for row in reward.tolist()]

    assert mean_over_views(reward).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


@given(JOINT, VIEWS)
def test_joint_to_views_repeats_the_objects_reward(reward, num_views):
    """The views of an object are adjacent and equal."""
    assert joint_to_views(reward, num_views=num_views).tolist() == [
        [value] * num_views for value in reward.tolist()
    ]


# -- laws ----------------------------------------------------------------------------------


@given(PER_VIEW, WEIGHT)
def test_one_scorer_of_weight_one_is_itself(reward, other):
    """And weight 0 takes a scorer out of the sum."""
    assert torch.equal(weighted_sum({"a": reward}, weights={"a": 1.0}), reward)
    both = weighted_sum({"a": reward, "b": other * reward}, weights={"a": 1.0, "b": 0.0})
    assert torch.equal(both, reward)


@given(PER_VIEW, st.randoms(use_true_random=False))
def test_permuting_the_objects_permutes_the_scores(reward, random):
    """An object's place says nothing."""
    order = list(range(len(reward)))
    random.shuffle(order)

    assert torch.equal(mean_over_views(reward[order]), mean_over_views(reward)[order])
    assert torch.equal(
        joint_to_views(reward[:, 0][order], num_views=2),
        joint_to_views(reward[:, 0], num_views=2)[order],
    )


@given(PER_VIEW, st.integers(1, 4), WEIGHT)
def test_shards_of_objects_gather_to_the_whole(reward, size, weight):
    """Processes may each aggregate their own objects."""
    shards = reward.split(size)

    def gathered(function):
        return torch.cat([function(shard) for shard in shards])

    def scaled(table):
        return weighted_sum({"a": table}, weights={"a": weight})

    assert torch.equal(gathered(mean_over_views), mean_over_views(reward))
    assert torch.equal(gathered(scaled), scaled(reward))


@given(JOINT, VIEWS)
def test_averaging_undoes_repeating(reward, num_views):
    """The mean of equal views is the joint reward."""
    again = mean_over_views(joint_to_views(reward, num_views=num_views))

    torch.testing.assert_close(again, reward, rtol=1e-15, atol=0.0)


def test_repeating_copies_nothing():
    """Every view reads the object's own number."""
    reward = torch.ones(2)

    assert joint_to_views(reward, num_views=3).data_ptr() == reward.data_ptr()


# -- gradients -----------------------------------------------------------------------------


def test_gradients_are_the_weights():
    """All three are linear."""
    reward = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    joint = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (by_sum,) = torch.autograd.grad(weighted_sum({"a": reward}, weights={"a": -3.0}).sum(), reward)
    (by_mean,) = torch.autograd.grad(mean_over_views(reward).sum(), reward)
    (by_views,) = torch.autograd.grad(joint_to_views(joint, num_views=5).sum(), joint)

    assert torch.equal(by_sum, torch.full_like(reward, -3.0))
    assert torch.equal(by_mean, torch.full_like(reward, 0.25))
    assert torch.equal(by_views, torch.full_like(joint, 5.0))


# -- errors --------------------------------------------------------------------------------


def test_refuses_to_sum_nothing():
    """Zero would pass for a reward."""
    with pytest.raises(ValueError, match="`tables` must hold at least one"):
        weighted_sum({}, weights={})


@pytest.mark.parametrize("weights", [{}, {"b": 1.0}, {"a": 1.0, "b": 1.0}])
def test_refuses_weights_for_other_scorers(weights):
    """A misspelt scorer is not dropped in silence."""
    with pytest.raises(ValueError, match=r"`weights` must name the scorers of `tables` \['a'\]"):
        weighted_sum({"a": torch.ones(1)}, weights=weights)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_a_weight_that_is_not_finite(bad):
    """By the scorer's name."""
    with pytest.raises(ValueError, match=f"`weights` must be finite; got {bad} for 'b'"):
        weighted_sum({"a": torch.ones(1), "b": torch.ones(1)}, weights={"a": 1.0, "b": bad})


def test_refuses_tables_that_would_broadcast():
    """A joint reward is repeated over views aloud or not at all."""
    tables = {"a": torch.ones(2, 2), "b": torch.ones(2)}
    weights = {"a": 1.0, "b": 1.0}
    with without_shape_checks(), pytest.raises(ValueError, match="`tables` must share one shape"):
        weighted_sum(tables, weights=weights)


def test_refuses_an_average_over_no_views():
    """It would be NaN."""
    with pytest.raises(ValueError, match="`per_view_reward` must have at least one view"):
        mean_over_views(torch.ones(2, 0))


@pytest.mark.parametrize("num_views", [0, -1])
def test_refuses_to_repeat_over_no_views(num_views):
    """An empty table would train nothing."""
    with pytest.raises(ValueError, match=f"`num_views` must be positive; got {num_views}"):
        joint_to_views(torch.ones(2), num_views=num_views)


def test_refuses_a_table_of_the_wrong_rank():
    """Caught by the annotation."""
    with pytest.raises(TypeCheckError):
        mean_over_views(torch.ones(3))
    with pytest.raises(TypeCheckError):
        joint_to_views(torch.ones(3, 2), num_views=2)
