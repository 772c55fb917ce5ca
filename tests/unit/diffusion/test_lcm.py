"""`diffusion.lcm`: oracle, laws, gradients, golden values, errors."""

import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.gaussian import log_prob, sample
from mvczigal_ref.diffusion.lcm import lcm_invert, lcm_transition
from mvczigal_ref.diffusion.schedule import (
    lcm_timesteps,
    scaled_linear_alpha_bar,
    shift_snr,
)
from tests import golden, oracles
from tests.compare import FP32, FP64, assert_equal_to
from tests.strategies import PREDICTION_TYPES, randn, steps
from tests.unit.diffusion.sampler_laws import assert_golden_draws

KINDS = ["epsilon", "v_prediction", "sample"]
DOWN = [name for kind in KINDS for name in golden.names("diffusion", f"lcm_step_{kind}")]
UP = golden.names("diffusion", "lcm_inverse_step")
WEIGHTS = st.floats(0.01, 5.0)
SCALINGS = st.floats(0.001, 20.0)


def step_down(output, latent, low, high, timestep, kind, **how):
    """Take a step from the noisier level to the cleaner one."""
    return lcm_transition(
        output, latent, timestep=timestep, alpha_bar_t=low, alpha_bar_prev=high,
        prediction_type=kind, **how,
    )  # fmt: skip


def step_up(output, latent, low, high, timestep, kind, **how):
    """Go from the cleaner level to the noisier one."""
    return lcm_invert(
        output, latent, timestep_prev=timestep, alpha_bar_prev=high, alpha_bar_t=low,
        prediction_type=kind, **how,
    )  # fmt: skip


# -- oracle ------------------------------------------------------------------------------


@given(steps(), PREDICTION_TYPES, WEIGHTS, SCALINGS)
def test_transition_equals_the_scalar_definition(drawn, kind, sigma_data, scaling):
    """Mean, spread and denoised latent, each an oracle of its own."""
    output, latent, low, high, timestep = drawn
    step = step_down(*drawn, kind, sigma_data=sigma_data, timestep_scaling=scaling)
    mean, std, denoised = oracles.per_element(
        lambda *numbers: oracles.lcm_step(kind, *numbers, sigma_data=sigma_data, scaling=scaling),
        (output, latent),
        (timestep, low, high),
    )

    assert_equal_to(step.mean, mean, FP64, axes=3)
    assert_equal_to(step.std, std[..., 0, 0, 0], FP64)
    assert_equal_to(step.denoised, denoised, FP64, axes=3)


@given(steps(), PREDICTION_TYPES, WEIGHTS, SCALINGS)
def test_inversion_equals_the_scalar_definition(drawn, kind, sigma_data, scaling):
    """From the cleaner level up to the noisier one."""
    output, latent, low, high, timestep = drawn
    actual = step_up(*drawn, kind, sigma_data=sigma_data, timestep_scaling=scaling)
    expected = oracles.per_element(
        lambda *numbers: oracles.lcm_inverse(
            kind, *numbers, sigma_data=sigma_data, scaling=scaling
        ),
        (output, latent),
        (timestep, high, low),
    )

    assert_equal_to(actual, expected, FP64, axes=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_transition_equals_diffusers(kind, num_steps):
    """Step by step with its generator; diffusers alone leaves the last latent without noise."""
    alpha_bar = shift_snr(scaled_linear_alpha_bar(), 8.0)
    scheduler = LCMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=False)
    scheduler.alphas_cumprod = alpha_bar
    scheduler.set_timesteps(num_steps)
    grid = lcm_timesteps(num_steps).tolist()
    output, latent = randn(2, 2, 4, 3, 5, dtype=torch.float64)
    for i, t in enumerate(grid):
        s = grid[i + 1] if i + 1 < num_steps else t
        step = step_down(output, latent, alpha_bar[t], alpha_bar[s], torch.tensor(t), kind)
        theirs = scheduler.step(output, t, latent, generator=torch.Generator().manual_seed(i))
        noise = torch.randn(
            latent.shape, generator=torch.Generator().manual_seed(i), dtype=latent.dtype
        )

        assert_equal_to(step.denoised, theirs.denoised, FP64, axes=3)
        drawn = step.denoised if s == t else sample(step.mean, step.std, noise)
        assert_equal_to(drawn, theirs.prev_sample, FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


@given(steps(), PREDICTION_TYPES)
def test_next_latent_has_unit_power_budget(drawn, kind):
    """Signal and noise shares of the next level add to one."""
    high = drawn[3]
    step = step_down(*drawn, kind)
    signal = high.sqrt()[..., None, None, None]

    assert (step.std > 0).all()
    assert_equal_to(step.std.square() + high, torch.ones_like(high), FP64)
    assert_equal_to(step.mean, signal * step.denoised, FP64, axes=3)


@given(steps(), PREDICTION_TYPES)
def test_timestep_zero_returns_the_latent_itself(drawn, kind):
    """The boundary condition of a consistency function, whatever the network says."""
    output, latent, low, high, timestep = drawn
    step = step_down(output, latent, low, high, torch.zeros_like(timestep), kind)

    assert_equal_to(step.denoised, latent, FP64, axes=3)


@given(steps())
def test_far_from_the_boundary_inversion_then_the_same_noise_is_the_identity(drawn):
    """Where the skip weight vanishes, up and down with one prediction meet."""
    noise, latent, *levels = drawn
    up = step_up(*drawn, "epsilon", timestep_scaling=1e9)
    down = step_down(noise, up, *levels, "epsilon", timestep_scaling=1e9)

    torch.testing.assert_close(sample(down.mean, down.std, noise), latent, rtol=1e-9, atol=1e-9)


@given(steps(), PREDICTION_TYPES)
def test_inversion_to_its_own_level_keeps_the_latent_up_to_the_boundary_weights(drawn, kind):
    """The lowest level is its own source."""
    output, latent, _, high, timestep = drawn
    same = step_up(output, latent, high, high, timestep, kind, timestep_scaling=1e9)

    torch.testing.assert_close(same, latent, rtol=1e-9, atol=1e-9)


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_to_output_and_latent(kind):
    """By finite differences, down and up."""
    output, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    low, high = torch.tensor([[0.1, 0.3], [0.5, 0.9]], dtype=torch.float64)
    timestep = torch.tensor([1, 2])

    def down(o, x):
        step = step_down(o, x, low, high, timestep, kind, timestep_scaling=0.1)
        assert not step.std.requires_grad
        return step.mean, step.denoised

    def up(o, x):
        return step_up(o, x, low, high, timestep, kind, timestep_scaling=0.1)

    assert torch.autograd.gradcheck(down, (output, latent))
    assert torch.autograd.gradcheck(up, (output, latent))


# -- golden parity -----------------------------------------------------------------------


def forward_levels(reference, dtype=torch.float64):
    """Shape a file's levels to broadcast over its batch: one call for every step at once."""
    alpha_bar = reference["alphas_cumprod"].to(dtype)
    t, s = reference["timesteps"], reference["prev_timestep"]
    return {
        "timestep": t[:, None],
        "alpha_bar_t": alpha_bar[t][:, None],
        "alpha_bar_prev": alpha_bar[s][:, None],
    }


@pytest.mark.parametrize("name", DOWN)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, FP64), (torch.float32, FP32)])
def test_golden_steps(name, dtype, relative):
    """Every index in one call: draws, both log-densities, and the gradient of one."""
    settings = golden.constants("diffusion", name)
    reference = golden.tensors("diffusion", name)
    levels = forward_levels(reference, dtype)
    wanted = {k: v.to(dtype) for k, v in reference.items() if v.dtype == torch.float64}
    output = wanted["model_output"].requires_grad_()
    step = lcm_transition(
        output,
        wanted["sample"],
        prediction_type=settings["prediction_type"],
        sigma_data=settings["sigma_data"],
        timestep_scaling=settings["timestep_scaling"],
        **levels,
    )

    assert (
        reference["timesteps"].tolist() == lcm_timesteps(settings["num_inference_steps"]).tolist()
    )
    assert_equal_to(step.denoised, wanted["denoised"], relative, axes=3)
    assert_golden_draws(step, output, wanted, relative)


@pytest.mark.parametrize("name", DOWN)
def test_golden_indices_one_by_one_equal_all_at_once(name):
    """Bit for bit: a latent's step does not depend on what else is in the call."""
    kind = golden.constants("diffusion", name)["prediction_type"]
    reference = golden.tensors("diffusion", name)
    levels = forward_levels(reference)
    output, latent = reference["model_output"], reference["sample"]
    together = lcm_transition(output, latent, prediction_type=kind, **levels)
    for i in range(len(output)):
        at = {key: level[i, 0] for key, level in levels.items()}
        alone = lcm_transition(output[i], latent[i], prediction_type=kind, **at)

        assert torch.equal(alone.mean, together.mean[i])
        assert torch.equal(alone.std, together.std[i, 0])
        assert torch.equal(alone.denoised, together.denoised[i])


@pytest.mark.parametrize("name", UP)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, FP64), (torch.float32, FP32)])
def test_golden_inversions(name, dtype, relative):
    """Every index in one call and one by one; the lowest level is its own source."""
    settings = golden.constants("diffusion", name)
    reference = golden.tensors("diffusion", name)
    alpha_bar = reference["alphas_cumprod"].to(dtype)
    source, target = reference["from_timestep"], reference["timesteps"]
    wanted = {k: reference[k].to(dtype) for k in ("model_output", "sample", "next", "denoised")}
    weights = {k: settings[k] for k in ("prediction_type", "sigma_data", "timestep_scaling")}
    together = lcm_invert(
        wanted["model_output"],
        wanted["sample"],
        timestep_prev=source[:, None],
        alpha_bar_prev=alpha_bar[source][:, None],
        alpha_bar_t=alpha_bar[target][:, None],
        **weights,
    )

    assert source[0] == target[0]
    assert target.flip(0).tolist() == lcm_timesteps(settings["num_inference_steps"]).tolist()
    assert_equal_to(together, wanted["next"], relative, axes=3)
    for i in range(len(together)):
        alone = lcm_invert(
            wanted["model_output"][i],
            wanted["sample"][i],
            timestep_prev=source[i],
            alpha_bar_prev=alpha_bar[source[i]],
            alpha_bar_t=alpha_bar[target[i]],
            **weights,
        )
        assert torch.equal(alone, together[i])


@pytest.mark.parametrize("name", UP)
def test_golden_inversions_pass_through_the_reference_denoised_latent(name):
    """The latent that the inversion re-noises is the step's at the source level."""
    settings = golden.constants("diffusion", name)
    reference = golden.tensors("diffusion", name)
    alpha_bar, source = reference["alphas_cumprod"], reference["from_timestep"]
    step = lcm_transition(
        reference["model_output"],
        reference["sample"],
        timestep=source[:, None],
        alpha_bar_t=alpha_bar[source][:, None],
        alpha_bar_prev=alpha_bar[source][:, None],
        prediction_type=settings["prediction_type"],
    )

    assert_equal_to(step.denoised, reference["denoised"], FP64, axes=3)


@pytest.mark.parametrize(
    ("case", "relative"),
    [
        ("f32", FP32),
        ("mixed", FP32),
        # The released code computes in fp16 there, which keeps 11 bits: 2^-11 is 4.9e-4. We
        # widen first, so its rounding is all that is between us.
        ("f16", 1e-3),
    ],
)
def test_golden_dtypes(case, relative):
    """fp32 as it is; half-precision tensors after the caller has widened them."""
    reference = golden.tensors("diffusion", "lcm_step_dtypes")
    grid = reference["timesteps"]
    share = reference["alphas_cumprod"]
    output, latent, action = (
        reference[f"{case}_{key}"].float() for key in ("model_output", "sample", "prev_given")
    )
    step = lcm_transition(
        output.expand(8, *output.shape),
        latent.expand(8, *latent.shape),
        timestep=grid[:, None],
        alpha_bar_t=share[grid][:, None],
        alpha_bar_prev=share[torch.cat([grid[1:], grid[-1:]])][:, None],
        prediction_type="epsilon",
    )
    actual = log_prob(action.expand_as(step.mean), mean=step.mean, std=step.std, reduction="mean")

    assert_equal_to(actual, reference[f"{case}_log_prob"].float(), relative)


# -- errors ------------------------------------------------------------------------------


def arguments(prev=""):
    """Return valid arguments, as the two functions call them."""
    return {
        f"latent_{prev or 't'}": torch.zeros(1, 1, 1),
        "output": torch.zeros(1, 1, 1),
        f"timestep{prev and '_' + prev}": torch.tensor(1),
        "alpha_bar_t": torch.tensor(0.5),
        "alpha_bar_prev": torch.tensor(0.6),
        "prediction_type": "epsilon",
    }


@pytest.mark.parametrize(("function", "prev"), [(lcm_transition, ""), (lcm_invert, "prev")])
@pytest.mark.parametrize("name", ["sigma_data", "timestep_scaling"])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_boundary_setting_that_is_not_positive_is_refused(function, prev, name, bad):
    """At 0 the weights would be 0/0 somewhere."""
    with pytest.raises(ValueError, match=rf"`{name}` must be positive and finite; got {bad}"):
        function(**arguments(prev), **{name: bad})


@pytest.mark.parametrize("name", ["output", "latent_t", "alpha_bar_t", "alpha_bar_prev"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transition_refuses_half_precision_by_name(name, dtype):
    """Log-densities would move by more than the trust region is wide."""
    bad = arguments()
    bad[name] = bad[name].to(dtype)
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64; got {dtype}"):
        lcm_transition(**bad)


@pytest.mark.parametrize("name", ["output", "latent_prev", "alpha_bar_t", "alpha_bar_prev"])
def test_inversion_refuses_half_precision_by_name(name):
    """Under the name that the caller used."""
    bad = arguments("prev")
    bad[name] = bad[name].half()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        lcm_invert(**bad)
