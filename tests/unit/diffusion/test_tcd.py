"""`diffusion.tcd`: oracle, laws, gradients, diffusers' values, errors."""

import math

import pytest
import torch
from diffusers import TCDScheduler
from hypothesis import given

from mvczigal_ref.diffusion.ddim import ddim_transition
from mvczigal_ref.diffusion.gaussian import log_prob, sample
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.diffusion.tcd import TcdSampler, tcd_transition
from tests import oracles
from tests.compare import FP64, assert_equal_to
from tests.strategies import PREDICTION_TYPES, randn, steps
from tests.unit.diffusion.sampler_laws import (
    assert_gradients_flow,
    assert_inversion_undoes,
    assert_the_last_step_is_clean,
)

KINDS = ["epsilon", "v_prediction", "sample"]
ALPHA_BAR = scaled_linear_alpha_bar(dtype=torch.float64)


def scalar_step(kind, output, latent, low, prev, target):
    """Return mean, spread and the latent jumped to, in plain floats."""
    clean, noise = oracles.clean_and_noise(kind, output, latent, low)
    jumped = math.sqrt(target) * clean + math.sqrt(1 - target) * noise
    return math.sqrt(prev / target) * jumped, math.sqrt(1 - prev / target), jumped


def between(low, high):
    """Give a level between two."""
    return (low + high) / 2


# -- oracle ------------------------------------------------------------------------------


@given(steps(), PREDICTION_TYPES)
def test_transition_equals_the_scalar_definition(drawn, kind):
    """Mean, spread and target, each an oracle of its own."""
    output, latent, low, high, _ = drawn
    levels = (low, between(low, high), high)
    step = tcd_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=levels[1], alpha_bar_target=high,
        prediction_type=kind,
    )  # fmt: skip
    mean, std, jumped = oracles.per_element(
        lambda *numbers: scalar_step(kind, *numbers), (output, latent), levels
    )

    assert_equal_to(step.mean, mean, FP64, axes=3)
    assert_equal_to(step.std, std[..., 0, 0, 0], 1e-10)
    assert_equal_to(step.denoised, jumped, FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


@given(steps(), PREDICTION_TYPES)
def test_a_jump_to_the_next_level_itself_is_the_implicit_step(drawn, kind):
    """At eta 0: no spread, DDIM's mean."""
    output, latent, low, high, _ = drawn
    levels = {"alpha_bar_t": low, "alpha_bar_prev": high, "prediction_type": kind}
    mine = tcd_transition(output, latent, alpha_bar_target=high, **levels)
    theirs = ddim_transition(output, latent, eta=0.0, **levels)

    torch.testing.assert_close(mine.mean, theirs.mean, rtol=1e-10, atol=1e-10)
    assert not mine.std.any()


@given(steps(), PREDICTION_TYPES)
def test_the_spread_makes_up_for_the_variance_below_the_next_level(drawn, kind):
    """A target's noise, carried up, and the fresh noise are the next level's, 1 - abar_s."""
    output, latent, low, high, _ = drawn
    prev = between(low, high)
    step = tcd_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=prev, alpha_bar_target=high,
        prediction_type=kind,
    )  # fmt: skip

    torch.testing.assert_close(step.std.square() + prev / high * (1 - high), 1 - prev)


@given(steps(), PREDICTION_TYPES)
def test_the_density_of_a_draw_is_that_of_its_noise(drawn, kind):
    """By the change of variables: less the logarithm of the spread, element by element."""
    output, latent, low, high, _ = drawn
    step = tcd_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=between(low, high), alpha_bar_target=high,
        prediction_type=kind,
    )  # fmt: skip
    noise = randn(*step.mean.shape, seed=3, dtype=torch.float64)
    action = sample(step.mean, step.std, noise)
    expected = (
        -0.5 * (noise.square() + math.log(2 * math.pi)) - step.std.log()[..., None, None, None]
    )

    actual = log_prob(action, mean=step.mean, std=step.std, reduction="none")
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_every_step_but_the_last_has_a_spread(eta):
    """The last ends at timestep 0, where diffusers decodes."""
    assert_the_last_step_is_clean(TcdSampler.create(num_steps=4, alpha_bar=ALPHA_BAR, eta=eta))


@pytest.mark.parametrize("step", range(4))
def test_without_noise_the_inversion_undoes_a_step(step):
    """With one prediction of noise, up and down again is the identity."""
    sampler = TcdSampler.create(num_steps=4, alpha_bar=ALPHA_BAR)
    assert_inversion_undoes(sampler.deterministic(), step)


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_to_output_and_latent(kind):
    """By finite differences, at every step of a grid."""
    sampler = TcdSampler.create(num_steps=2, alpha_bar=ALPHA_BAR, prediction_type=kind)
    assert_gradients_flow(sampler)


# -- diffusers ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 2, 4, 7])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_trajectory_is_diffusers(kind, num_steps, eta):
    """Grid, targets, draws and image, from the same noises."""
    scheduler = TCDScheduler(prediction_type=kind)
    scheduler.alphas_cumprod = ALPHA_BAR
    scheduler.set_timesteps(num_steps)
    sampler = TcdSampler.create(
        num_steps=num_steps, alpha_bar=ALPHA_BAR, prediction_type=kind, eta=eta
    )
    latent = randn(1, 2, 3, 3, dtype=torch.float64)

    assert sampler.timesteps.tolist() == scheduler.timesteps.tolist()
    assert sampler.num_density_steps == (num_steps - 1 if eta else 0)
    for step, time in enumerate(scheduler.timesteps):
        output = randn(*latent.shape, seed=step + 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(step)
        taken = scheduler.step(output, time, latent, eta=eta, generator=generator)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(latent.shape, generator=generator, dtype=torch.float64)
        mine = sampler.transition(output, latent, step)
        latent = mine.mean + mine.std * noise

        assert_equal_to(mine.denoised, taken.pred_noised_sample, FP64, axes=3)
        assert_equal_to(latent, taken.prev_sample, FP64, axes=3)
        latent = taken.prev_sample


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original_num_steps": 2000}, "`original_num_steps` must be in 1..1000"),
        ({"eta": -0.5}, r"`eta` must be in \[0, 1\]; got -0.5"),
        ({"num_steps": 51}, "`num_steps` must be in 1..50"),
        ({"alpha_bar": ALPHA_BAR.flip(0)}, "`alpha_bar` must be strictly decreasing"),
    ],
)
def test_settings_outside_their_range_are_refused(change, message):
    """Before a table is made."""
    settings = {"num_steps": 4, "alpha_bar": ALPHA_BAR} | change
    with pytest.raises(ValueError, match=message):
        TcdSampler.create(**settings)


@pytest.mark.parametrize(
    "name", ["output", "latent_t", "alpha_bar_t", "alpha_bar_prev", "alpha_bar_target"]
)
def test_half_precision_is_refused_by_name(name):
    """Log-densities would move by more than the trust region is wide."""
    values = {
        "output": torch.zeros(1, 1, 1), "latent_t": torch.zeros(1, 1, 1),
        "alpha_bar_t": torch.tensor(0.5), "alpha_bar_prev": torch.tensor(0.6),
        "alpha_bar_target": torch.tensor(0.7),
    }  # fmt: skip
    values[name] = values[name].half()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        tcd_transition(**values, prediction_type="epsilon")
