"""`diffusion.flow_schedule`: oracle, laws, gradients, golden values, errors."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow_schedule import flow_sigmas, resolution_shift, shift_sigma
from tests import golden
from tests.compare import FP32, FP64, assert_equal_to

SHIFTS = st.floats(0.05, 20.0)
STEPS = st.integers(1, 60)
LEVELS = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=8)


def shifted(sigma, shift):
    """Divide the odds of signal against noise by ``shift``."""
    if sigma in (0.0, 1.0):
        return sigma
    odds = (1 - sigma) / sigma / shift
    return 1 / (1 + odds)


def log_shift(num_tokens, base=256, most=4096, low=0.5, high=1.15):
    """Go along the line through two resolutions."""
    slope = (high - low) / (most - base)
    return num_tokens * slope + low - slope * base


# -- oracle ------------------------------------------------------------------------------


@given(LEVELS, SHIFTS)
def test_shift_equals_the_scalar_definition(levels, shift):
    """One level at a time, by odds."""
    expected = torch.tensor([shifted(s, shift) for s in levels], dtype=torch.float64)

    assert_equal_to(shift_sigma(torch.tensor(levels, dtype=torch.float64), shift), expected, 1e-11)


@given(STEPS, SHIFTS, st.one_of(st.none(), st.floats(1e-4, 0.5)))
def test_grid_equals_the_scalar_definition(num_steps, shift, lowest):
    """Evenly spaced, shifted, and 0 at the end."""
    low = 1 / num_steps if lowest is None else lowest
    even = [1 - (1 - low) * i / max(num_steps - 1, 1) for i in range(num_steps)]
    expected = torch.tensor([*(shifted(s, shift) for s in even), 0.0], dtype=torch.float64)

    assert_equal_to(flow_sigmas(num_steps, shift=shift, lowest_sigma=lowest), expected, 1e-11)


@given(st.integers(1, 20_000))
def test_resolution_shift_equals_the_scalar_definition(num_tokens):
    """A line in the exponent; with every setting changed too."""
    other = resolution_shift(
        num_tokens, base_tokens=100, max_tokens=9000, base_log_shift=0.25, max_log_shift=1.5
    )

    assert resolution_shift(num_tokens) == pytest.approx(math.exp(log_shift(num_tokens)), rel=FP64)
    assert other == pytest.approx(math.exp(log_shift(num_tokens, 100, 9000, 0.25, 1.5)), rel=FP64)


@pytest.mark.parametrize("num_tokens", [64, 1024, 16384])
def test_resolution_shift_equals_the_flux_pipeline(num_tokens):
    """Its ``mu`` is our exponent."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    expected = math.exp(calculate_shift(num_tokens))

    assert resolution_shift(num_tokens) == pytest.approx(expected, rel=FP64)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 28])
@pytest.mark.parametrize("num_tokens", [256, 1024, 4096])
def test_flux_grid_equals_diffusers(num_steps, num_tokens):
    """As the FLUX pipeline hands levels and shift to the scheduler, which rounds to fp32."""
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(
        sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=log_shift(num_tokens)
    )
    ours = flow_sigmas(num_steps, shift=resolution_shift(num_tokens), dtype=torch.float32)

    assert_equal_to(ours, theirs.sigmas, FP32)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 40])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_sd3_grid_equals_diffusers(num_steps, shift):
    """Its lowest level has been shifted when the scheduler was made, and is shifted again."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(num_steps)
    lowest = shift_sigma(torch.tensor(1e-3, dtype=torch.float64), shift).item()
    ours = flow_sigmas(num_steps, shift=shift, lowest_sigma=lowest, dtype=torch.float32)

    assert_equal_to(ours, theirs.sigmas, FP32)


@pytest.mark.parametrize("num_tokens", [256, 4096])
def test_sd3_grid_with_a_shift_by_resolution_equals_diffusers(num_tokens):
    """Down to the lowest trained level, which is shifted once."""
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(12, mu=log_shift(num_tokens))
    ours = flow_sigmas(
        12, shift=resolution_shift(num_tokens), lowest_sigma=1e-3, dtype=torch.float32
    )

    assert_equal_to(ours, theirs.sigmas, FP32)


# -- laws --------------------------------------------------------------------------------


@given(STEPS, SHIFTS, st.one_of(st.none(), st.floats(1e-4, 0.5)))
def test_grids_fall_strictly_from_exactly_one_to_exactly_zero(num_steps, shift, lowest):
    """Pure noise is a case of its own in the stochastic step, so 1 must be 1."""
    sigmas = flow_sigmas(num_steps, shift=shift, lowest_sigma=lowest)

    assert sigmas.shape == (num_steps + 1,)
    assert sigmas[0] == 1.0
    assert sigmas[-1] == 0.0
    assert (sigmas.diff() < 0).all()


@given(LEVELS, SHIFTS, SHIFTS)
def test_shifts_compose_and_one_is_the_identity(levels, first, second):
    """Two shifts are their product; a shift and its inverse are nothing."""
    sigma = torch.tensor(levels, dtype=torch.float64)
    both = shift_sigma(shift_sigma(sigma, first), second)

    assert_equal_to(both, shift_sigma(sigma, first * second), 1e-10)
    assert_equal_to(shift_sigma(shift_sigma(sigma, first), 1 / first), sigma, 1e-10)
    assert torch.equal(shift_sigma(sigma, 1.0), sigma)


@given(st.floats(0.01, 0.99), st.floats(1.01, 20.0))
def test_a_shift_above_one_is_noisier(sigma, shift):
    """And below one cleaner."""
    level = torch.tensor(sigma, dtype=torch.float64)

    assert shift_sigma(level, 1 / shift) < level < shift_sigma(level, shift)


def test_resolution_shift_passes_through_its_two_points_and_grows():
    """A 512-pixel FLUX image has 1024 tokens, a 1024-pixel one 4096."""
    assert resolution_shift(256) == pytest.approx(math.exp(0.5), rel=FP64)
    assert resolution_shift(4096) == pytest.approx(math.exp(1.15), rel=FP64)
    assert resolution_shift(1024) < resolution_shift(4096) < resolution_shift(9216)


def test_defaults_are_no_shift_and_even_levels():
    """In double precision."""
    assert flow_sigmas(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow_sigmas(4).dtype == torch.float64


# -- gradients ---------------------------------------------------------------------------


def test_a_shift_has_its_derivative():
    """By finite differences."""
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda s: shift_sigma(s, 3.0), (sigma,))


# -- golden parity -----------------------------------------------------------------------


@pytest.mark.parametrize("name", golden.names("flow", "flow_grpo_sde_"))
def test_golden_grids_of_flow_grpo(name):
    """Stable Diffusion 3's scheduler, in fp32."""
    settings, reference = golden.constants("flow", name), golden.tensors("flow", name)
    lowest = shift_sigma(torch.tensor(1e-3, dtype=torch.float64), settings["shift"]).item()
    ours = flow_sigmas(
        settings["num_inference_steps"], shift=settings["shift"], lowest_sigma=lowest
    )

    assert_equal_to(ours.float(), reference["sigmas"], FP32)


@pytest.mark.parametrize("name", golden.names("flow", "dance_flux_step_"))
def test_golden_grids_of_dance_grpo(name):
    """Evenly spaced and shifted, in fp32."""
    settings, reference = golden.constants("flow", name), golden.tensors("flow", name)
    ours = flow_sigmas(settings["num_steps"], shift=settings["shift"])

    assert_equal_to(ours.float(), reference["sigmas"], FP32)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_shift_that_is_not_positive_is_refused(bad):
    """By a grid too."""
    with pytest.raises(ValueError, match=rf"`shift` must be positive and finite; got {bad}"):
        shift_sigma(torch.ones(2), bad)
    with pytest.raises(ValueError, match=rf"`shift` must be positive and finite; got {bad}"):
        flow_sigmas(4, shift=bad)


@pytest.mark.parametrize("bad", [0, -3])
def test_a_grid_has_a_step(bad):
    """One step is the least."""
    with pytest.raises(ValueError, match=rf"`num_steps` must be at least 1; got {bad}"):
        flow_sigmas(bad)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, math.nan])
def test_the_lowest_level_lies_between_clean_and_noise(bad):
    """0 is appended by itself; 1 leaves no room for a second level."""
    with pytest.raises(ValueError, match=rf"`lowest_sigma` must be in \(0, 1\); got {bad}"):
        flow_sigmas(2, lowest_sigma=bad)


def test_half_precision_is_refused():
    """Levels in fp16 are a thousandth apart."""
    with pytest.raises(ValueError, match="`sigma` must be float32 or float64"):
        shift_sigma(torch.ones(2).half(), 1.0)
    with pytest.raises(ValueError, match=r"`dtype` must be .* got torch.bfloat16"):
        flow_sigmas(2, dtype=torch.bfloat16)


def test_resolution_shift_refuses_what_is_no_resolution():
    """And two points that span no line."""
    with pytest.raises(ValueError, match="`num_tokens` must be at least 1; got 0"):
        resolution_shift(0)
    with pytest.raises(ValueError, match="`max_tokens` must be above base_tokens = 8; got 8"):
        resolution_shift(4, base_tokens=8, max_tokens=8)
