"""`diffusion.euler_ancestral`: oracle, laws, gradients, diffusers' values, errors."""

import math

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.ddim import ddim_transition
from mvczigal_ref.diffusion.euler_ancestral import (
    EulerAncestralSampler,
    euler_ancestral_transition,
)
from mvczigal_ref.diffusion.gaussian import log_prob, sample
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from tests import oracles
from tests.compare import FP32, FP64, assert_equal_to
from tests.strategies import randn, steps
from tests.unit.diffusion.sampler_laws import (
    assert_gradients_flow,
    assert_inversion_undoes,
    assert_the_last_step_is_clean,
)

KINDS = ["epsilon", "v_prediction"]
ETAS = st.floats(0.01, 1.0)
ALPHA_BAR = scaled_linear_alpha_bar(dtype=torch.float64)


def scalar_step(kind, output, latent, low, high, eta):
    """Return mean, spread and clean latent in plain floats, by the levels' standard deviations."""
    clean, noise = oracles.clean_and_noise(kind, output, latent, low)
    start, end = math.sqrt((1 - low) / low), math.sqrt((1 - high) / high)
    up = eta * end * math.sqrt(start**2 - end**2) / start
    down = math.sqrt(end**2 - up**2)
    return math.sqrt(high) * (clean + down * noise), math.sqrt(high) * up, clean


# -- oracle ------------------------------------------------------------------------------


@given(steps(), st.sampled_from(KINDS), ETAS)
def test_transition_equals_the_scalar_definition(drawn, kind, eta):
    """Mean, spread and clean latent, each an oracle of its own."""
    output, latent, low, high, _ = drawn
    step = euler_ancestral_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=high, eta=eta, prediction_type=kind
    )
    mean, std, clean = oracles.per_element(
        lambda *numbers: scalar_step(kind, *numbers, eta), (output, latent), (low, high)
    )

    # The definition subtracts two squares; near each other that costs it digits.
    assert_equal_to(step.mean, mean, 1e-9, axes=3)
    assert_equal_to(step.std, std[..., 0, 0, 0], 1e-9)
    assert_equal_to(step.denoised, clean, FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


@given(steps(), st.sampled_from(KINDS), st.floats(0.0, 1.0))
def test_it_is_the_implicit_step_in_other_coordinates(drawn, kind, eta):
    """Euler's step is DDIM's at eta 0, the ancestral one DDIM's at eta 1."""
    output, latent, low, high, _ = drawn
    levels = {"alpha_bar_t": low, "alpha_bar_prev": high, "eta": eta, "prediction_type": kind}
    mine = euler_ancestral_transition(output, latent, **levels)
    theirs = ddim_transition(output, latent, **levels)

    torch.testing.assert_close(mine.mean, theirs.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mine.std, theirs.std, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine.denoised, theirs.denoised, rtol=0, atol=0)


@given(steps(), st.sampled_from(KINDS), ETAS)
def test_the_density_of_a_draw_is_that_of_its_noise(drawn, kind, eta):
    """By the change of variables: less the logarithm of the spread, element by element."""
    output, latent, low, high, _ = drawn
    step = euler_ancestral_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=high, eta=eta, prediction_type=kind
    )
    noise = randn(*step.mean.shape, seed=3, dtype=torch.float64)
    action = sample(step.mean, step.std, noise)
    expected = (
        -0.5 * (noise.square() + math.log(2 * math.pi)) - step.std.log()[..., None, None, None]
    )

    actual = log_prob(action, mean=step.mean, std=step.std, reduction="none")
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("apart", [1e-5, 1e-4, 1e-2])
def test_neighbouring_levels_keep_the_digits_of_their_spread_in_fp32(apart):
    """A difference of their roots would lose what they have in common."""
    levels = torch.tensor([0.3, 0.3 * (1.0 + apart)])
    zero, found = torch.zeros(1, 1, 1), []
    for low, high in (levels, levels.double()):
        step = euler_ancestral_transition(
            zero, zero, alpha_bar_t=low, alpha_bar_prev=high, eta=1.0, prediction_type="epsilon"
        )
        exact = scalar_step("epsilon", 0.0, 0.0, low.double(), high.double(), 1.0)[1]
        found.append(step.std.item() / exact)

    assert found == pytest.approx([1.0, 1.0], rel=FP32)


def test_the_last_step_ends_clean_and_draws_nothing():
    """So the image is the last clean prediction, and one step fewer has a density."""
    assert_the_last_step_is_clean(EulerAncestralSampler.create(num_steps=4, alpha_bar=ALPHA_BAR))


@pytest.mark.parametrize("step", range(4))
def test_without_noise_the_inversion_undoes_a_step(step):
    """With one prediction of noise, up and down again is the identity."""
    sampler = EulerAncestralSampler.create(num_steps=4, alpha_bar=ALPHA_BAR)
    assert_inversion_undoes(sampler.deterministic(), step)


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_to_output_and_latent(kind):
    """By finite differences, at a step with noise and at the clean end."""
    sampler = EulerAncestralSampler.create(
        num_steps=2, alpha_bar=ALPHA_BAR, prediction_type=kind, eta=0.7
    )
    assert_gradients_flow(sampler)


# -- diffusers ---------------------------------------------------------------------------


# diffusers hands a tensor to numpy in a way that numpy will refuse.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7])
def test_a_trajectory_is_diffusers(kind, num_steps):
    """Grid, levels, draws and image of SDXL-Turbo's scheduler, from the same noises."""
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        timestep_spacing="trailing", prediction_type=kind,
    )  # fmt: skip
    scheduler.set_timesteps(num_steps)
    sampler = EulerAncestralSampler.create(
        num_steps=num_steps, alpha_bar=ALPHA_BAR, prediction_type=kind
    )
    signal = torch.cat([sampler.alpha_bar_t, torch.ones(1, dtype=torch.float64)]).sqrt()
    latent = randn(1, 2, 3, 3, dtype=torch.float64)
    theirs = (latent / signal[0]).float()

    assert sampler.timesteps.tolist() == scheduler.timesteps.tolist()
    for step, time in enumerate(scheduler.timesteps):
        given_ = scheduler.scale_model_input(theirs, time)
        torch.testing.assert_close(given_.double(), latent, rtol=1e-5, atol=1e-5)
        output = randn(*latent.shape, seed=step + 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(step)
        taken = scheduler.step(output.float(), time, theirs, generator=generator)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(latent.shape, generator=generator).double()
        mine = sampler.transition(output, latent, step)
        latent, theirs = mine.mean + mine.std * noise, taken.prev_sample
        scaled = taken.prev_sample.double() * signal[step + 1]

        torch.testing.assert_close(latent, scaled, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(
            mine.denoised, taken.pred_original_sample.double(), rtol=2e-5, atol=2e-4
        )


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "sample"}, "`prediction_type` must be"),
        ({"eta": 1.5}, r"`eta` must be in \[0, 1\]; got 1.5"),
        ({"num_steps": 0}, "`num_steps` must be in 1..1000"),
        ({"alpha_bar": ALPHA_BAR.flip(0)}, "`alpha_bar` must be strictly decreasing"),
    ],
)
def test_settings_outside_their_range_are_refused(change, message):
    """A predicted sample has no direction at the clean end."""
    settings = {"num_steps": 4, "alpha_bar": ALPHA_BAR} | change
    with pytest.raises(ValueError, match=message):
        EulerAncestralSampler.create(**settings)


@pytest.mark.parametrize("name", ["output", "latent_t", "alpha_bar_t", "alpha_bar_prev"])
def test_half_precision_is_refused_by_name(name):
    """Log-densities would move by more than the trust region is wide."""
    values = {
        "output": torch.zeros(1, 1, 1), "latent_t": torch.zeros(1, 1, 1),
        "alpha_bar_t": torch.tensor(0.5), "alpha_bar_prev": torch.tensor(0.6),
    }  # fmt: skip
    values[name] = values[name].half()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        euler_ancestral_transition(**values, eta=1.0, prediction_type="epsilon")
