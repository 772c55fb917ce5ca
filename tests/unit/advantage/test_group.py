"""Advantages within groups: oracle, laws, gradients, golden values, errors."""

import math
import statistics
from collections import defaultdict, deque

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mvczigal_ref.advantage.group import (
    combined_group_advantages,
    group_advantages,
    ragged_group_advantages,
)
from mvczigal_ref.advantage.standardise import standardise
from mvczigal_ref.errors import NonFiniteError
from tests.golden import constants, names, tensors
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import vectors

SPREADS = st.sampled_from(["group", "batch"])
DELTA = st.floats(1e-6, 10.0)
CLIP = st.one_of(st.just(math.inf), st.floats(0.1, 3.0))


@st.composite
def tables(draw, *, low=-20.0, high=20.0, smallest=2, max_ndim=2):
    """Draw rewards of some groups, the group's samples last."""
    shape = (
        *draw(st.lists(st.integers(1, 3), max_size=max_ndim)),
        draw(st.integers(smallest, 5)),
    )
    return draw(vectors(math.prod(shape), low=low, high=high)).reshape(shape)


def deviation(values, ddof):
    """Standard deviation, by the standard library."""
    return statistics.stdev(values) if ddof else statistics.pstdev(values)


def slow(reward, *, spread, ddof, delta, clip):
    """Walk the groups one number at a time."""
    groups = reward.reshape(-1, reward.shape[-1]).tolist()
    everyone = [value for group in groups for value in group]
    advantages = []
    for group in groups:
        scale = deviation(everyone if spread == "batch" else group, ddof) + delta
        centre = statistics.fmean(group)
        advantages += [max(-clip, min(clip, (value - centre) / scale)) for value in group]
    return advantages


# -- oracle --------------------------------------------------------------------------------


@given(tables(), SPREADS, st.sampled_from([0, 1]), DELTA, CLIP)
def test_is_the_distance_to_the_groups_mean(reward, spread, ddof, delta, clip):
    """In deviations of the group or of the batch, divided by n or by n - 1."""
    how = {"spread": spread, "ddof": ddof, "delta": delta, "clip": clip}
    advantage = group_advantages(reward, **how)

    assert advantage.shape == reward.shape
    # A mean of numbers up to 20 is exact to 1e-14, and the deviation may be as small as delta.
    assert advantage.flatten().tolist() == pytest.approx(
        slow(reward, **how), rel=1e-11, abs=1e-13 / delta
    )


@given(tables(max_ndim=1), SPREADS, st.sampled_from([0, 1]), DELTA, CLIP, st.randoms())
def test_labels_may_stand_for_the_axis(reward, spread, ddof, delta, clip, random):
    """In any order, with any integers as labels."""
    how = {"spread": spread, "ddof": ddof, "delta": delta, "clip": clip}
    table = reward.reshape(-1, reward.shape[-1])
    labels = torch.arange(len(table))[:, None].expand_as(table).flatten() * 7 - 3
    order = list(range(reward.numel()))
    random.shuffle(order)
    ragged = ragged_group_advantages(table.flatten()[order], labels[order], **how)

    torch.testing.assert_close(
        ragged, group_advantages(table, **how).flatten()[order], rtol=1e-12, atol=1e-13 / delta
    )


@given(tables(), tables(), st.floats(-2.0, 2.0), SPREADS, CLIP)
def test_several_rewards_are_added_before_or_after(one, two, weight, spread, clip):
    """By advantage each has its own deviation, by reward the sum has one; the clip is last."""
    two = two.flatten()[torch.arange(one.numel()) % two.numel()].reshape(one.shape)
    how = {"spread": spread, "ddof": 0, "delta": 0.1}
    rewards, weights = {"one": one, "two": two}, {"one": 0.5, "two": weight}
    each = [slow(table, **how, clip=math.inf) for table in (one, two)]
    added = [max(-clip, min(clip, 0.5 * a + weight * b)) for a, b in zip(*each, strict=True)]
    summed = slow(0.5 * one + weight * two, **how, clip=clip)

    for combine, expected in (("advantages", added), ("rewards", summed)):
        combined = combined_group_advantages(
            rewards, weights=weights, combine=combine, **how, clip=clip
        )
        assert combined.shape == one.shape
        assert combined.flatten().tolist() == pytest.approx(expected, rel=1e-10, abs=1e-11)


def test_each_setting_reaches_every_combination():
    """Deviation, divisor and guard are those asked for, by advantage and by reward."""
    rewards = {"only": torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=torch.float64)}
    for combine in ("advantages", "rewards"):
        for how in ({"spread": "batch"}, {"ddof": 1}, {"delta": 0.5}, {"clip": 0.3}):
            combined = combined_group_advantages(
                rewards, weights={"only": 1.0}, combine=combine, **how
            )
            assert torch.equal(combined, group_advantages(rewards["only"], **how))
            assert not torch.equal(combined, group_advantages(rewards["only"]))


# -- laws ----------------------------------------------------------------------------------


@given(tables())
def test_a_groups_mean_is_zero_and_its_deviation_one(reward):
    """A whitening that misses its mean would pass for one."""
    groups = reward.reshape(-1, reward.shape[-1])
    assume(all(statistics.pstdev(group) > 1e-3 for group in groups.tolist()))
    for group in group_advantages(reward, delta=1e-12).reshape(groups.shape).tolist():
        assert statistics.fmean(group) == pytest.approx(0.0, abs=1e-11)
        assert statistics.pstdev(group) == pytest.approx(1.0, rel=1e-8)


@given(tables(), st.floats(-100.0, 100.0), st.floats(0.01, 100.0), SPREADS)
def test_unit_and_origin_of_the_rewards_do_not_matter(reward, shift, scale, spread):
    """A cosine of 0.2 and a score out of 10 are treated alike."""
    groups = reward.reshape(-1, reward.shape[-1])
    assume(all(statistics.pstdev(group) > 1e-3 for group in groups.tolist()))
    one = group_advantages(reward, spread=spread, delta=1e-14)
    two = group_advantages(reward * scale + shift, spread=spread, delta=1e-14)

    torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ddof", [0, 1])
def test_rewards_equal_up_to_rounding_give_exactly_zero(dtype, ddof):
    """In a group, or in a whole batch, also beside a group that differs."""
    reward = torch.full((3, 8), 20.0, dtype=dtype)
    reward[1, 2] = torch.nextafter(reward[1, 2], torch.tensor(30.0, dtype=dtype))
    how = {"ddof": ddof, "delta": 1e-30}
    labels = torch.arange(3).repeat_interleave(8)
    for spread in ("group", "batch"):
        ragged = ragged_group_advantages(reward.flatten(), labels, spread=spread, **how)

        assert torch.equal(group_advantages(reward, spread=spread, **how), torch.zeros_like(reward))
        assert torch.equal(ragged, torch.zeros_like(ragged))
    reward[0] = torch.arange(8)
    for spread in ("group", "batch"):
        beside = group_advantages(reward, spread=spread, **how)
        ragged = ragged_group_advantages(reward.flatten(), labels, spread=spread, **how)

        assert torch.equal(beside[1:], torch.zeros_like(reward[1:]))
        assert beside[0].all()
        assert torch.equal(ragged.reshape(reward.shape), beside)
    assert torch.equal(
        group_advantages(reward, spread="group", **how)[0], group_advantages(reward[0], **how)
    )


@pytest.mark.parametrize("spread", ["group", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rewards_as_large_as_the_dtype_holds_are_standardised(dtype, spread):
    """A scorer's sentinel for a failure; a group of its own size beside it keeps its digits."""
    largest = torch.finfo(dtype).max
    reward = torch.tensor([[-largest, 0.0, largest], [1.0, 2.0, 3.0]], dtype=dtype)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    each = math.sqrt(1.5) if spread == "group" else math.sqrt(3.0)
    other = each if spread == "group" else 0.0
    expected = [-each, 0.0, each, -other, 0.0, other]
    how = {"spread": spread, "delta": 1e-8}

    for advantage in (
        group_advantages(reward, **how),
        ragged_group_advantages(reward.flatten(), labels, **how).reshape(reward.shape),
    ):
        assert advantage.flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spread", ["group", "batch"])
def test_a_mean_far_from_zero_costs_no_digits(spread):
    """Rewards are taken relative to the least, where a mean of them all would be rounded."""
    reward = 16384.0 + torch.tensor([[0.0, 0.1, 0.2, 0.7], [0.3, 0.0, 0.0, 0.9]])
    expected = group_advantages(reward.double(), spread=spread)

    torch.testing.assert_close(
        group_advantages(reward, spread=spread).double(), expected, rtol=1e-6, atol=1e-6
    )


@given(tables(), SPREADS, st.integers(1, 900))
def test_a_power_of_two_changes_no_bit(reward, spread, power):
    """Rewards are brought to size without rounding."""
    scale = 2.0**power
    groups = reward.reshape(-1, reward.shape[-1])
    assume(all(statistics.pstdev(group) > 1e-3 for group in groups.tolist()))

    assert torch.equal(
        group_advantages(reward * scale, spread=spread, delta=scale * 1e-4),
        group_advantages(reward, spread=spread),
    )


@given(tables(), SPREADS, st.randoms())
def test_permuting_a_group_permutes_its_advantages(reward, spread, random):
    """A sample's place in the group means nothing."""
    order = list(range(reward.shape[-1]))
    random.shuffle(order)

    torch.testing.assert_close(
        group_advantages(reward[..., order], spread=spread),
        group_advantages(reward, spread=spread)[..., order],
        rtol=1e-9,
        atol=1e-9,
    )


@given(tables(max_ndim=1), st.integers(1, 3))
def test_an_own_deviation_needs_no_other_group(reward, more):
    """Statistics of a seed and step, or of a condition, stay its own; a batch's do not."""
    alone = group_advantages(reward)
    beside = torch.stack([reward, *[100.0 * torch.rand_like(reward) for _ in range(more)]])

    torch.testing.assert_close(group_advantages(beside)[0], alone, rtol=1e-12, atol=1e-12)


@given(
    st.floats(-1e6, 1e6, allow_subnormal=False),
    st.integers(2, 9),
    SPREADS,
    st.sampled_from([torch.float32, torch.float64]),
)
def test_constant_groups_give_exactly_zero(value, count, spread, dtype):
    """Alone or beside a group that varies: not the rounding of a mean, magnified."""
    same = torch.full((count,), value, dtype=dtype)
    beside = torch.stack([same, torch.arange(count, dtype=dtype)])
    labels = torch.tensor([0] * count + [1] * count)
    how = {"spread": spread, "delta": 1e-12}
    zeros = torch.zeros(count, dtype=dtype)

    for advantage in (
        group_advantages(same, **how),
        group_advantages(beside, **how)[0],
        ragged_group_advantages(beside.flatten(), labels, **how)[:count],
        combined_group_advantages({"a": same}, weights={"a": 0.3}, **how),
        combined_group_advantages({"a": same}, weights={"a": 0.3}, combine="rewards", **how),
    ):
        assert advantage.dtype == dtype
        assert torch.equal(advantage, zeros)


def test_a_reward_of_large_spread_leads_only_by_reward():
    """By advantage, the unit that a scorer counts in gives it no weight."""
    rewards = {"small": torch.tensor([0.0, 0.1, 0.2]), "large": torch.tensor([200.0, 100.0, 0.0])}
    weights = {"small": 2.0, "large": 1.0}
    by_advantage = combined_group_advantages(rewards, weights=weights)
    by_reward = combined_group_advantages(rewards, weights=weights, combine="rewards")

    assert by_advantage[2] > 0.0 > by_advantage[0]
    assert by_reward[0] > 0.0 > by_reward[2]


def test_the_clip_is_of_the_sum_and_not_of_its_terms():
    """An outlier of one reward counts in full as long as the sum is within."""
    table = torch.tensor([0.0, 0.0, 0.0, 10.0])
    combined = combined_group_advantages({"a": table}, weights={"a": 0.5}, clip=1.0)

    assert group_advantages(table).max() > 1.0
    assert torch.equal(combined, 0.5 * group_advantages(table))


# -- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("spread", ["group", "batch"])
def test_derivative_agrees_with_finite_differences(spread):
    """Rewards that carry a graph are not cut off from it."""
    reward = torch.tensor([[0.3, -1.0], [2.0, 0.7]], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(
        lambda r: group_advantages(r, spread=spread, delta=0.1, ddof=1), (reward,)
    )
    labels = torch.tensor([0, 1, 0, 1])
    assert torch.autograd.gradcheck(
        lambda r: ragged_group_advantages(r.flatten(), labels, spread=spread, delta=0.1), (reward,)
    )


@pytest.mark.parametrize("spread", ["group", "batch"])
def test_a_group_of_equal_rewards_has_a_derivative_of_zero(spread):
    """Beside a group that differs, and where all are equal."""
    labels = torch.tensor([0, 0, 1, 1])
    for other in (0.5, 0.1):
        reward = torch.tensor([[0.1, 0.1], [other, 0.1]], requires_grad=True)
        for advantage in (
            group_advantages(reward, spread=spread),
            ragged_group_advantages(reward.flatten(), labels, spread=spread),
        ):
            (by_reward,) = torch.autograd.grad(advantage.square().sum(), reward)

            assert by_reward.isfinite().all()
            assert other != 0.1 or not by_reward.any()


# -- golden --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", names("grpo", "flow_grpo_stat"))
def test_released_tracker(case, dtype):
    """Groups of three to five samples in mixed order, two rounds, each on its own."""
    golden, made_with = tensors("grpo", case), constants("grpo", case)
    tolerance = (
        {"rtol": 1e-12, "atol": 1e-15} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 2e-6}
    )
    for name in ("round0", "round1"):
        advantage = ragged_group_advantages(
            golden[f"{name}.rewards"].to(dtype),
            golden[f"{name}.prompt_id"],
            spread="batch" if made_with["global_std"] else "group",
            ddof=made_with["ddof"],
            delta=made_with["eps"],
        )
        torch.testing.assert_close(advantage, golden[f"{name}.advantages"].to(dtype), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tracker_that_remembers_compares_with_the_group_of_what_it_remembers(dtype):
    """DDPO's: the last 8 rewards of a prompt, and the batch while it has seen fewer than 4."""
    golden, made_with = tensors("grpo", "ddpo_stat"), constants("grpo", "ddpo_stat")
    seen = defaultdict(lambda: deque(maxlen=made_with["buffer_size"]))
    for name in ("round0", "round1", "round2", "round3"):
        reward, prompt = golden[f"{name}.rewards"].to(dtype), golden[f"{name}.prompt_id"]
        advantage = standardise(reward, eps=made_with["eps"])
        for label in prompt.unique().tolist():
            members = reward[prompt == label]
            seen[label].extend(members.tolist())
            if len(seen[label]) >= made_with["min_count"]:
                remembered = torch.tensor(seen[label], dtype=dtype)
                group = group_advantages(remembered, delta=made_with["eps"])
                advantage[prompt == label] = group[-len(members) :]

        precise = dtype == torch.float64
        tolerance = {"rtol": 1e-11, "atol": 1e-12} if precise else {"rtol": 2e-6, "atol": 2e-6}
        torch.testing.assert_close(advantage, golden[f"{name}.advantages"].to(dtype), **tolerance)


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0.0}, "`delta` must be positive and finite; got 0.0"),
        ({"delta": math.nan}, "`delta` must be positive and finite; got nan"),
        ({"clip": 0.0}, "`clip` must be positive; got 0.0; `math.inf` keeps"),
        ({"clip": math.nan}, "`clip` must be positive; got nan"),
        ({"ddof": 2}, r"`ddof` must be 0 .* or 1 .*; got 2"),
        ({"ddof": -1}, r"`ddof` must be 0 .* or 1 .*; got -1"),
    ],
)
def test_refuses_a_setting_out_of_range(settings, message):
    """All three functions say the same."""
    reward, group = torch.ones(2), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=message):
        group_advantages(reward, **settings)
    with pytest.raises(ValueError, match=message):
        ragged_group_advantages(reward, group, **settings)
    with pytest.raises(ValueError, match=message):
        combined_group_advantages({"a": reward}, weights={"a": 1.0}, **settings)


def test_refuses_unknown_words():
    """With what is known."""
    with without_shape_checks():
        with pytest.raises(ValueError, match=r"`spread` must be one of .*'batch'.*; got 'all'"):
            group_advantages(torch.ones(2), spread="all")
        with pytest.raises(ValueError, match=r"`combine` must be one of .*; got 'both'"):
            combined_group_advantages({"a": torch.ones(2)}, weights={"a": 1.0}, combine="both")


def test_refuses_a_lone_sample_where_its_deviation_divides_by_zero():
    """A group of one has no deviation of the second kind; a batch of one neither."""
    match = "`ddof` must be less than the samples of a group, 1; got 1"
    with pytest.raises(ValueError, match=match):
        group_advantages(torch.ones(3, 1), ddof=1)
    with pytest.raises(ValueError, match=match):
        ragged_group_advantages(torch.ones(3), torch.tensor([0, 0, 1]), ddof=1)
    with pytest.raises(ValueError, match="samples of a batch, 1; got 1"):
        ragged_group_advantages(torch.ones(1), torch.tensor([0]), ddof=1, spread="batch")

    assert group_advantages(torch.ones(3, 1), ddof=1, spread="batch").tolist() == [[0.0]] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_refuses_half_precision(dtype):
    """A cosine near 0.2 has too few digits there to be compared."""
    with pytest.raises(ValueError, match="`reward` must be float32 or float64"):
        group_advantages(torch.ones(2, dtype=dtype))


def test_refuses_a_table_without_samples():
    """Empty, or a number alone."""
    with pytest.raises(ValueError, match=r"`reward` must not be empty; got shape \(0, 6\)"):
        group_advantages(torch.ones(0, 6))
    with without_shape_checks(), pytest.raises(ValueError, match="as its last axis; got a number"):
        group_advantages(torch.tensor(1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_what_is_not_finite_by_its_index(bad):
    """The first broken reward is named, with its scorer where there are several."""
    reward = torch.zeros(2, 3)
    reward[1, 2] = bad
    with pytest.raises(NonFiniteError, match=rf"`reward\[1, 2\]` must be finite; got {bad}"):
        group_advantages(reward)
    with pytest.raises(NonFiniteError, match=r"`rewards\['b'\]\[1, 2\]` must be finite"):
        combined_group_advantages(
            {"a": torch.zeros(2, 3), "b": reward}, weights={"a": 1.0, "b": 1.0}
        )


def test_refuses_labels_of_another_length():
    """With and without the annotations' own check."""
    with pytest.raises(TypeCheckError):
        ragged_group_advantages(torch.ones(3), torch.tensor([0, 1]))
    with without_shape_checks(), pytest.raises(ValueError, match=r"`group` must label each of"):
        ragged_group_advantages(torch.ones(3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ({}, {}, "`weights` must name the scorers of `rewards`, at least one"),
        ({"a": torch.ones(2)}, {"b": 1.0}, r"scorers of `rewards`.*\['a'\]; got \['b'\]"),
        (
            {"a": torch.ones(2), "b": torch.ones(2)},
            {"a": 1.0},
            r"scorers of `rewards`.*\['a', 'b'\]; got \['a'\]",
        ),
        ({"a": torch.ones(2)}, {"a": math.inf}, "`weights` must be finite; got inf for 'a'"),
        (
            {"a": torch.ones(2, 2), "b": torch.ones(2)},
            {"a": 1.0, "b": 1.0},
            "`rewards` must share one shape",
        ),
    ],
)
def test_refuses_tables_that_cannot_be_added(rewards, weights, message):
    """Names, shapes and weights."""
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        combined_group_advantages(rewards, weights=weights)


@pytest.mark.parametrize("spread", ["group", "batch"])
def test_refuses_labels_of_a_table(spread):
    """Samples lie along one axis; the batch's mean would be taken along the first of two."""
    reward, group = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0, 0], [1, 1]])
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match=r"`reward` must have one axis.*got shape \(2, 2\)"),
    ):
        ragged_group_advantages(reward, group, spread=spread)
