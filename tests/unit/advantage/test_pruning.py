"""Advantages that are left out: oracle, laws, golden values, errors."""

import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.advantage.group import group_advantages
from mvczigal_ref.advantage.pruning import prune_nodes, prune_samples, spread_weights
from mvczigal_ref.objective.clipped import clipped_surrogate_loss
from tests.golden import constants, names, tensors
from tests.unannotated import without_shape_checks

NUMBERS = st.lists(st.floats(-3, 3).map(lambda x: round(x, 2)), min_size=1, max_size=12)
SHARES = st.floats(0.0, 0.95).map(lambda x: round(x, 2))


def held(values):
    """Hold numbers in fp64."""
    return torch.tensor(values, dtype=torch.float64)


def left_of(count, share):
    """Count what is left of some numbers, the share read as the decimal that it is written as."""
    return math.floor(count * (1 - Fraction(str(share))))


def kept_of(values, places):
    """Write what stays, raised so that the mean is one over it."""
    factor = len(values) / len(places)
    return [value * factor if i in places else 0.0 for i, value in enumerate(values)]


# -- oracle ------------------------------------------------------------------------------


@given(NUMBERS, SHARES)
def test_samples_of_largest_size_stay(values, share):
    """Sorted in plain Python, of equal ones the earlier first."""
    count = max(1, left_of(len(values), share))
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
    found = prune_samples(held(values), share=share)
    assert found.tolist() == pytest.approx(kept_of(values, order[:count]))


@given(st.integers(1, 4), st.integers(1, 4), SHARES, st.data())
def test_the_best_children_of_each_node_stay(families, siblings, share, data):
    """Node by node."""
    number = st.floats(-3, 3).map(lambda x: round(x, 2))
    count = families * siblings
    values = data.draw(st.lists(number, min_size=count, max_size=count))
    kept = max(1, left_of(siblings, share))
    places = []
    for first in range(0, count, siblings):
        family = range(first, first + siblings)
        places += sorted(family, key=lambda i: -values[i])[:kept]
    found = prune_nodes(held(values), keep="siblings", siblings=siblings, share=share)
    assert found.tolist() == pytest.approx(kept_of(values, places))


@given(NUMBERS, SHARES)
def test_the_best_and_the_worst_of_a_tree_stay(values, share):
    """Half and half, the worst one more of an odd number."""
    count = min(len(values), max(2, left_of(len(values), share)))
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


def test_a_share_is_the_decimal_that_is_written():
    """Of 10 samples 0.8 leaves 2, though in floats 10 (1 - 0.8) is less than 2."""
    values = held([float(n) for n in range(1, 11)])
    assert prune_samples(values, share=0.8).count_nonzero() == 2
    assert prune_nodes(values, keep="siblings", siblings=10, share=0.8).count_nonzero() == 2
    assert prune_nodes(values, keep="extremes", siblings=10, share=0.7).count_nonzero() == 3


# -- golden ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", names("peers", "cppo"))
def test_released_trainer(case):
    """Advantages, the samples that stay, loss and its gradient; a batch is one group here."""
    golden, settings = tensors("peers", case), constants("peers", case)
    kept, count = golden["kept"].bool(), golden["kept"].numel()
    rewards = golden["reward"].unflatten(0, (settings["prompts"], settings["num_generations"]))
    advantage = group_advantages(rewards, ddof=1, delta=1e-4).flatten()
    rest = int(kept.sum())
    pruned = prune_samples(advantage, share=(count - rest) / count)
    factor = count / rest
    log_prob = golden["log_prob"].clone().requires_grad_()
    away = golden["ref_log_prob"] - log_prob
    loss, _ = clipped_surrogate_loss(
        log_prob - golden["old_log_prob"],
        pruned[:, None].expand_as(log_prob),
        clip_range=settings["epsilon"],
        kl=(away.exp() - away - 1.0) * factor * kept[:, None],
        kl_weight=settings["beta"],
    )
    (slope,) = torch.autograd.grad(loss, log_prob)

    torch.testing.assert_close(advantage[kept], golden["advantage"], rtol=1e-12, atol=1e-14)
    assert torch.equal(pruned != 0.0, kept)
    torch.testing.assert_close(loss, golden["loss"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, golden["grad"], rtol=1e-12, atol=1e-14)


def test_where_the_released_trainer_keeps_others():
    """It counts what goes, rounded down, where the paper counts what stays; and over a batch."""
    odd, settings = tensors("peers", "cppo_loss_rounding"), constants("peers", "cppo_loss_rounding")
    advantage = group_advantages(odd["reward"], ddof=1)
    ours = prune_samples(advantage, share=settings["pruning"]) != 0.0
    assert (int(odd["kept"].sum()), int(ours.sum())) == (5, 4)

    kept = tensors("peers", "cppo_loss_batch")["kept"].view(2, 6)
    rewards = tensors("peers", "cppo_loss_batch")["reward"].view(2, 6)
    ours = prune_samples(group_advantages(rewards, ddof=1), share=0.5) != 0.0
    assert (kept.sum(-1).tolist(), ours.sum(-1).tolist()) == ([2, 4], [3, 3])


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


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(narrow):
    """As every advantage's."""
    advantage = torch.ones(2, 2, dtype=narrow)
    for function in (
        spread_weights, partial(prune_samples, share=0.5),
        partial(prune_nodes, keep="extremes", siblings=2),
    ):  # fmt: skip
        with (
            without_shape_checks(),
            pytest.raises(ValueError, match="`advantage` must be float32 or"),
        ):
            function(advantage)


def test_a_group_of_nothing_is_refused():
    """Of no sample none can stay."""
    with pytest.raises(ValueError, match="`advantage` must hold at least one sample of each"):
        prune_samples(torch.ones(2, 0), share=0.5)
    with pytest.raises(ValueError, match="`advantage` must hold at least one sample of each"):
        prune_nodes(torch.ones(2, 0), keep="siblings", siblings=2)
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match="`advantage` must hold at least one sample of each"),
    ):
        prune_samples(torch.ones(()), share=0.5)
