"""`diffusion.schedule`: oracle, laws, gradients, golden values, errors."""

import inspect
import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, LCMScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.schedule import (
    betas_from_alpha_bar,
    clean_and_noise,
    ddim_timesteps,
    lcm_timesteps,
    noised_latent,
    scaled_linear_alpha_bar,
    shift_snr,
)
from tests import golden, oracles
from tests.compare import FP32, FP64, assert_equal_to
from tests.strategies import PREDICTION_TYPES, randn, steps

KINDS = ["epsilon", "v_prediction", "sample"]
MODES = ["interpolated", "default"]
SCALES = st.floats(0.1, 20.0)
NOISIER = st.floats(1.0, 20.0)


# -- oracle ------------------------------------------------------------------------------


@given(st.integers(2, 1000), st.floats(1e-5, 0.01), st.floats(1.0, 20.0))
def test_alpha_bar_equals_the_running_product(count, first, ratio):
    """Square roots of the betas are linear; the shares multiply up."""
    alpha_bar = scaled_linear_alpha_bar(
        num_train_timesteps=count, beta_start=first, beta_end=first * ratio
    )
    expected = oracles.scaled_linear_alpha_bar(count, first, first * ratio)

    assert_equal_to(alpha_bar, torch.tensor(expected, dtype=torch.float64), FP64)


@given(st.integers(2, 50), SCALES, st.sampled_from(MODES))
def test_shift_equals_division_of_the_ratio(count, scale, mode):
    """By ``scale`` to a power that grows with the timestep, or is 1."""
    alpha_bar = scaled_linear_alpha_bar(num_train_timesteps=count)
    expected = oracles.shifted_alpha_bar(alpha_bar.tolist(), scale, mode)

    assert_equal_to(
        shift_snr(alpha_bar, scale, mode=mode), torch.tensor(expected, dtype=torch.float64), FP64
    )


@given(st.integers(2, 50), NOISIER, st.sampled_from(MODES))
def test_betas_equal_the_shares_taken_away(count, scale, mode):
    """The first one from a signal share of 1."""
    alpha_bar = shift_snr(scaled_linear_alpha_bar(num_train_timesteps=count), scale, mode=mode)
    expected = torch.tensor(oracles.betas(alpha_bar.tolist()), dtype=torch.float64)

    # The oracle's quotient is near 1, which costs its difference three digits.
    assert_equal_to(betas_from_alpha_bar(alpha_bar), expected, 1e-9)


@given(steps(), PREDICTION_TYPES)
def test_clean_and_noise_solve_their_two_equations(drawn, kind):
    """One latent at a time, in floats."""
    output, latent, level, _, _ = drawn
    clean, noise = clean_and_noise(output, latent, alpha_bar_t=level, prediction_type=kind)
    expected = oracles.per_element(
        lambda *numbers: oracles.clean_and_noise(kind, *numbers), (output, latent), (level,)
    )

    assert_equal_to(clean, expected[0], FP64, axes=3)
    assert_equal_to(noise, expected[1], FP64, axes=3)


@pytest.mark.parametrize("num_steps", range(1, 51))
def test_lcm_grid_equals_diffusers(num_steps):
    """At every length that the distillation grid allows."""
    scheduler = LCMScheduler(original_inference_steps=50)
    scheduler.set_timesteps(num_steps)

    assert torch.equal(lcm_timesteps(num_steps), scheduler.timesteps)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 8, 16, 30, 50, 333, 500, 999])
def test_ddim_grid_equals_diffusers_both_ways(num_steps):
    """Down and, reversed, up."""
    down = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    up = DDIMInverseScheduler(timestep_spacing="leading", steps_offset=1)
    down.set_timesteps(num_steps)
    up.set_timesteps(num_steps)

    assert torch.equal(ddim_timesteps(num_steps), down.timesteps)
    assert torch.equal(ddim_timesteps(num_steps).flip(0), up.timesteps)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_alpha_bar_falls_strictly_inside_the_unit_interval(dtype, mode, scale):
    """Shifted or not, in both precisions, and the dtype is the one asked for."""
    alpha_bar = shift_snr(scaled_linear_alpha_bar(dtype=dtype), scale, mode=mode)

    assert alpha_bar.dtype == dtype
    assert (alpha_bar > 0).all()
    assert (alpha_bar < 1).all()
    assert (alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_shift_by_one_is_the_identity(mode):
    """Nothing is divided."""
    alpha_bar = scaled_linear_alpha_bar()

    assert_equal_to(shift_snr(alpha_bar, 1.0, mode=mode), alpha_bar, FP64)


@given(SCALES, SCALES, st.sampled_from(MODES))
def test_shifts_compose_by_multiplication(one, two, mode):
    """Shifting twice is shifting by the product."""
    alpha_bar = scaled_linear_alpha_bar(num_train_timesteps=20)
    twice = shift_snr(shift_snr(alpha_bar, one, mode=mode), two, mode=mode)

    assert_equal_to(twice, shift_snr(alpha_bar, one * two, mode=mode), FP64)


@given(SCALES)
def test_interpolated_shift_keeps_the_cleanest_level_and_shifts_the_noisiest_fully(scale):
    """The two modes agree at the last timestep, and only there if they differ at all."""
    alpha_bar = scaled_linear_alpha_bar(num_train_timesteps=20)
    interpolated = shift_snr(alpha_bar, scale)
    default = shift_snr(alpha_bar, scale, mode="default")

    assert_equal_to(interpolated[:1], alpha_bar[:1], FP64)
    assert_equal_to(interpolated[-1:], default[-1:], FP64)


@given(st.integers(1, 1000), st.integers(1, 50), st.data())
def test_lcm_grid_is_a_falling_subset_of_the_distillation_grid(count, original, data):
    """Whatever the lengths; the noisiest level is always in it."""
    original = min(original, count)
    grid = lcm_timesteps(original, num_train_timesteps=count, original_num_steps=original)
    taken = lcm_timesteps(
        data.draw(st.integers(1, original)), num_train_timesteps=count, original_num_steps=original
    )

    assert (taken.diff() < 0).all()
    assert set(taken.tolist()) <= set(grid.tolist())
    assert taken[0] == grid[0] == original * (count // original) - 1
    assert grid[-1] == count // original - 1
    assert taken.dtype == torch.int64


@given(st.integers(2, 1000), st.data())
def test_ddim_grid_falls_in_equal_strides_to_the_offset(count, data):
    """Inside the training grid, at any offset that fits."""
    num_steps = data.draw(st.integers(1, count))
    stride = count // num_steps
    offset = data.draw(st.integers(0, count - 1 - (num_steps - 1) * stride))
    grid = ddim_timesteps(num_steps, num_train_timesteps=count, steps_offset=offset)

    assert grid.shape == (num_steps,)
    assert grid[-1] == offset
    assert (grid.diff() == -stride).all()
    assert grid[0] < count
    assert grid.dtype == torch.int64


@given(steps(), PREDICTION_TYPES)
def test_clean_and_noise_mix_back_to_the_latent(drawn, kind):
    """Whatever the network says, the two explain the latent that it saw."""
    output, latent, level, _, _ = drawn
    clean, noise = clean_and_noise(output, latent, alpha_bar_t=level, prediction_type=kind)
    signal, rest = level.sqrt()[..., None, None, None], (1 - level).sqrt()[..., None, None, None]

    torch.testing.assert_close(signal * clean + rest * noise, latent, rtol=1e-10, atol=1e-10)
    mixed = noised_latent(clean, noise, alpha_bar_t=level)
    torch.testing.assert_close(mixed, latent, rtol=1e-10, atol=1e-10)


@given(steps())
def test_the_three_kinds_of_output_tell_the_same(drawn):
    """Say one clean latent as noise, velocity or itself: all three are read alike."""
    clean, noise, level, _, _ = drawn
    signal, rest = level.sqrt()[..., None, None, None], (1 - level).sqrt()[..., None, None, None]
    latent = signal * clean + rest * noise
    said = {"epsilon": noise, "v_prediction": signal * noise - rest * clean, "sample": clean}

    for kind, output in said.items():
        read = clean_and_noise(output, latent, alpha_bar_t=level, prediction_type=kind)
        torch.testing.assert_close(read[0], clean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(read[1], noise, rtol=1e-9, atol=1e-9)


@given(st.integers(2, 1000), NOISIER, st.sampled_from(MODES))
def test_betas_multiply_up_to_their_schedule(count, scale, mode):
    """Shifted or not; each takes some of the signal and never all."""
    alpha_bar = shift_snr(scaled_linear_alpha_bar(num_train_timesteps=count), scale, mode=mode)
    betas = betas_from_alpha_bar(alpha_bar)

    assert ((betas > 0) & (betas < 1)).all()
    torch.testing.assert_close((1 - betas).cumprod(0), alpha_bar, rtol=1e-12, atol=0)


def test_betas_of_the_base_schedule_have_linear_roots():
    """As it is defined, from its first share to its last."""
    alpha_bar = scaled_linear_alpha_bar()
    roots = betas_from_alpha_bar(alpha_bar).sqrt()
    expected = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)

    torch.testing.assert_close(roots, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", [DDIMScheduler, LCMScheduler])
def test_diffusers_samples_a_shifted_schedule_by_its_betas(kind):
    """Handed over as trained betas, which it keeps and multiplies up in fp32."""
    alpha_bar = shift_snr(scaled_linear_alpha_bar(), 8.0)
    scheduler = kind(trained_betas=betas_from_alpha_bar(alpha_bar).tolist())

    # A thousand factors rounded to fp32.
    assert_equal_to(scheduler.alphas_cumprod, alpha_bar.float(), 1e-5)


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_to_output_and_latent(kind):
    """By finite differences."""
    output, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    level = torch.tensor([0.3, 0.8], dtype=torch.float64)

    assert torch.autograd.gradcheck(
        lambda o, x: clean_and_noise(o, x, alpha_bar_t=level, prediction_type=kind),
        (output, latent),
    )


# -- golden parity -----------------------------------------------------------------------


def test_golden_grids():
    """At 4, 8 and 16 steps, down and up, integer for integer."""
    reference = golden.tensors("diffusion", "timesteps")
    for num_steps in (4, 8, 16):
        lcm, ddim = lcm_timesteps(num_steps), ddim_timesteps(num_steps)

        assert torch.equal(lcm, reference[f"lcm_{num_steps}"])
        assert torch.equal(ddim, reference[f"ddim_{num_steps}"])
        assert torch.equal(lcm.flip(0), reference[f"lcm_inverse_{num_steps}"])
        assert torch.equal(ddim.flip(0), reference[f"ddim_inverse_{num_steps}"])


def test_golden_unshifted_schedule():
    """In fp32 the same operations give the same bits."""
    reference = golden.tensors("diffusion", "shift_snr")["base_alphas_cumprod"]

    assert torch.equal(scaled_linear_alpha_bar(dtype=torch.float32), reference)


@pytest.mark.parametrize("mode", MODES)
def test_golden_shifted_schedule(mode):
    """fp64 against the closed form; fp32 against it and against the released code's fp32."""
    reference = golden.tensors("diffusion", "shift_snr")
    closed_form = reference[f"{mode}_8.0_alphas_cumprod_ref64"]
    released = reference[f"{mode}_8.0_alphas_cumprod"]
    narrow = shift_snr(reference["base_alphas_cumprod"], 8.0, mode=mode)

    assert_equal_to(shift_snr(scaled_linear_alpha_bar(), 8.0, mode=mode), closed_form, FP64)
    # The released code goes through betas and multiplies 1000 of them up again in fp32: both it
    # and the fp32 base schedule are 1e-6 to 2.3e-6 away from the closed form.
    assert_equal_to(narrow, closed_form.float(), 3e-6)
    assert_equal_to(narrow, released, FP32)


@pytest.mark.parametrize("mode", MODES)
def test_golden_betas(mode):
    """Of the shifted schedule, as the released code hands them to diffusers in fp32."""
    reference = golden.tensors("diffusion", "shift_snr")
    betas = betas_from_alpha_bar(shift_snr(scaled_linear_alpha_bar(), 8.0, mode=mode))

    # The released fp32 quotient is near 1: its last bit, 6e-8, is 1e-4 of the first beta.
    assert_equal_to(betas.float(), reference[f"{mode}_8.0_betas"], 3e-4)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"num_train_timesteps": 1}, "`num_train_timesteps` must be at least 2; got 1"),
        ({"beta_start": 0.0}, r"`beta_start` must be in \(0, beta_end = 0.012\]; got 0.0"),
        ({"beta_start": 0.5}, r"`beta_start` must be in \(0, beta_end = 0.012\]; got 0.5"),
        ({"beta_start": math.nan}, r"`beta_start` must be .* got nan"),
        ({"beta_end": 1.0}, "`beta_end` must be below 1; got 1.0"),
        ({"dtype": torch.float16}, "`dtype` must be .* got torch.float16"),
    ],
)
def test_schedule_refuses_settings_outside_their_range(bad, rule):
    """Every setting by its name."""
    with pytest.raises(ValueError, match=rule):
        scaled_linear_alpha_bar(**bad)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_shift_refuses_a_scale_that_is_no_ratio(scale):
    """NaN compares false, so it is refused too."""
    with pytest.raises(ValueError, match=rf"`scale` must be positive and finite; got {scale}"):
        shift_snr(torch.tensor([0.5]), scale)


def test_shift_refuses_half_precision_and_unknown_modes():
    """The mode is checked where annotations are not."""
    with pytest.raises(ValueError, match="`alpha_bar` must be float32"):
        shift_snr(torch.tensor([0.5], dtype=torch.float16), 2.0)
    with pytest.raises(ValueError, match=r"`mode` must be one of .*; got 'linear'"):
        inspect.unwrap(shift_snr)(torch.tensor([0.5]), 2.0, mode="linear")


@pytest.mark.parametrize(
    "bad", [[0.5, 0.9], [0.5, 0.5], [1.0, 0.5], [0.5, 0.0], [0.5, -0.1], [0.5, math.nan]]
)
def test_betas_of_no_schedule_are_refused(bad):
    """They would not lie in (0, 1)."""
    with pytest.raises(ValueError, match=r"`alpha_bar` must be strictly decreasing in \(0, 1\)"):
        betas_from_alpha_bar(torch.tensor(bad))
    with pytest.raises(ValueError, match="`alpha_bar` must be float32"):
        betas_from_alpha_bar(torch.tensor([0.9, 0.5], dtype=torch.float16))


@pytest.mark.parametrize("num_steps", [0, -1, 51])
def test_lcm_grid_refuses_a_length_that_does_not_fit(num_steps):
    """No more steps than the distillation grid has."""
    with pytest.raises(ValueError, match=rf"`num_steps` must be in 1\.\.50.*got {num_steps}"):
        lcm_timesteps(num_steps)


@pytest.mark.parametrize("original", [0, 1001])
def test_lcm_grid_refuses_a_distillation_grid_that_does_not_fit(original):
    """No longer than the training grid."""
    with pytest.raises(ValueError, match=rf"`original_num_steps` must be in 1\.\.1000.*{original}"):
        lcm_timesteps(1, original_num_steps=original)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_ddim_grid_refuses_a_length_that_does_not_fit(num_steps):
    """No more steps than the training grid has."""
    with pytest.raises(ValueError, match=rf"`num_steps` must be in 1\.\.1000.*got {num_steps}"):
        ddim_timesteps(num_steps)


@pytest.mark.parametrize(
    ("num_steps", "offset", "room"), [(1000, 1, 0), (4, 250, 249), (4, -1, 249)]
)
def test_ddim_grid_refuses_an_offset_that_leaves_the_schedule(num_steps, offset, room):
    """The library would index past the end, or from it."""
    rule = rf"`steps_offset` must be in 0\.\.{room} .*got {offset}"
    with pytest.raises(ValueError, match=rule):
        ddim_timesteps(num_steps, steps_offset=offset)


@pytest.mark.parametrize("name", ["output", "latent_t", "alpha_bar_t"])
def test_clean_and_noise_refuse_half_precision_by_name(name):
    """Any of the three tensors."""
    tensors = {
        "output": torch.zeros(1, 1, 1),
        "latent_t": torch.zeros(1, 1, 1),
        "alpha_bar_t": torch.tensor(0.5),
    }
    tensors[name] = tensors[name].half()
    with pytest.raises(
        ValueError, match=rf"`{name}` must be float32 or float64; got torch.float16"
    ):
        clean_and_noise(**tensors, prediction_type="epsilon")


def test_clean_and_noise_refuse_an_unknown_kind():
    """Where annotations are not checked."""
    zero = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=r"`prediction_type` must be one of .*; got 'flow'"):
        inspect.unwrap(clean_and_noise)(
            zero, zero, alpha_bar_t=torch.tensor(0.5), prediction_type="flow"
        )
