"""`diffusion.flow_noise`: oracle, laws, gradients, golden values, errors. Marginals are apart."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow import (
    flow_clean_and_noise,
    flow_latent,
    flow_ode_transition,
    flow_velocity,
)
from mvczigal_ref.diffusion.flow_noise import (
    constant_noise_transition,
    cps_transition,
    cps_unscaled_log_prob,
    flow_sde_transition,
    require_noise_scale,
)
from mvczigal_ref.diffusion.gaussian import log_prob, sample
from tests import golden, oracles
from tests.compare import FP32, FP64, assert_equal_to
from tests.strategies import latents, randn
from tests.unit.diffusion.flow_cases import NOISY, SCALES, flow_steps, step_oracle, transition

FLOW_GRPO = golden.names("flow", "flow_grpo_sde_")
DANCE = golden.names("flow", "dance_flux_step_")
KERNELS = st.sampled_from(sorted(NOISY))


# -- oracle ------------------------------------------------------------------------------


@given(flow_steps(), KERNELS, SCALES)
def test_transition_equals_the_scalar_definition(drawn, kernel, scale):
    """Mean, spread and clean latent, each an oracle of its own; steps out of pure noise too."""
    velocity, latent, s, r = drawn
    step = transition(kernel, velocity, latent, s, r, scale)
    mean, std, clean = oracles.per_element(
        lambda *numbers: step_oracle(kernel, *numbers, scale), (velocity, latent), (s, r)
    )

    # Entries are sums of terms that may cancel, and 1 - sin^2 loses what a cosine keeps.
    torch.testing.assert_close(step.mean, mean, rtol=1e-11, atol=1e-11)
    assert_equal_to(step.std, std[..., 0, 0, 0], FP64)
    assert_equal_to(step.denoised, clean, FP64, axes=3)


@given(latents(2), st.sampled_from(["mean", "sum", "none"]))
def test_unscaled_log_prob_equals_the_scalar_definition(drawn, reduction):
    """One element at a time, in floats, then reduced."""
    action, mean = drawn
    each = oracles.per_element(lambda a, m: -((a - m) ** 2), (action, mean))
    expected = each if reduction == "none" else getattr(each.flatten(-3), reduction)(-1)

    assert_equal_to(cps_unscaled_log_prob(action, mean=mean, reduction=reduction), expected, FP64)


# -- laws --------------------------------------------------------------------------------


@given(flow_steps(), KERNELS)
def test_without_noise_every_kernel_is_the_ode(drawn, kernel):
    """Bit for bit."""
    velocity, latent, s, r = drawn
    step = transition(kernel, velocity, latent, s, r, 0.0)
    ode = flow_ode_transition(velocity, latent, sigma_t=s, sigma_prev=r)

    assert torch.equal(step.mean, ode.mean)
    assert torch.equal(step.std, ode.std)
    assert torch.equal(step.denoised, ode.denoised)


@given(flow_steps(lowest=0.1), KERNELS, SCALES)
def test_spread_is_positive_and_leaves_the_clean_prediction_alone(drawn, kernel, scale):
    """Above level 0 every stochastic step has a density."""
    velocity, latent, s, r = drawn
    step = transition(kernel, velocity, latent, s, r, scale)

    assert (step.std > 0).all()
    assert torch.equal(step.denoised, flow_clean_and_noise(velocity, latent, sigma_t=s)[0])


@given(flow_steps(), st.sampled_from(["sde", "constant"]), SCALES)
def test_spread_grows_in_proportion_and_the_correction_with_its_square(drawn, kernel, scale):
    """What a Langevin term does."""
    velocity, latent, s, r = drawn
    ode, part, full = (
        transition(kernel, velocity, latent, s, r, a) for a in (0.0, scale, 2 * scale)
    )

    assert_equal_to(full.std, 2 * part.std, FP64)
    torch.testing.assert_close(
        full.mean - ode.mean, 4 * (part.mean - ode.mean), rtol=1e-9, atol=1e-10
    )


@given(flow_steps(), st.floats(0.0, 1.0))
def test_cps_reaches_exactly_the_next_level(drawn, scale):
    """A known pair keeps its clean share, and predicted and fresh noise make up the rest."""
    clean, noise, s, r = drawn
    mixed = flow_latent(clean, noise, sigma=s)
    velocity = flow_velocity(clean, noise)
    step = cps_transition(velocity, mixed, sigma_t=s, sigma_prev=r, noise_scale=scale)
    kept = (r.square() - step.std.square()).clamp(min=0).sqrt()[..., None, None, None]
    expected = (1 - r)[..., None, None, None] * clean + kept * noise

    # The root of a difference of squares is exact to 1e-8 where they are nearly equal.
    torch.testing.assert_close(step.mean, expected, rtol=1e-7, atol=1e-7)
    assert (step.std <= r * (1 + 1e-15)).all()


def test_at_scale_one_cps_draws_all_noise_anew():
    """Nothing of the prediction of noise is left."""
    velocity, latent = randn(2, 2, 1, 3, 3, dtype=torch.float64)
    s, r = torch.tensor([0.9, 0.4], dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)
    step = cps_transition(velocity, latent, sigma_t=s, sigma_prev=r, noise_scale=1.0)

    assert (step.std == 0.25).all()
    assert_equal_to(step.mean, 0.75 * step.denoised, FP64, axes=3)


def test_out_of_pure_noise_the_second_level_stands_in_for_the_pole():
    """As the released code does; a step further down knows nothing of it."""
    zero = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    s = torch.tensor([1.0, 0.8], dtype=torch.float64)
    r = torch.tensor([0.8, 0.5], dtype=torch.float64)
    std = flow_sde_transition(zero, zero, sigma_t=s, sigma_prev=r, noise_scale=0.7).std

    assert std[0].item() == pytest.approx(0.7 * math.sqrt(1 / 0.2 * 0.2), rel=FP64)
    assert std[1].item() == pytest.approx(0.7 * math.sqrt(0.8 / 0.2 * 0.3), rel=FP64)


def test_constant_noise_knows_no_pole():
    """Its spread depends on the levels' distance alone."""
    zero = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    s = torch.tensor([1.0, 0.5], dtype=torch.float64)
    std = constant_noise_transition(zero, zero, sigma_t=s, sigma_prev=s - 0.25, noise_scale=0.3).std

    assert std.tolist() == pytest.approx([0.15, 0.15], rel=FP64)


@pytest.mark.parametrize("kernel", sorted(NOISY))
def test_levels_of_both_kinds_broadcast(kernel):
    """The spread has the shape of both, and is each latent's by itself."""
    velocity, latent = randn(2, 3, 2, 1, 2, 2, dtype=torch.float64)
    high = torch.tensor([[0.5], [0.7], [1.0]], dtype=torch.float64)
    low = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    step = transition(kernel, velocity, latent, high, low, 0.6)

    assert step.std.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            alone = transition(kernel, velocity[i, j], latent[i, j], high[i, 0], low[0, j], 0.6)
            assert torch.equal(alone.mean, step.mean[i, j])
            assert torch.equal(alone.std, step.std[i, j])


@given(flow_steps(lowest=0.1), SCALES)
def test_unscaled_log_prob_is_the_density_without_its_constants(drawn, scale):
    """Twice the variance apart, after the constants: the same only where the spread is."""
    velocity, latent, s, r = drawn
    step = cps_transition(velocity, latent, sigma_t=s, sigma_prev=r, noise_scale=scale)
    true = log_prob(latent, mean=step.mean, std=step.std, reduction="mean")
    constants = step.std.log() + 0.5 * math.log(2 * math.pi)
    unscaled = cps_unscaled_log_prob(latent, mean=step.mean, reduction="mean")

    assert (unscaled <= 0).all()
    torch.testing.assert_close(
        unscaled, 2 * step.std.square() * (true + constants), rtol=1e-6, atol=1e-9
    )


def test_unscaled_log_prob_has_a_number_where_there_is_no_spread():
    """The last step's, which its authors do not train."""
    velocity, latent = randn(2, 1, 2, 2)
    step = cps_transition(
        velocity, latent, sigma_t=torch.tensor(0.5), sigma_prev=torch.tensor(0.0), noise_scale=0.8
    )

    assert step.std == 0
    assert cps_unscaled_log_prob(latent, mean=step.mean, reduction="mean").isfinite()
    assert log_prob(latent, mean=step.mean, std=step.std, reduction="mean").isnan()


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", sorted(NOISY))
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_gradients_flow_to_velocity_and_latent(kernel, scale):
    """By finite differences; none to the spread."""
    velocity, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    high = torch.tensor([1.0, 0.4], dtype=torch.float64)
    low = torch.tensor([0.8, 0.1], dtype=torch.float64)

    def down(v, x):
        step = transition(kernel, v, x, high, low, scale)
        assert not step.std.requires_grad
        return step.mean, step.denoised

    assert torch.autograd.gradcheck(down, (velocity, latent))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_flow_through_both_scores(reduction):
    """From the density of an action to the velocity; the true one is 1 / (2 std^2) steeper."""
    velocity, latent, action = randn(3, 2, 1, 2, 2, dtype=torch.float64)
    velocity.requires_grad_()
    levels = (torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))

    def score(v):
        step = transition("cps", v, latent, *levels, 0.8)
        true = log_prob(action, mean=step.mean, std=step.std, reduction=reduction)
        return true, cps_unscaled_log_prob(action, mean=step.mean, reduction=reduction)

    assert torch.autograd.gradcheck(score, (velocity,))
    true, unscaled = (torch.autograd.grad(score(velocity)[i].sum(), velocity)[0] for i in (0, 1))
    std = 0.4 * math.sin(0.4 * math.pi)
    assert_equal_to(true, unscaled / (2 * std**2), 1e-11, axes=3)


# -- golden parity -----------------------------------------------------------------------


def check_golden(step, wanted, velocity, relative):
    """Compare a draw, both log-densities and the gradient of one, of all steps in one call."""
    drawn, given_ = (
        log_prob(wanted[action], mean=step.mean, std=step.std, reduction="mean")
        for action in ("prev_drawn", "prev_given")
    )
    (gradient,) = torch.autograd.grad(given_.sum(), velocity)

    action = sample(step.mean, step.std, wanted["noise"])
    assert_equal_to(action.detach(), wanted["prev_drawn"], relative, axes=3)
    assert_equal_to(given_.detach(), wanted["log_prob_given"], relative)
    assert_equal_to(gradient, wanted["grad_given"], relative, axes=3)
    # The density of a step's own action passes through 0, where terms near 1 cancel.
    assert_equal_to(drawn.detach(), wanted["log_prob_drawn"], relative, axes=1)


@pytest.mark.parametrize("name", FLOW_GRPO)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_steps_of_flow_grpo(name, dtype):
    """Every index in one call; the file was computed in fp32, pure noise at its first step."""
    settings, reference = golden.constants("flow", name), golden.tensors("flow", name)
    wanted = {key: value.to(dtype) for key, value in reference.items()}
    s, r = wanted["sigmas"][:-1], wanted["sigmas"][1:]
    velocity = wanted["model_output"].requires_grad_()
    step = flow_sde_transition(
        velocity, wanted["sample"], sigma_t=s, sigma_prev=r, noise_scale=settings["noise_level"]
    )
    spread = wanted["std_dev_t"][:, 0, 0, 0] * (s - r).sqrt()

    assert s[0] == 1.0
    assert_equal_to(step.mean.detach(), wanted["prev_mean"], FP32, axes=3)
    assert_equal_to(step.std, spread, FP32)
    check_golden(step, wanted, velocity, FP32)


@pytest.mark.parametrize("name", DANCE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_steps_of_dance_grpo(name, dtype):
    """Every index and sample in one call; tokens and channels stand for height and width."""
    settings, reference = golden.constants("flow", name), golden.tensors("flow", name)
    wanted = {
        key: (value[:, :, None] if value.ndim == 4 else value).to(dtype)
        for key, value in reference.items()
    }
    s, r = wanted["sigmas"][:-1, None], wanted["sigmas"][1:, None]
    velocity = wanted["model_output"].requires_grad_()
    step = constant_noise_transition(
        velocity, wanted["sample"], sigma_t=s, sigma_prev=r, noise_scale=settings["eta"]
    )

    assert_equal_to(step.denoised.detach(), wanted["pred_x0"], FP32, axes=3)
    check_golden(step, wanted, velocity, FP32)


@pytest.mark.parametrize("name", [*FLOW_GRPO, *DANCE])
def test_golden_inputs_in_double_precision_equal_the_definition(name):
    """The files hold fp32 results alone; on their inputs the plain definition is the reference."""
    settings, reference = golden.constants("flow", name), golden.tensors("flow", name)
    kernel, scale = (
        ("sde", settings["noise_level"]) if name in FLOW_GRPO else ("constant", settings["eta"])
    )
    velocity, latent = reference["model_output"].double(), reference["sample"].double()
    if kernel == "constant":
        velocity, latent = velocity[:, 0, None, :4], latent[:, 0, None, :4]
    s, r = reference["sigmas"][:-1].double(), reference["sigmas"][1:].double()
    step = transition(kernel, velocity, latent, s, r, scale)
    mean, std, clean = oracles.per_element(
        lambda *numbers: step_oracle(kernel, *numbers, scale), (velocity, latent), (s, r)
    )

    assert_equal_to(step.mean, mean, FP64, axes=3)
    assert_equal_to(step.std, std[..., 0, 0, 0], FP64)
    assert_equal_to(step.denoised, clean, FP64, axes=3)


@pytest.mark.parametrize("name", FLOW_GRPO)
def test_golden_indices_one_by_one_equal_all_at_once(name):
    """Bit for bit, for every kernel: a latent's step does not depend on what is in the call."""
    reference = golden.tensors("flow", name)
    velocity, latent = reference["model_output"], reference["sample"]
    s, r = reference["sigmas"][:-1], reference["sigmas"][1:]
    for kernel in NOISY:
        together = transition(kernel, velocity, latent, s, r, 0.7)
        for i in range(len(s)):
            alone = transition(kernel, velocity[i], latent[i], s[i], r[i], 0.7)

            assert torch.equal(alone.mean, together.mean[i])
            assert torch.equal(alone.std, together.std[i])
            assert torch.equal(alone.denoised, together.denoised[i])


# -- errors ------------------------------------------------------------------------------


def arguments():
    """Return valid arguments of every kernel."""
    return {
        "velocity": torch.zeros(1, 1, 1),
        "latent_t": torch.zeros(1, 1, 1),
        "sigma_t": torch.tensor(0.5),
        "sigma_prev": torch.tensor(0.2),
    }


@pytest.mark.parametrize("kernel", sorted(NOISY))
@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_a_noise_scale_that_is_none_is_refused(kernel, bad):
    """The message says what to take instead."""
    with pytest.raises(ValueError, match=rf"`noise_scale` must be finite .* got {bad}\. 0 is"):
        NOISY[kernel](**arguments(), noise_scale=bad)


def test_cps_refuses_a_scale_above_one():
    """Beyond a quarter turn it would be a smaller one; the others have no upper end."""
    with pytest.raises(ValueError, match=r"`noise_scale` must be .* in \[0, 1\.0\]; got 1\.5"):
        cps_transition(**arguments(), noise_scale=1.5)
    assert flow_sde_transition(**arguments(), noise_scale=1.5).std > 0
    assert constant_noise_transition(**arguments(), noise_scale=1.5).std > 0
    require_noise_scale(1.0, most=1.0)


@pytest.mark.parametrize("kernel", sorted(NOISY))
@pytest.mark.parametrize("name", ["velocity", "latent_t", "sigma_t", "sigma_prev"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_by_name(kernel, name, dtype):
    """Log-densities would move by more than the trust region is wide."""
    bad = arguments()
    bad[name] = bad[name].to(dtype)
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64; got {dtype}"):
        NOISY[kernel](**bad, noise_scale=0.5)


@pytest.mark.parametrize("name", ["action", "mean"])
def test_unscaled_log_prob_refuses_half_precision_by_name(name):
    """Whatever it is called, ratios are made of it."""
    tensors = {"action": torch.zeros(1, 1, 1), "mean": torch.zeros(1, 1, 1)}
    tensors[name] = tensors[name].bfloat16()
    with pytest.raises(ValueError, match=f"`{name}` must be float32 or float64"):
        cps_unscaled_log_prob(**tensors, reduction="mean")


def test_unscaled_log_prob_refuses_an_unknown_reduction():
    """Where annotations are not checked."""
    zero = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=r"`reduction` must be one of .*'none'.*; got 'max'"):
        inspect.unwrap(cps_unscaled_log_prob)(zero, mean=zero, reduction="max")
