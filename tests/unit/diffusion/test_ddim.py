"""`diffusion.ddim`: oracle, laws, gradients, golden values, errors."""

import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.ddim import (
    ETA_ZERO_VARIANCE,
    DdimSampler,
    ddim_invert,
    ddim_transition,
)
from mvczigal_ref.diffusion.gaussian import check_std, log_prob, sample
from mvczigal_ref.diffusion.schedule import (
    clean_and_noise,
    ddim_timesteps,
    scaled_linear_alpha_bar,
    shift_snr,
)
from tests import golden, oracles
from tests.compare import FP32, FP64, assert_equal_to
from tests.strategies import PREDICTION_TYPES, randn, steps
from tests.unit.diffusion.sampler_laws import assert_golden_draws

KINDS = ["epsilon", "v_prediction", "sample"]
DOWN = golden.names("diffusion", "ddim_step_")
UP = golden.names("diffusion", "ddim_inverse_step_")
DDPO = golden.names("diffusion", "ddpo_ddim_")
ETAS = st.floats(0.01, 1.0)


# -- oracle ------------------------------------------------------------------------------


@given(steps(), PREDICTION_TYPES, st.one_of(st.just(0.0), ETAS))
def test_transition_equals_the_scalar_definition(drawn, kind, eta):
    """Mean, spread and clean latent, each an oracle of its own."""
    output, latent, low, high, _ = drawn
    step = ddim_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=high, eta=eta, prediction_type=kind
    )
    mean, std, clean = oracles.per_element(
        lambda *numbers: oracles.ddim_step(kind, *numbers, eta), (output, latent), (low, high)
    )

    # The definition subtracts sigma^2 from 1 - abar_s; near the clean end that costs it digits.
    assert_equal_to(step.mean, mean, 1e-10, axes=3)
    assert_equal_to(step.std, std[..., 0, 0, 0], FP64)
    assert_equal_to(step.denoised, clean, FP64, axes=3)


@given(steps(), PREDICTION_TYPES)
def test_inversion_equals_the_scalar_definition(drawn, kind):
    """From the cleaner level up to the noisier one."""
    output, latent, low, high, _ = drawn
    actual = ddim_invert(output, latent, alpha_bar_prev=high, alpha_bar_t=low, prediction_type=kind)
    expected = oracles.per_element(
        lambda *numbers: oracles.ddim_inverse(kind, *numbers), (output, latent), (high, low)
    )

    assert_equal_to(actual, expected, FP64, axes=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 4, 16])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_transition_and_inversion_equal_diffusers(kind, num_steps, eta):
    """At every timestep of the grid, the lowest included."""
    alpha_bar = shift_snr(scaled_linear_alpha_bar(), 8.0)
    common = {
        "prediction_type": kind,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    down, up = DDIMScheduler(**common), DDIMInverseScheduler(**common)
    down.alphas_cumprod = up.alphas_cumprod = alpha_bar
    down.final_alpha_cumprod = up.initial_alpha_cumprod = alpha_bar[0]
    down.set_timesteps(num_steps)
    up.set_timesteps(num_steps)
    output, latent, noise = randn(3, 2, 4, 3, 5, dtype=torch.float64)
    for t in ddim_timesteps(num_steps).tolist():
        levels = {
            "alpha_bar_t": alpha_bar[t],
            "alpha_bar_prev": alpha_bar[max(t - 1000 // num_steps, 0)],
        }
        step = ddim_transition(output, latent, eta=eta, prediction_type=kind, **levels)
        theirs = down.step(output, t, latent, eta=eta, variance_noise=noise if eta else None)
        drawn = sample(step.mean, step.std, noise)
        raised = ddim_invert(output, latent, prediction_type=kind, **levels)

        assert_equal_to(drawn, theirs.prev_sample, 1e-11, axes=3)
        assert_equal_to(step.denoised, theirs.pred_original_sample, FP64, axes=3)
        assert_equal_to(raised, up.step(output, t, latent).prev_sample, FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


@given(steps(), PREDICTION_TYPES, ETAS)
def test_spread_is_positive_and_grows_with_eta(drawn, kind, eta):
    """In proportion, down to exactly 0: a deterministic step."""
    output, latent, low, high, _ = drawn
    levels = {"alpha_bar_t": low, "alpha_bar_prev": high, "prediction_type": kind}
    full = ddim_transition(output, latent, eta=1.0, **levels)
    part = ddim_transition(output, latent, eta=eta, **levels)
    none = ddim_transition(output, latent, eta=0.0, **levels)

    assert (part.std > 0).all()
    assert_equal_to(part.std, eta * full.std, FP64)
    assert torch.equal(none.std, torch.zeros_like(full.std))
    assert torch.equal(none.denoised, full.denoised)


@given(steps(), PREDICTION_TYPES)
def test_at_eta_zero_the_draw_is_the_mean_and_has_no_density(drawn, kind):
    """Whatever the noise; a density must be refused, and is never a number."""
    output, latent, low, high, _ = drawn
    step = ddim_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=high, eta=0.0, prediction_type=kind
    )
    (noise,) = randn(1, *step.mean.shape, dtype=step.mean.dtype)

    assert torch.equal(sample(step.mean, step.std, 1e3 * noise), step.mean)
    for action in (step.mean, step.mean + 1.0):
        assert log_prob(action, mean=step.mean, std=step.std, reduction="mean").isnan().all()
    with pytest.raises(ValueError, match=r"`std` must be positive .*; got 0\.0"):
        check_std(step.std)


@given(steps(), PREDICTION_TYPES)
def test_the_released_floor_scores_a_deterministic_step(drawn, kind):
    """By its own name: the density of spread 1e-4 around the deterministic mean."""
    output, latent, low, high, _ = drawn
    step = ddim_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=high, eta=0.0, prediction_type=kind
    )
    floor = ETA_ZERO_VARIANCE**0.5
    action = step.mean + 0.5e-4
    density = torch.distributions.Normal(step.mean, 1e-4).log_prob(action).mean((-3, -2, -1))

    torch.testing.assert_close(
        log_prob(action, mean=step.mean, std=floor, reduction="mean"), density, rtol=1e-6, atol=0
    )
    at_mean = log_prob(step.mean, mean=step.mean, std=floor, reduction="mean")
    torch.testing.assert_close(at_mean, torch.full_like(at_mean, 8.29140183899))


@given(steps(), PREDICTION_TYPES, ETAS)
def test_noise_of_the_next_level_is_shared_between_direction_and_draw(drawn, kind, eta):
    """The mean's share of predicted noise and the spread make up 1 - abar_s."""
    output, latent, low, high, _ = drawn
    step = ddim_transition(
        output, latent, alpha_bar_t=low, alpha_bar_prev=high, eta=eta, prediction_type=kind
    )
    clean, noise = clean_and_noise(output, latent, alpha_bar_t=low, prediction_type=kind)
    direction = (1 - high - step.std.square()).clamp(min=0).sqrt()[..., None, None, None]
    signal = high.sqrt()[..., None, None, None]

    torch.testing.assert_close(step.mean, signal * clean + direction * noise, rtol=1e-6, atol=1e-7)


@given(steps())
def test_at_eta_zero_inverting_then_denoising_with_one_prediction_is_the_identity(drawn):
    """Exactly what the inversion of zigzag sampling rests on."""
    noise, latent, low, high, _ = drawn
    levels = {"alpha_bar_t": low, "alpha_bar_prev": high, "prediction_type": "epsilon"}
    up = ddim_invert(noise, latent, **levels)
    down = ddim_transition(noise, up, eta=0.0, **levels)

    torch.testing.assert_close(down.mean, latent, rtol=1e-10, atol=1e-10)


@given(steps(), PREDICTION_TYPES)
def test_inversion_to_its_own_level_is_the_identity(drawn, kind):
    """No level, no change."""
    output, latent, low, _, _ = drawn
    same = ddim_invert(output, latent, alpha_bar_prev=low, alpha_bar_t=low, prediction_type=kind)

    torch.testing.assert_close(same, latent, rtol=1e-10, atol=1e-10)


def test_fp32_levels_keep_the_direction_near_the_clean_end():
    """Where 1 - abar_s - sigma^2 would lose four digits in fp32, ours loses none."""
    low, high = torch.tensor(0.9982925), torch.tensor(0.9991500)
    noise, latent = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    step = ddim_transition(
        noise, latent, alpha_bar_t=low, alpha_bar_prev=high, eta=1.0, prediction_type="epsilon"
    )
    mean, std, _ = oracles.ddim_step("epsilon", 1.0, 0.0, low.item(), high.item(), 1.0)

    assert step.mean.item() == pytest.approx(mean, rel=FP32)
    assert step.std.item() == pytest.approx(std, rel=FP32)


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_gradients_flow_to_output_and_latent(kind, eta):
    """By finite differences, down and up."""
    output, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    low, high = torch.tensor([[0.1, 0.3], [0.5, 0.9]], dtype=torch.float64)
    levels = {"alpha_bar_t": low, "alpha_bar_prev": high, "prediction_type": kind}

    def down(o, x):
        step = ddim_transition(o, x, eta=eta, **levels)
        assert not step.std.requires_grad
        return step.mean, step.denoised

    assert torch.autograd.gradcheck(down, (output, latent))
    assert torch.autograd.gradcheck(lambda o, x: ddim_invert(o, x, **levels), (output, latent))


# -- golden parity -----------------------------------------------------------------------


def forward_levels(reference, dtype=torch.float64):
    """Shape a file's levels to broadcast over its batch: one call for every step at once."""
    alpha_bar = reference["alphas_cumprod"].to(dtype)
    t, s = reference["timesteps"], reference["prev_timestep"]
    below = torch.where(
        s < 0, reference["final_alpha_cumprod"].to(dtype), alpha_bar[s.clamp(min=0)]
    )
    return {"alpha_bar_t": alpha_bar[t][:, None], "alpha_bar_prev": below[:, None]}


def check_steps(reference, levels, settings, dtype, relative):
    """Compare draws, both log-densities and the gradient of one, of all steps in one call."""
    wanted = {k: v.to(dtype) for k, v in reference.items() if v.dtype == torch.float64}
    output = wanted["model_output"].requires_grad_()
    step = ddim_transition(
        output,
        wanted["sample"],
        eta=settings["eta"],
        prediction_type=settings["prediction_type"],
        **levels,
    )

    if "pred_x0" in wanted:
        assert_equal_to(step.denoised, wanted["pred_x0"], relative, axes=3)
    assert_golden_draws(step, output, wanted, relative)


@pytest.mark.parametrize("name", DOWN)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, FP64), (torch.float32, FP32)])
def test_golden_steps(name, dtype, relative):
    """Every index in one call; below timestep 0 the level is that of timestep 0."""
    settings = golden.constants("diffusion", name)
    reference = golden.tensors("diffusion", name)
    num_steps = settings["num_inference_steps"]
    grid = ddim_timesteps(num_steps)

    assert torch.equal(reference["timesteps"], grid)
    assert torch.equal(reference["prev_timestep"], grid - 1000 // num_steps)
    assert reference["final_alpha_cumprod"] == reference["alphas_cumprod"][0]
    assert settings["eta0_variance"] == ETA_ZERO_VARIANCE
    check_steps(reference, forward_levels(reference, dtype), settings, dtype, relative)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, FP64), (torch.float32, FP32)])
def test_golden_steps_without_noise(kind, dtype, relative):
    """The draw is the mean, and the released score of it is that of the released variance."""
    inputs = golden.tensors("diffusion", f"ddim_step_{kind}_n4_eta0.2")
    settings = golden.constants("diffusion", "ddim_eta0_steps_n4")
    wanted = {
        name.removeprefix(f"{kind}."): value.to(dtype)
        for name, value in golden.tensors("diffusion", "ddim_eta0_steps_n4").items()
    }
    output = inputs["model_output"].to(dtype).requires_grad_()
    step = ddim_transition(
        output,
        inputs["sample"].to(dtype),
        eta=settings["eta"],
        prediction_type=kind,
        **forward_levels(inputs, dtype),
    )
    given, drawn = (
        log_prob(action, mean=step.mean, std=settings["eta0_variance"] ** 0.5, reduction="mean")
        for action in (inputs["prev_given"].to(dtype), step.mean)
    )
    (gradient,) = torch.autograd.grad(given.sum(), output)

    assert settings["eta0_variance"] == ETA_ZERO_VARIANCE
    assert not step.std.any()
    assert_equal_to(step.mean, wanted["prev_drawn"], relative, axes=3)
    assert_equal_to(drawn, wanted["log_prob_drawn"], relative)
    assert_equal_to(given, wanted["log_prob_given"], relative)
    assert_equal_to(gradient, wanted["grad_given"], relative, axes=3)


@pytest.mark.parametrize("name", DDPO)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, FP64), (torch.float32, FP32)])
def test_golden_steps_of_a_second_trainer(name, dtype, relative):
    """Another authors' code on the unshifted schedule, one latent a timestep."""
    settings = golden.constants("diffusion", name)
    reference = golden.tensors("diffusion", name)
    alpha_bar, grid = reference["alphas_cumprod"].to(dtype), reference["timesteps"]
    below = (grid - 1000 // settings["num_inference_steps"]).clamp(min=0)
    levels = {"alpha_bar_t": alpha_bar[grid], "alpha_bar_prev": alpha_bar[below]}

    assert torch.equal(grid, ddim_timesteps(settings["num_inference_steps"]))
    check_steps(reference, levels, settings, dtype, relative)


@pytest.mark.parametrize("name", DOWN)
def test_golden_indices_one_by_one_equal_all_at_once(name):
    """Bit for bit: a latent's step does not depend on what else is in the call."""
    settings = golden.constants("diffusion", name)
    reference = golden.tensors("diffusion", name)
    levels = forward_levels(reference)
    output, latent = reference["model_output"], reference["sample"]
    how = {k: settings[k] for k in ("eta", "prediction_type")}
    together = ddim_transition(output, latent, **how, **levels)
    for i in range(len(output)):
        at = {key: level[i, 0] for key, level in levels.items()}
        alone = ddim_transition(output[i], latent[i], **how, **at)

        assert torch.equal(alone.mean, together.mean[i])
        assert torch.equal(alone.std, together.std[i, 0])
        assert torch.equal(alone.denoised, together.denoised[i])


@pytest.mark.parametrize("name", UP)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, FP64), (torch.float32, FP32)])
def test_golden_inversions(name, dtype, relative):
    """Every index in one call and one by one, from below timestep 0 too."""
    settings = golden.constants("diffusion", name)
    reference = golden.tensors("diffusion", name)
    alpha_bar = reference["alphas_cumprod"].to(dtype)
    source, target = reference["from_timestep"], reference["timesteps"]
    wanted = {k: reference[k].to(dtype) for k in ("model_output", "sample", "next", "pred_x0")}
    low, high = alpha_bar[target], alpha_bar[source.clamp(min=0)]
    kind = settings["prediction_type"]
    together = ddim_invert(
        wanted["model_output"],
        wanted["sample"],
        alpha_bar_prev=high[:, None],
        alpha_bar_t=low[:, None],
        prediction_type=kind,
    )
    clean, _ = clean_and_noise(
        wanted["model_output"], wanted["sample"], alpha_bar_t=high[:, None], prediction_type=kind
    )

    assert reference["initial_alpha_cumprod"] == reference["alphas_cumprod"][0]
    assert torch.equal(source, target - 1000 // settings["num_inference_steps"])
    assert_equal_to(together, wanted["next"], relative, axes=3)
    assert_equal_to(clean, wanted["pred_x0"], relative, axes=3)
    for i in range(len(together)):
        alone = ddim_invert(
            wanted["model_output"][i],
            wanted["sample"][i],
            alpha_bar_prev=high[i],
            alpha_bar_t=low[i],
            prediction_type=kind,
        )
        assert torch.equal(alone, together[i])


# -- errors ------------------------------------------------------------------------------


def arguments(latent):
    """Return valid arguments, as the two functions call them."""
    return {
        "output": torch.zeros(1, 1, 1),
        latent: torch.zeros(1, 1, 1),
        "alpha_bar_t": torch.tensor(0.5),
        "alpha_bar_prev": torch.tensor(0.6),
        "prediction_type": "epsilon",
    }


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_outside_the_unit_interval_is_refused(eta):
    """Above 1 the direction's share would be negative at some level."""
    with pytest.raises(ValueError, match=rf"`eta` must be in \[0, 1\]; got {eta}"):
        ddim_transition(**arguments("latent_t"), eta=eta)


@pytest.mark.parametrize("name", ["output", "latent_t", "alpha_bar_t", "alpha_bar_prev"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transition_refuses_half_precision_by_name(name, dtype):
    """Log-densities would move by more than the trust region is wide."""
    bad = arguments("latent_t")
    bad[name] = bad[name].to(dtype)
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64; got {dtype}"):
        ddim_transition(**bad, eta=1.0)


@pytest.mark.parametrize("name", ["output", "latent_prev", "alpha_bar_t", "alpha_bar_prev"])
def test_inversion_refuses_half_precision_by_name(name):
    """Under the name that the caller used."""
    bad = arguments("latent_prev")
    bad[name] = bad[name].half()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        ddim_invert(**bad)


@pytest.mark.parametrize("step", [-1, 4])
def test_a_log_density_outside_the_grid_is_refused(step):
    """A step before the first is not the last."""
    sampler = DdimSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
    latent = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=rf"`step` must be in 0\.\.3.*got {step}"):
        sampler.log_prob(latent, sampler.transition(latent, latent, 0), step, reduction="sum")
