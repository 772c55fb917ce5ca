"""`update.loss_scale`: oracle, laws, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.update.loss_scale import LossScale, loss_scale_step

EXPONENT = st.integers(0, 32)


# -- oracle ------------------------------------------------------------------------------


@given(st.integers(8, 24), st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_equals_the_definition_step_by_step(exponent, finite, interval):
    """Half after an overflow, double after a run of finite steps, in plain integers."""
    state = LossScale(scale=2.0**exponent)
    run = 0
    for is_finite in finite:
        if not is_finite and exponent == 0:
            break
        run = run + 1 if is_finite else 0
        exponent -= not is_finite
        if run == interval:
            exponent, run = min(exponent + 1, 32), 0
        state = loss_scale_step(state, finite=is_finite, growth_interval=interval)

        assert state == LossScale(scale=2.0**exponent, good_steps=run)


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4))
def test_equals_torch_s_scaler(finite, interval):
    """Which changes a tensor in place."""
    state, scale = LossScale(), torch.tensor(65536.0)
    count = torch.tensor(0, dtype=torch.int32)
    for is_finite in finite[:16]:
        state = loss_scale_step(state, finite=is_finite, growth_interval=interval)
        overflow = torch.tensor(float(not is_finite))
        torch._amp_update_scale_(scale, count, overflow, 2.0, 0.5, interval)

        assert (state.scale, state.good_steps) == (scale.item(), count.item())


# -- laws --------------------------------------------------------------------------------


def test_begins_at_two_to_the_sixteenth_and_grows_after_two_thousand_steps():
    """As the scaler of torch does, which the released trainer has."""
    state = LossScale()
    for _ in range(1999):
        state = loss_scale_step(state, finite=True)
    assert (state.scale, state.good_steps) == (65536.0, 1999)
    assert loss_scale_step(state, finite=True) == LossScale(scale=131072.0, good_steps=0)


@given(EXPONENT, st.integers(0, 9), st.booleans())
def test_stays_a_power_of_two_within_its_range(exponent, good_steps, finite):
    """So that multiplying and dividing by it is exact."""
    state = LossScale(scale=2.0**exponent, good_steps=good_steps)
    if finite or exponent:
        after = loss_scale_step(state, finite=finite, growth_interval=10).scale

        assert math.frexp(after)[0] == 0.5
        assert 1.0 <= after <= 2.0**32


# -- errors ------------------------------------------------------------------------------


def test_an_overflow_of_the_plain_gradient_is_an_error():
    """There is no smaller scale to try."""
    with pytest.raises(NonFiniteError, match="`gradient_norm` must be finite"):
        loss_scale_step(LossScale(scale=1.0), finite=False)


@pytest.mark.parametrize("scale", [0.5, 3.0, 0.0, -2.0, 2.0**33, math.inf, math.nan])
def test_rejects_a_scale_that_is_no_power_of_two_in_range(scale):
    """The message gives range and remedy."""
    with pytest.raises(ValueError, match=r"`scale` must be a power of two in \[1, 2\^32\]; got"):
        LossScale(scale=scale)


@pytest.mark.parametrize("count", [{"good_steps": -1}])
def test_rejects_a_negative_count(count):
    """A count of steps."""
    with pytest.raises(ValueError, match="`good_steps` must not be negative; got -1"):
        LossScale(**count)


def test_rejects_an_interval_of_nothing():
    """It would double at every step."""
    with pytest.raises(ValueError, match="`growth_interval` must be at least 1; got 0"):
        loss_scale_step(LossScale(), finite=True, growth_interval=0)
