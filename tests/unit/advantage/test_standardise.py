"""Standardising rewards: oracle, laws, gradients, golden values, errors."""

import math
import statistics

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mvczigal_ref.advantage import standardise
from mvczigal_ref.advantage.standardise import (
    check_rewards,
    equal_up_to_rounding,
    power_of_two,
)
from mvczigal_ref.errors import NonFiniteError
from tests.golden import constants, tensors
from tests.unit.objective.strategies import same_shape

REWARDS = same_shape(1, low=-20.0, high=20.0).map(lambda tensors: tensors[0])
EPS = st.floats(1e-8, 10.0)


def spread(reward):
    """Population deviation, by the standard library."""
    return statistics.pstdev(reward.flatten().tolist())


# -- oracle --------------------------------------------------------------------------------


@given(REWARDS, EPS)
def test_is_the_distance_to_the_mean_in_deviations(reward, eps):
    """Every axis counts alike, and the deviation divides by n."""
    values = reward.flatten().tolist()
    centre, scale = statistics.fmean(values), spread(reward) + eps
    expected = [(value - centre) / scale for value in values]
    advantage = standardise(reward, eps=eps)

    assert advantage.shape == reward.shape
    # The mean of numbers up to 20 is exact to 1e-14, and the deviation may be as small as eps.
    assert advantage.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13 / scale)


# -- laws ----------------------------------------------------------------------------------


@given(REWARDS)
def test_mean_is_zero_and_deviation_one(reward):
    """A whitening that misses its mean would pass for one."""
    assume(spread(reward) > 1e-3)
    advantage = standardise(reward, eps=1e-12)

    assert statistics.fmean(advantage.flatten().tolist()) == pytest.approx(0.0, abs=1e-11)
    assert spread(advantage) == pytest.approx(1.0, rel=1e-8)


@given(REWARDS, st.floats(-100.0, 100.0), st.floats(0.01, 100.0))
def test_unit_and_origin_of_the_rewards_do_not_matter(reward, shift, scale):
    """A cosine of 0.2 and a score out of 10 are treated alike."""
    assume(spread(reward) > 1e-3)
    one = standardise(reward, eps=1e-14)
    two = standardise(reward * scale + shift, eps=1e-14)

    torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-7)


@given(REWARDS)
def test_turning_the_rewards_over_turns_the_advantages_over(reward):
    """No sign is preferred."""
    torch.testing.assert_close(standardise(-reward), -standardise(reward), rtol=1e-9, atol=1e-6)


@given(
    st.floats(-1e6, 1e6, allow_subnormal=False),
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_constant_rewards_give_exactly_zero(value, shape, dtype):
    """Not NaN, and not the rounding of a mean magnified by a vanishing deviation."""
    advantage = standardise(torch.full(shape, value, dtype=dtype))

    assert advantage.dtype == dtype
    assert torch.equal(advantage, torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [20.0, -0.2, 1e-6])
@pytest.mark.parametrize("units", [1, 3])
def test_rewards_equal_up_to_rounding_give_exactly_zero(dtype, value, units):
    """One sample among 48 that is a last digit higher is no better than the others."""
    reward = torch.full((2, 4, 6), value, dtype=dtype)
    for _ in range(units):
        reward[1, 2, 3] = torch.nextafter(reward[1, 2, 3], torch.tensor(100.0, dtype=dtype))

    assert (reward != value).sum() == 1
    assert torch.equal(standardise(reward, eps=1e-30), torch.zeros_like(reward))


@given(REWARDS, st.floats(17.0, 1e6))
def test_a_spread_above_rounding_is_standardised_whole(reward, units):
    """The floor is a threshold: it changes no bit of what lies above it."""
    largest = reward.abs().max()
    assume(largest > 0.1)
    near = torch.stack([largest, largest * (1 + units * torch.finfo(torch.float64).eps)])
    apart = near - near.min()
    centred = apart - apart.mean()

    assert torch.equal(
        standardise(near, eps=1e-30), centred / (centred.square().mean().sqrt() + 1e-30)
    )
    assert equal_up_to_rounding(near[:1].expand(2))
    assert not equal_up_to_rounding(near)


@given(st.floats(1e-3, 1e3), st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_sixteen_units_of_the_largest_reward_are_rounding(value, units, dtype):
    """Of its size, not of the sign; along the axes that are named."""
    unit = torch.finfo(dtype).eps * value
    pair = torch.tensor([[-value, -value + units * unit], [0.0, value]], dtype=dtype)
    apart = (pair[0, 1] - pair[0, 0]).item()

    assert equal_up_to_rounding(pair, dim=(1,)).tolist() == [[apart <= 16 * unit], [False]]
    assert not equal_up_to_rounding(pair)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_larger_magnitude_is_the_unit(sign):
    """Of the highest and the lowest reward, whichever it is."""
    unit = torch.finfo(torch.float64).eps
    pair = sign * torch.tensor([1.0, 1.0 - 16 * unit], dtype=torch.float64)

    assert equal_up_to_rounding(pair)
    assert not equal_up_to_rounding(
        sign * torch.tensor([1.0, 1.0 - 17 * unit], dtype=torch.float64)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rewards_as_large_as_the_dtype_holds_are_standardised(dtype):
    """A scorer's sentinel for a failure, whose square or distance is no number of the dtype."""
    largest = torch.finfo(dtype).max
    bound = math.sqrt(1.5)
    ends = standardise(torch.tensor([-largest, 0.0, largest], dtype=dtype))
    beside = standardise(torch.tensor([-1e30, 1.0, 2.0, 3.0], dtype=dtype))

    assert ends.tolist() == pytest.approx([-bound, 0.0, bound], rel=1e-6)
    assert beside.tolist() == pytest.approx([-math.sqrt(3.0), *[1 / math.sqrt(3.0)] * 3], rel=1e-6)


@given(st.floats(0.0, 2.0**127, width=32), st.sampled_from([torch.float32, torch.float64]))
def test_the_unit_of_rewards_is_a_power_of_two(value, dtype):
    """The largest that does not exceed them; 1 where they are smaller."""
    expected = 2.0 ** max(math.frexp(value)[1] - 1, 0)
    reward = torch.tensor([[-value, 0.0], [0.5, 0.0]], dtype=dtype)

    assert power_of_two(reward, dim=(-1,)).tolist() == [[expected], [1.0]]
    assert power_of_two(reward).item() == expected


@given(REWARDS, st.integers(1, 900))
def test_a_power_of_two_changes_no_bit(reward, power):
    """Rewards are brought to size without rounding."""
    assume(spread(reward) > 1e-3)
    scale = 2.0**power

    assert torch.equal(standardise(reward * scale, eps=scale * 1e-8), standardise(reward))


# -- gradients -----------------------------------------------------------------------------


def test_derivative_agrees_with_finite_differences():
    """Rewards that carry a graph are not cut off from it."""
    reward = torch.tensor([[0.3, -1.0], [2.0, 0.7]], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda r: standardise(r, eps=0.1), (reward,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_have_a_derivative_of_zero(dtype):
    """The root in the deviation has none at 0, and must not make the reward's a broken number."""
    reward = torch.full((2, 3), 0.1, dtype=dtype, requires_grad=True)
    standardise(reward).square().sum().backward()
    huge = torch.full((2, 3), 1e38, dtype=dtype, requires_grad=True)
    standardise(huge).square().sum().backward()

    assert torch.equal(reward.grad, torch.zeros_like(reward))
    assert torch.equal(huge.grad, torch.zeros_like(reward))


# -- golden --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", "ab")
def test_released_trainer_per_view(case):
    """All processes, both arms, all prompts and views are one population."""
    golden = tensors("objective", f"advantages_{case}")
    made_with = constants("objective", f"advantages_{case}")
    advantage = standardise(golden["rewards"])
    arms = advantage.reshape(int(made_with["num_processes"]), 2, -1)

    # fp32, of numbers of size 1 that are differences.
    torch.testing.assert_close(arms[:, 0], golden["adv1"], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(arms[:, 1], golden["adv2"], rtol=2e-6, atol=2e-6)


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, -1e-8, math.nan, math.inf])
def test_refuses_an_eps_that_does_not_guard(eps):
    """Zero would make constant rewards NaN."""
    with pytest.raises(ValueError, match=rf"`eps` must be positive and finite; got {eps}"):
        standardise(torch.ones(2), eps=eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_refuses_half_precision(dtype):
    """A cosine near 0.2 has too few digits there to be compared."""
    with pytest.raises(ValueError, match="`reward` must be float32 or float64"):
        standardise(torch.ones(2, dtype=dtype))


def test_refuses_an_empty_table():
    """Its mean would be NaN."""
    with pytest.raises(ValueError, match=r"`reward` must not be empty; got shape \(0, 6\)"):
        standardise(torch.ones(0, 6))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("shape", "index", "place"),
    [
        ((4,), (1,), (1, None)),
        ((3, 4), (1, 2), (1, 2)),
        ((2, 3, 4), (1, 0, 3), (None, None)),
    ],
)
def test_refuses_what_is_not_finite_by_its_index(bad, shape, index, place):
    """The first broken reward is named as far as the axes are known."""
    reward = torch.zeros(shape)
    reward[index] = bad
    reward.view(-1)[-1] = math.nan if math.isinf(bad) else math.inf
    with pytest.raises(NonFiniteError) as caught:
        standardise(reward)

    assert caught.value.what == "reward"
    assert (caught.value.object, caught.value.view) == place
    assert caught.value.value == pytest.approx(bad, nan_ok=True)


def test_checks_every_table_it_is_given():
    """The second table's name and index, not the first's."""
    with pytest.raises(NonFiniteError, match="`two` must be finite; got nan at object 0, view 1"):
        check_rewards(one=torch.zeros(2, 2), two=torch.tensor([[0.0, math.nan]]))
