"""`diffusion.flow_sampler`: oracle, laws, golden values, errors."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow import flow_invert, flow_ode_transition
from mvczigal_ref.diffusion.flow_noise import cps_unscaled_log_prob
from mvczigal_ref.diffusion.flow_sampler import FLOW_KERNELS, FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas, shift_sigma
from mvczigal_ref.diffusion.gaussian import log_prob, sample
from mvczigal_ref.diffusion.sampler import Sampler
from tests import golden
from tests.compare import FP32, assert_equal_to
from tests.strategies import randn
from tests.unit.diffusion.flow_cases import SCALES, transition
from tests.unit.diffusion.sampler_laws import assert_steps_are_alone

KERNELS = list(FLOW_KERNELS)
FLOW_GRPO = golden.names("flow", "flow_grpo_sde_")


def built(kernel, sigmas=None, noise_scale=0.7, **how):
    """Build a sampler; the ODE has no noise scale."""
    return FlowSampler.create(
        sigmas=flow_sigmas(4, shift=3.0) if sigmas is None else sigmas,
        kernel=kernel,
        noise_scale=0.0 if kernel == "ode" else noise_scale,
        **how,
    )


def fields(step):
    """Take a transition apart."""
    return step.mean, step.std, step.denoised


# -- oracle ------------------------------------------------------------------------------


@given(st.sampled_from(KERNELS), st.integers(1, 30), SCALES, st.floats(0.2, 5.0), st.data())
def test_sampler_is_the_step_function_at_the_grid_s_levels(kernel, n, scale, shift, data):
    """Down to the next level, and back up."""
    sigmas = flow_sigmas(n, shift=shift)
    sampler = built(kernel, sigmas, scale)
    step = data.draw(st.integers(0, n - 1))
    s, r = sigmas[step], sigmas[step + 1]
    velocity, latent = randn(2, 2, 3, 2, 2, dtype=torch.float64)
    down = transition(kernel, velocity, latent, s, r, scale)

    assert sampler.num_steps == n
    assert sampler.timesteps.tolist() == pytest.approx([1000 * x for x in sigmas[:-1].tolist()])
    for mine, theirs in zip(
        fields(sampler.transition(velocity, latent, step)), fields(down), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert torch.equal(
        sampler.invert(velocity, latent, step),
        flow_invert(velocity, latent, sigma_prev=r, sigma_t=s),
    )


@pytest.mark.parametrize("kernel", ["sde", "constant", "cps"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_log_prob_is_the_gaussian_s(kernel, reduction):
    """Of an int step and of a tensor of steps."""
    sampler = built(kernel)
    velocity, latent, action = randn(3, 3, 2, 2, 2, dtype=torch.float64)
    for step in (1, torch.arange(3)):
        taken = sampler.transition(velocity, latent, step)
        expected = log_prob(action, mean=taken.mean, std=taken.std, reduction=reduction)

        assert torch.equal(sampler.log_prob(action, taken, step, reduction=reduction), expected)
        assert expected.isfinite().all()


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_a_sampler(kernel):
    """Rollout and update need no more than the protocol."""
    assert isinstance(built(kernel), Sampler)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 2, 3), (1, 3), (2, 1)])
def test_a_tensor_of_steps_is_every_step_by_itself(kernel, shape):
    """One call over steps, objects and views gives the bits of one call per latent."""
    assert_steps_are_alone(built(kernel), shape)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_steps", [1, 4, 16])
@pytest.mark.parametrize("last", [0, 1])
def test_the_steps_with_a_density_are_those_with_a_spread(kernel, num_steps, last):
    """All, none, or all but the one that this kernel takes to level 0."""
    sigmas = flow_sigmas(num_steps + last)[: num_steps + 1]
    sampler = built(kernel, sigmas)
    zero = torch.zeros(num_steps, 1, 1, 1, dtype=torch.float64)
    std = sampler.transition(zero, zero, torch.arange(num_steps)).std

    assert (std > 0).tolist() == [i < sampler.num_density_steps for i in range(num_steps)]
    assert torch.equal(sampler.sigma_prev[:-1], sampler.sigma_t[1:])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_deterministic_sampler_is_the_ode_on_the_same_grid(kernel):
    """Its image is taken from where it was."""
    sampler = built(kernel, image_is_denoised=True)
    ode = sampler.deterministic()
    velocity, latent = randn(2, 4, 2, 2, 2, dtype=torch.float64)
    steps = torch.arange(4)
    expected = flow_ode_transition(
        velocity, latent, sigma_t=sampler.sigma_t, sigma_prev=sampler.sigma_prev
    )

    assert torch.equal(ode.transition(velocity, latent, steps).mean, expected.mean)
    assert torch.equal(ode.timesteps, sampler.timesteps)
    assert (ode.kernel, ode.noise_scale, ode.num_density_steps) == ("ode", 0.0, 0)
    assert ode.last_action_is_image_independent


def test_the_image_is_the_last_action_unless_said():
    """DanceGRPO decodes the clean prediction, Flow-GRPO the last latent."""
    assert not built("sde").last_action_is_image_independent
    assert built("constant", image_is_denoised=True).last_action_is_image_independent


def test_every_second_level_of_a_grid_is_a_grid():
    """A part of one too; the pole's stand-in is then the new second level."""
    sigmas = flow_sigmas(8)
    strided, part = built("sde", sigmas[::2]), built("sde", sigmas[3:])
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)

    assert strided.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0]
    assert part.timesteps.tolist() == [625.0, 500.0, 375.0, 250.0, 125.0]
    assert strided.transition(zero, zero, 0).std.item() == pytest.approx(
        0.7 * math.sqrt(0.25 / 0.25)
    )


def test_pure_noise_is_called_by_the_training_grid_s_length():
    """A thousand, unless the network counts otherwise."""
    assert built("ode").timesteps[0] == 1000.0
    assert built("ode", num_train_timesteps=1).timesteps[0] == 1.0


@pytest.mark.parametrize("kernel", KERNELS)
def test_to_moves_and_narrows_the_tables_alone(kernel):
    """Settings stay, and the original is untouched."""
    sampler = built(kernel, image_is_denoised=True)
    narrow, meta = sampler.to(dtype=torch.float32), sampler.to("meta")
    for name in ("timesteps", "sigma_t", "sigma_prev"):
        table = getattr(sampler, name)

        assert table.dtype == getattr(meta, name).dtype == torch.float64
        assert torch.equal(getattr(narrow, name), table.float())
        assert getattr(meta, name).is_meta
    for name in ("kernel", "noise_scale", "num_density_steps", "image_is_denoised"):
        assert getattr(narrow, name) == getattr(meta, name) == getattr(sampler, name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_step_runs_in_the_latent_s_dtype_whatever_the_tables_are(kernel):
    """fp64 tables cost nothing, and are rounded once."""
    sampler = built(kernel)
    velocity, latent = randn(2, 4, 2, 3, 3)
    step = sampler.transition(velocity, latent, torch.arange(4))
    wide = sampler.transition(velocity.double(), latent.double(), torch.arange(4))

    for narrow, exact in zip(fields(step), fields(wide), strict=True):
        assert narrow.dtype == torch.float32
        assert_equal_to(narrow, exact.float(), FP32, axes=3 if narrow.ndim > 3 else 0)
    assert sampler.invert(velocity, latent, 1).dtype == torch.float32


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_nothing_is_read_from_the_device_inside_a_step(kernel, shape):
    """Meta tensors have no values: any read, even of a 0-d index, would raise."""
    sampler = built(kernel).to("meta")
    velocity, latent = torch.empty(2, 2, 3, 4, 5, 5, device="meta", requires_grad=True)
    for step in (torch.zeros(shape, dtype=torch.int64, device="meta"), 2):
        taken = sampler.transition(velocity, latent, step)
        action = sample(taken.mean, taken.std, latent)
        if kernel != "ode":
            density = sampler.log_prob(action, taken, step, reduction="mean")
            density.sum().backward(retain_graph=True)
            assert density.shape == (2, 3)
        assert cps_unscaled_log_prob(action, mean=taken.mean, reduction="sum").shape == (2, 3)
        assert sampler.invert(velocity, latent, step).is_meta


# -- golden parity -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOW_GRPO)
def test_golden_steps_on_the_sampler_s_own_grid(name):
    """The levels come from the grid's function; only the last one's rounding differs."""
    settings, reference = golden.constants("flow", name), golden.tensors("flow", name)
    lowest = shift_sigma(torch.tensor(1e-3, dtype=torch.float64), settings["shift"]).item()
    sigmas = flow_sigmas(
        settings["num_inference_steps"],
        shift=settings["shift"],
        lowest_sigma=lowest,
        dtype=torch.float32,
    )
    sampler = built("sde", sigmas, settings["noise_level"])
    steps = torch.arange(sampler.num_steps)
    taken = sampler.transition(reference["model_output"], reference["sample"], steps)
    score = sampler.log_prob(reference["prev_given"], taken, steps, reduction="mean")

    assert_equal_to(sampler.timesteps, reference["timesteps"], FP32)
    # A level's last bit moves 1 - s near pure noise by 25 times its share.
    assert_equal_to(taken.mean, reference["prev_mean"], 1e-5, axes=3)
    assert_equal_to(score, reference["log_prob_given"], 1e-4)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, torch.arange(2)])
def test_a_log_density_of_the_ode_is_refused(step):
    """By the step's number, without reading a value."""
    sampler = built("sde").deterministic()
    velocity, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64)
    taken = sampler.transition(velocity, latent, step)
    with pytest.raises(ValueError, match=r"`step` must be below .* = 0; .*ODE has no spread"):
        sampler.log_prob(latent, taken, step, reduction="mean")


def test_a_log_density_at_level_zero_is_refused_for_the_kernel_that_has_none():
    """A tensor of steps is not read: there it is no number."""
    sampler = built("cps")
    velocity, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64)
    last = sampler.transition(velocity, latent, 3)
    with pytest.raises(ValueError, match=r"num_density_steps = 3; got 3\..*'cps' at level 0"):
        sampler.log_prob(latent, last, 3, reduction="mean")
    both = torch.tensor([2, 3])
    taken = sampler.transition(velocity, latent, both)
    density = sampler.log_prob(latent, taken, both, reduction="mean")

    assert density.isnan().tolist() == [False, True]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("step", [-1, 4])
def test_an_int_outside_the_grid_is_refused(kernel, step):
    """A negative index would silently be the other end of the grid."""
    zero = torch.zeros(1, 1, 1)
    for function in (built(kernel).transition, built(kernel).invert):
        with pytest.raises(ValueError, match=rf"`step` must be in 0\.\.3.*got {step}"):
            function(zero, zero, step)


@pytest.mark.parametrize("step", [-1, 4])
def test_a_log_density_outside_the_grid_is_refused(step):
    """A step before the first is not the last."""
    sampler, latent = built("sde"), torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=rf"`step` must be .*; got {step}"):
        sampler.log_prob(latent, sampler.transition(latent, latent, 0), step, reduction="sum")


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([1.0]),
        torch.tensor([0.0, 0.5, 1.0]),
        torch.tensor([1.0, 0.5, 0.5]),
        torch.tensor([1.1, 0.5]),
        torch.tensor([0.5, -0.1]),
        torch.tensor([1.0, torch.nan]),
    ],
    ids=["no step", "rising", "level", "above 1", "below 0", "NaN"],
)
def test_what_is_no_grid_is_refused(bad):
    """Before a step could divide by zero."""
    with pytest.raises(ValueError, match=r"`sigmas` must be two or more levels, strictly decr"):
        built("sde", bad)


@pytest.mark.parametrize("kernel", ["sde", "constant", "cps"])
def test_a_stochastic_kernel_needs_noise(kernel):
    """Without it, it is the ODE, which has a name."""
    with pytest.raises(ValueError, match=rf"`noise_scale` must be positive with kernel='{kernel}'"):
        FlowSampler.create(sigmas=flow_sigmas(2), kernel=kernel)


@pytest.mark.parametrize(
    ("kernel", "scale", "rule"),
    [
        ("ode", 0.5, "must be 0 with kernel='ode'; got 0.5"),
        ("cps", 1.5, r"must be finite and in \[0, 1.0\]; got 1.5"),
        ("sde", -0.5, "must be finite and in .*; got -0.5"),
        ("constant", math.nan, "must be finite and in .*; got nan"),
    ],
)
def test_a_noise_scale_that_does_not_fit_its_kernel_is_refused(kernel, scale, rule):
    """A setting that would do nothing is refused like one that would do harm."""
    with pytest.raises(ValueError, match=f"`noise_scale` {rule}"):
        FlowSampler.create(sigmas=flow_sigmas(2), kernel=kernel, noise_scale=scale)


def test_other_settings_are_refused_where_it_is_made():
    """Not only at the first step."""
    create = inspect.unwrap(FlowSampler.create.__func__)
    with pytest.raises(ValueError, match=r"`kernel` must be one of .*got 'euler'"):
        create(FlowSampler, sigmas=flow_sigmas(2), kernel="euler")
    with pytest.raises(ValueError, match="`num_train_timesteps` must be at least 1; got 0"):
        built("ode", num_train_timesteps=0)


def test_half_precision_tables_are_refused():
    """When made, and when moved."""
    with pytest.raises(ValueError, match="`sigmas` must be float32 or float64"):
        built("sde", flow_sigmas(4).bfloat16())
    with pytest.raises(ValueError, match=r"`dtype` must be .* got torch.float16"):
        built("sde").to(dtype=torch.float16)
