"""`rollout.finish`: laws of the grids that end a rollout sooner, errors."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mvczigal_ref.rollout.finish import compressed_tail, finishing_sampler, require_strides
from tests.unannotated import without_shape_checks
from tests.unit.rollout.flow_cases import flow


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 3), st.data())
def test_a_long_last_stride_leaves_out_the_level_where_a_short_one_would_begin(
    num_steps, stride, fine, data
):
    """Otherwise the grid is the same, and where the stride fits it is so bit for bit."""
    sampler = flow(num_steps)
    start = data.draw(st.integers(0, num_steps - 1))
    told = {"start": start, "stride": stride, "fine_steps": fine}
    short = finishing_sampler(sampler, **told)
    long = finishing_sampler(sampler, **told, last_stride="long")
    left = num_steps - min(start + fine, num_steps)
    fewer = left % stride != 0 and short.num_steps > 1

    assert long.num_steps == short.num_steps - fewer
    assert torch.equal(long.sigma_t, short.sigma_t[: long.num_steps])
    assert long.sigma_prev[-1] == short.sigma_prev[-1] == 0.0


def test_the_released_grid_of_granular_grpo():
    """After the noisy step 3 of 16 the levels 4, 5, 7, ..., 13, whose clean prediction is shown.

    After step 4 the stride fits, and the grid ends with a step of its own to level 0.
    """
    sampler = flow(16, image_is_denoised=True)
    told = {"stride": 2, "fine_steps": 1, "last_stride": "long"}
    odd = finishing_sampler(sampler, start=4, **told)
    even = finishing_sampler(sampler, start=5, **told)

    assert odd.sigma_t.tolist() == sampler.sigma_t[[4, 5, 7, 9, 11, 13]].tolist()
    assert even.sigma_t.tolist() == sampler.sigma_t[[5, 6, 8, 10, 12, 14]].tolist()
    assert odd.image_is_denoised


@given(st.integers(1, 60), st.integers(1, 100), st.data())
@example(50, 58, None)  # 0.58 * 50 is 28.999999999999996 in floats
def test_a_tail_has_its_share_of_the_steps_evenly_spread(num_steps, hundredths, data):
    """It begins where it is told, ends at 0, and no two gaps differ by more than one step."""
    sampler = flow(num_steps)
    start = data.draw(st.integers(0, num_steps - 1)) if data else 0
    tail = compressed_tail(sampler, start=start, share=hundredths / 100)
    levels = sampler.sigma_t.tolist()
    places = [levels.index(level) for level in tail.sigma_t.tolist()]
    gaps = [b - a for a, b in zip(places, [*places[1:], num_steps], strict=True)]

    assert tail.num_steps == max(1, hundredths * (num_steps - start) // 100)
    assert places[0] == start
    assert tail.sigma_prev[-1] == 0.0
    assert max(gaps) - min(gaps) <= 1
    assert tail.timesteps.tolist() == [1000.0 * levels[place] for place in places]
    assert tail.num_density_steps == 0


def test_a_whole_tail_is_the_rest_of_the_grid():
    """And keeps the solver of the grid."""
    sampler = flow(7, ode="dpm2m")
    tail = compressed_tail(sampler, start=3, share=1.0)

    assert torch.equal(tail.sigma_t, sampler.sigma_t[3:])
    assert tail.ode == "dpm2m"


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_a_share_outside_its_range_is_refused(share):
    """None of the steps would be taken, or more than there are."""
    with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\]; got"):
        compressed_tail(flow(4), start=1, share=share)


def test_an_unknown_end_and_a_stride_that_stands_still_are_refused():
    """With the choice that there is."""
    with without_shape_checks(), pytest.raises(ValueError, match="`last_stride` must be"):
        finishing_sampler(flow(4), start=1, stride=2, last_stride="none")
    with pytest.raises(ValueError, match=r"`fine_steps` must be at least 0; got -1"):
        require_strides((1,), -1)
