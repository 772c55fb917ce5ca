"""`diffusion.flow`: oracle, laws, gradients, golden values, errors."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow import (
    flow_clean_and_noise,
    flow_invert,
    flow_latent,
    flow_ode_transition,
    flow_step,
    flow_velocity,
)
from mvczigal_ref.diffusion.gaussian import check_std, log_prob
from tests import golden, oracles
from tests.compare import FP32, FP64, assert_equal_to
from tests.strategies import randn
from tests.unit.diffusion.flow_cases import flow_steps, step_oracle

DANCE = golden.names("flow", "dance_flux_step_")


def column(level):
    """Bring one number per latent to the latent's axes."""
    return level[..., None, None, None]


# -- oracle ------------------------------------------------------------------------------


@given(flow_steps())
def test_mixing_and_reading_equal_the_scalar_definitions(drawn):
    """One number at a time; the two latents are any two."""
    first, second, s, _ = drawn
    mixed = oracles.per_element(lambda x, e, s: (1 - s) * x + s * e, (first, second), (s,))
    clean, noise = oracles.per_element(
        lambda v, x, s: (x - s * v, x + (1 - s) * v), (first, second), (s,)
    )
    read = flow_clean_and_noise(first, second, sigma_t=s)

    assert_equal_to(flow_latent(first, second, sigma=s), mixed, FP64, axes=3)
    assert_equal_to(read[0], clean, FP64, axes=3)
    assert_equal_to(read[1], noise, FP64, axes=3)


@given(flow_steps())
def test_ode_step_equals_the_scalar_definition(drawn):
    """Mean, spread and clean latent, each an oracle of its own."""
    velocity, latent, s, r = drawn
    step = flow_ode_transition(velocity, latent, sigma_t=s, sigma_prev=r)
    mean, std, clean = oracles.per_element(
        lambda *numbers: step_oracle("ode", *numbers, 0.0), (velocity, latent), (s, r)
    )

    assert_equal_to(step.mean, mean, FP64, axes=3)
    assert_equal_to(step.std, std[..., 0, 0, 0], 0.0)
    assert_equal_to(step.denoised, clean, FP64, axes=3)


@given(flow_steps(), st.floats(0.0, 1.0), st.floats(0.0, 2.0))
def test_a_step_takes_the_named_share_of_predicted_noise_away(drawn, replaced, std):
    """The mean by its equation; the spread as given."""
    velocity, latent, s, r = drawn
    share, spread = torch.full_like(s, replaced), torch.full_like(s, std)
    step = flow_step(velocity, latent, sigma_t=s, sigma_prev=r, replaced=share, std=spread)
    mean = oracles.per_element(
        lambda v, x, s, r: x - (s - r) * v - replaced * (x + (1 - s) * v),
        (velocity, latent),
        (s, r),
    )

    # Where the share is near 1 the largest entry may itself be a difference.
    torch.testing.assert_close(step.mean, mean, rtol=1e-12, atol=1e-12)
    assert torch.equal(step.std, spread)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ode_step_equals_diffusers(shift):
    """On the scheduler's own levels, which are fp32; both steps are then in fp32."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(6)
    sigmas = theirs.sigmas
    velocity, latent = randn(2, 3, 4, 5, 6)
    for i, t in enumerate(theirs.timesteps):
        step = flow_ode_transition(velocity, latent, sigma_t=sigmas[i], sigma_prev=sigmas[i + 1])
        expected = theirs.step(velocity, t, latent).prev_sample

        assert_equal_to(step.mean, expected, FP32, axes=3)


# -- laws --------------------------------------------------------------------------------


@given(flow_steps())
def test_reading_undoes_mixing(drawn):
    """The velocity of two latents, seen at their mixture, tells both."""
    clean, noise, s, _ = drawn
    mixed = flow_latent(clean, noise, sigma=s)
    read = flow_clean_and_noise(flow_velocity(clean, noise), mixed, sigma_t=s)

    torch.testing.assert_close(read[0], clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(read[1], noise, rtol=1e-12, atol=1e-12)


@given(flow_steps())
def test_what_is_read_mixes_back_and_has_the_velocity(drawn):
    """For any velocity and latent."""
    velocity, latent, s, _ = drawn
    clean, noise = flow_clean_and_noise(velocity, latent, sigma_t=s)

    torch.testing.assert_close(flow_velocity(clean, noise), velocity, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flow_latent(clean, noise, sigma=s), latent, rtol=1e-12, atol=1e-12)


@given(flow_steps())
def test_the_ode_of_a_known_pair_stays_on_their_line(drawn):
    """Exactly at the next level, in one step, whatever the levels."""
    clean, noise, s, r = drawn
    mixed = flow_latent(clean, noise, sigma=s)
    step = flow_ode_transition(flow_velocity(clean, noise), mixed, sigma_t=s, sigma_prev=r)

    torch.testing.assert_close(
        step.mean, flow_latent(clean, noise, sigma=r), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(step.denoised, clean, rtol=1e-12, atol=1e-12)


@given(flow_steps())
def test_inverting_a_step_at_its_own_velocity_is_the_identity(drawn):
    """Down and up, and up and down."""
    velocity, latent, s, r = drawn
    levels = {"sigma_t": s, "sigma_prev": r}
    down = flow_ode_transition(velocity, latent, **levels)
    up = flow_invert(velocity, latent, **levels)

    torch.testing.assert_close(
        flow_invert(velocity, down.mean, **levels), latent, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        flow_ode_transition(velocity, up, **levels).mean, latent, rtol=1e-12, atol=1e-12
    )


def test_to_the_last_level_the_ode_goes_to_its_clean_prediction():
    """At level 0 there is nothing else."""
    velocity, latent = randn(2, 2, 3, 4, 4, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    step = flow_ode_transition(velocity, latent, sigma_t=zero + 0.3, sigma_prev=zero)

    assert_equal_to(step.mean, step.denoised, FP64, axes=3)


def test_levels_of_both_kinds_broadcast():
    """A grid of levels against a grid of next levels, over latents of one."""
    velocity, latent = randn(2, 3, 2, 1, 2, 2, dtype=torch.float64)
    high = torch.tensor([[0.5], [0.7], [1.0]], dtype=torch.float64)
    low = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    step = flow_ode_transition(velocity, latent, sigma_t=high, sigma_prev=low)

    assert step.std.shape == (3, 2)
    assert_equal_to(step.mean, latent - column(high - low) * velocity, FP64, axes=3)


# -- gradients ---------------------------------------------------------------------------


def test_gradients_flow_to_velocity_and_latent():
    """By finite differences, down and up and across."""
    velocity, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    high = torch.tensor([1.0, 0.4], dtype=torch.float64)
    low = torch.tensor([0.8, 0.0], dtype=torch.float64)
    levels = {"sigma_t": high, "sigma_prev": low}

    def down(v, x):
        step = flow_ode_transition(v, x, **levels)
        assert not step.std.requires_grad
        return step.mean, step.denoised

    check = torch.autograd.gradcheck
    assert check(down, (velocity, latent))
    assert check(lambda v, x: flow_invert(v, x, **levels), (velocity, latent))
    assert check(lambda v, x: flow_clean_and_noise(v, x, sigma_t=high), (velocity, latent))
    assert check(lambda x, e: flow_latent(x, e, sigma=high), (velocity, latent))
    assert check(flow_velocity, (velocity, latent))


# -- golden parity -----------------------------------------------------------------------


@pytest.mark.parametrize("name", DANCE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_ode_steps(name, dtype):
    """Every index and sample in one call; the file was computed in fp32."""
    reference = golden.tensors("flow", name)
    sigmas = reference["sigmas"].to(dtype)[:, None]
    # Tokens and channels stand for height and width.
    velocity, latent, previous, clean = (
        reference[key].to(dtype)[:, :, None]
        for key in ("model_output", "sample", "ode_prev", "pred_x0")
    )
    step = flow_ode_transition(velocity, latent, sigma_t=sigmas[:-1], sigma_prev=sigmas[1:])

    assert_equal_to(step.mean, previous, FP32, axes=3)
    assert_equal_to(step.denoised, clean, FP32, axes=3)


# -- errors ------------------------------------------------------------------------------


def test_a_step_without_spread_has_no_log_density():
    """Refused where values are read; where they are not, it is no number at all."""
    velocity, latent = randn(2, 3, 1, 2, 2)
    step = flow_ode_transition(
        velocity, latent, sigma_t=torch.tensor(0.5), sigma_prev=torch.tensor(0.2)
    )
    for action in (latent, step.mean):
        for reduction in ("mean", "sum", "none"):
            density = log_prob(action, mean=step.mean, std=step.std, reduction=reduction)
            assert density.isnan().all()
    with pytest.raises(ValueError, match=r"`std` must be positive .* got 0\.0 .* no log-density"):
        check_std(step.std)


@pytest.mark.parametrize("name", ["velocity", "latent_t", "sigma_t", "sigma_prev"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_by_name(name, dtype):
    """Down, up, and where a velocity is read."""
    good = {
        "velocity": torch.zeros(1, 1, 1),
        "latent_t": torch.zeros(1, 1, 1),
        "sigma_t": torch.tensor(0.5),
        "sigma_prev": torch.tensor(0.2),
    }
    bad = {**good, name: good[name].to(dtype)}
    rule = rf"must be float32 or float64; got {dtype}"
    share = {"replaced": torch.tensor(0.1), "std": torch.tensor(0.1)}
    with pytest.raises(ValueError, match=f"`{name}` {rule}"):
        flow_ode_transition(**bad)
    with pytest.raises(ValueError, match=f"`{name}` {rule}"):
        flow_step(**bad, **share)
    if name != "sigma_prev":
        with pytest.raises(ValueError, match=f"`{name}` {rule}"):
            flow_clean_and_noise(**{k: v for k, v in bad.items() if k != "sigma_prev"})
    up = {k.replace("latent_t", "latent_prev"): v for k, v in bad.items()}
    with pytest.raises(ValueError, match=f"`{name.replace('latent_t', 'latent_prev')}` {rule}"):
        flow_invert(**up)


@pytest.mark.parametrize("name", ["replaced", "std"])
def test_a_kernel_s_own_numbers_are_full_precision_too(name):
    """They are formed from the levels, so they are as exact."""
    numbers = {"replaced": torch.tensor(0.1), "std": torch.tensor(0.1)}
    numbers[name] = numbers[name].half()
    zero, level = torch.zeros(1, 1, 1), torch.tensor(0.5)
    with pytest.raises(ValueError, match=f"`{name}` must be float32 or float64"):
        flow_step(zero, zero, sigma_t=level, sigma_prev=level, **numbers)


@pytest.mark.parametrize("name", ["clean", "noise", "sigma"])
def test_mixing_refuses_half_precision_by_name(name):
    """A velocity made of two latents too."""
    good = {
        "clean": torch.zeros(1, 1, 1),
        "noise": torch.zeros(1, 1, 1),
        "sigma": torch.tensor(0.5),
    }
    bad = {**good, name: good[name].half()}
    with pytest.raises(ValueError, match=f"`{name}` must be float32 or float64"):
        flow_latent(**bad)
    if name != "sigma":
        with pytest.raises(ValueError, match=f"`{name}` must be float32 or float64"):
            flow_velocity(bad["clean"], bad["noise"])
