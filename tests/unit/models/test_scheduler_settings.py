"""`scheduler_settings`: every setting of diffusers' schedulers against diffusers' own steps."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.diffusion.spacing import SPACINGS
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.scheduler_settings import FOLLOWED, INERT, REFUSED, check_scheduler
from mvczigal_ref.models.schedulers import sampler_from_scheduler, scheduler_of
from tests.compare import FP32, assert_equal_to
from tests.strategies import PREDICTION_TYPES

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN = {
    LCMScheduler: NOISE,
    DDIMScheduler: NOISE | {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1},
    FlowMatchEulerDiscreteScheduler: {},
}
STEPS = 4
# A value that is not the default, of every setting; of some that decide about others too.
OTHER = {
    "num_train_timesteps": {"num_train_timesteps": 600},
    "beta_start": {"beta_start": 0.002},
    "beta_end": {"beta_end": 0.03},
    "beta_schedule": {"beta_schedule": "linear", "trained_betas": None},
    "trained_betas": {"trained_betas": torch.linspace(0.001, 0.01, 1000).tolist()},
    "prediction_type": {"prediction_type": "v_prediction"},
    "original_inference_steps": {"original_inference_steps": 100},
    "timestep_scaling": {"timestep_scaling": 0.01},
    "steps_offset": {"steps_offset": 7},
    "clip_sample": {"clip_sample": True},
    "thresholding": {"thresholding": True},
    "rescale_betas_zero_snr": {"rescale_betas_zero_snr": True},
    "timestep_spacing": {"timestep_spacing": "trailing"},
    "set_alpha_to_one": {"set_alpha_to_one": False},
    "clip_sample_range": {"clip_sample_range": 0.1},
    "dynamic_thresholding_ratio": {"dynamic_thresholding_ratio": 0.5},
    "sample_max_value": {"sample_max_value": 3.0},
    "shift": {"shift": 2.5},
    "use_dynamic_shifting": {"use_dynamic_shifting": True},
    "base_shift": {"use_dynamic_shifting": True, "base_shift": 0.1},
    "max_shift": {"use_dynamic_shifting": True, "max_shift": 3.0},
    "base_image_seq_len": {"use_dynamic_shifting": True, "base_image_seq_len": 16},
    "max_image_seq_len": {"use_dynamic_shifting": True, "max_image_seq_len": 512},
    "invert_sigmas": {"invert_sigmas": True},
    "shift_terminal": {"shift_terminal": 0.02},
    "use_karras_sigmas": {"use_karras_sigmas": True},
    "use_exponential_sigmas": {"use_exponential_sigmas": True},
    "use_beta_sigmas": {"use_beta_sigmas": True},
    "stochastic_sampling": {"stochastic_sampling": True},
    "time_shift_type": {"time_shift_type": "linear", "use_dynamic_shifting": True},
}


def net(x, t):
    """Stand for a network."""
    return torch.tanh(0.7 * x + 0.001 * float(t))


def noise(step):
    return torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(step))


def diffusers_steps(scheduler):
    """Sample by the scheduler's own steps; implicit models without noise."""
    scheduler.set_timesteps(STEPS)
    x = noise(99)
    for step, t in enumerate(scheduler.timesteps.tolist()):
        seeded = torch.Generator().manual_seed(step)
        x = scheduler.step(net(x, t), t, x, generator=seeded).prev_sample
    return x


def our_steps(scheduler):
    """Sample by this package's, on the same noise."""
    sampler = sampler_from_scheduler(scheduler, num_steps=STEPS, eta=0.0)
    spread = float(isinstance(scheduler, LCMScheduler))
    x = noise(99)
    for step, t in enumerate(sampler.timesteps.tolist()):
        at = sampler.transition(net(x, t), x, step)
        x = at.mean + spread * at.std[..., None, None, None] * noise(step)
    return at.denoised if sampler.last_action_is_image_independent else x


def flow_grid(scheduler):
    """Noise levels of diffusers' own FLUX pipeline on 100 tokens, by its scheduler."""
    config = scheduler.config
    per_token = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    mu = config.base_shift + per_token * (100 - config.base_image_seq_len)
    even = torch.linspace(1.0, 1.0 / STEPS, STEPS).tolist()
    scheduler.set_timesteps(sigmas=even, mu=mu)
    return scheduler.sigmas


def cases(table):
    """Each class with each of the settings that a table has for it and a constructor has."""
    return [
        pytest.param(kind, name, id=f"{kind.__name__}.{name}")
        for kind in PLAIN
        for name in table[kind.__name__]
        if name in inspect.signature(kind).parameters
    ]


# -- oracle: diffusers' own steps ---------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), cases(FOLLOWED))
def test_a_followed_setting_gives_diffusers_steps(kind, name):
    """The value matters to diffusers, and the same steps are taken here, or its noise refused."""
    made, plain = kind(**(PLAIN[kind] | OTHER[name])), kind(**PLAIN[kind])
    if kind is FlowMatchEulerDiscreteScheduler:
        components = replace(tiny_flow_components(seed=0), scheduler=made)
        ours = flow_sigmas(STEPS, shift=components.noise_shift(20, 20))
        assert not torch.equal(flow_grid(made), flow_grid(plain))
        assert_equal_to(ours.float(), flow_grid(made), 4 * FP32)
        return
    assert not torch.equal(diffusers_steps(made), diffusers_steps(plain))
    if name == "beta_schedule":
        with pytest.raises(ValueError, match="`scheduler` must have the noise schedule"):
            our_steps(made)
        return
    # Theirs multiplies a thousand fp32 numbers, and divides by the small end of the product.
    torch.testing.assert_close(our_steps(made), diffusers_steps(made), rtol=1e-4, atol=1e-4)


# -- laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLAIN)
def test_every_setting_has_one_place(kind):
    """A setting that a new version of diffusers brings must be put into one of the tables."""
    known = [*FOLLOWED[kind.__name__], *REFUSED[kind.__name__], *INERT[kind.__name__]]
    assert len(known) == len(set(known))
    assert set(inspect.signature(kind).parameters) <= set(known)


@pytest.mark.parametrize(("kind", "name"), cases(INERT))
def test_an_inert_setting_changes_no_step(kind, name):
    """Neither diffusers' nor ours, to the bit."""
    made, plain = kind(**(PLAIN[kind] | OTHER[name])), kind(**PLAIN[kind])
    assert torch.equal(diffusers_steps(made), diffusers_steps(plain))
    assert torch.equal(our_steps(made), our_steps(plain))


@given(
    st.integers(1, 60),
    st.sampled_from(SPACINGS),
    st.booleans(),
    st.integers(0, 20),
    st.sampled_from([0.0, 0.5, 1.0]),
    PREDICTION_TYPES,
)
def test_implicit_steps_are_diffusers_own(num_steps, spacing, to_one, offset, eta, kind):
    """On every grid that diffusers can space, to the image that its last step gives."""
    theirs = DDIMScheduler(
        **PLAIN[DDIMScheduler]
        | {"timestep_spacing": spacing, "set_alpha_to_one": to_one, "steps_offset": offset},
        prediction_type=kind,
    )
    theirs.set_timesteps(num_steps)
    grid = theirs.timesteps.tolist()
    eta *= grid[-1] > 0  # at timestep 0 no step has a spread; refused, see below
    if grid[0] > 999 or len(grid) != num_steps:
        with pytest.raises(ValueError, match=r"`(steps_offset|num_steps)` must"):
            sampler_from_scheduler(theirs, num_steps=num_steps, eta=eta)
        return
    sampler = sampler_from_scheduler(theirs, num_steps=num_steps, eta=eta)
    x = y = noise(99)
    for step, t in enumerate(grid):
        drawn = noise(step)
        x = theirs.step(0.1 * net(x, t), t, x, eta=eta, variance_noise=drawn).prev_sample
        at = sampler.transition(0.1 * net(y, t), y, step)
        y = at.mean + at.std[..., None, None, None] * drawn
    image = at.denoised if sampler.last_action_is_image_independent else y

    assert sampler.timesteps.tolist() == grid
    size = x.abs().max().clamp(min=1.0)  # to 45 with all noise; the noises of a step are of size 1
    torch.testing.assert_close(image / size, x / size, rtol=0.0, atol=4e-6)


@pytest.mark.parametrize("num_steps", [1, 3, 7, 11, 33, 50])
@pytest.mark.parametrize("original", [50, 64, 100])
def test_the_grid_is_diffusers_own(num_steps, original):
    """At numbers of steps that do not divide the grid of distillation too."""
    theirs = LCMScheduler(**NOISE, original_inference_steps=original)
    ours = sampler_from_scheduler(theirs, num_steps=num_steps)
    theirs.set_timesteps(num_steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()


# -- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), cases(REFUSED))
def test_another_value_is_refused_by_name(kind, name):
    """The setting, the one supported value, and the remedy."""
    settings = PLAIN[kind] | OTHER[name]
    if name == "use_beta_sigmas":  # its constructor wants a library that is not needed here
        made = kind()
        made.register_to_config(**settings)
    else:
        made = kind(**settings)
    with pytest.raises(ValueError, match=rf"`scheduler` must have {name} = .*; got .*from_config"):
        check_scheduler(made)


def test_flow_components_refuse_it_too():
    """When they are made, so that a folder with such a scheduler is not loaded."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    with pytest.raises(ValueError, match="use_karras_sigmas = False"):
        replace(tiny_flow_components(seed=0), scheduler=scheduler)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (DDIMScheduler, {"steps_offset": None}, "a finite number as steps_offset; got None"),
        (LCMScheduler, {"original_inference_steps": "50"}, "original_inference_steps; got '50'"),
        (LCMScheduler, {"timestep_scaling": float("nan")}, "as timestep_scaling; got nan"),
        (LCMScheduler, {"timestep_scaling": 10**400}, "as timestep_scaling; got 10"),
        (LCMScheduler, {"prediction_type": "flow"}, "a prediction_type of .* got .flow."),
        (LCMScheduler, {"trained_betas": [0.1] * 10}, r"as many trained_betas as .* got \(10,\)"),
        (DDIMScheduler, {"timestep_spacing": "karras"}, "a timestep_spacing of .* got .karras."),
        (DDIMScheduler, {"set_alpha_to_one": "no"}, "a set_alpha_to_one of True, False; got .no."),
    ],
)
def test_an_unfit_value_is_refused(kind, change, message):
    """By name, before any step."""
    made = kind(**PLAIN[kind])
    made.register_to_config(**change)
    with pytest.raises(ValueError, match=message):
        sampler_from_scheduler(made, num_steps=STEPS, eta=0.0)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("length", [10**9, 10**400, 0, -1])
def test_a_table_that_fits_no_memory_is_not_made(kind, length, tmp_path):
    """Diffusers would compute it when the scheduler is made."""
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": kind.__name__, "num_train_timesteps": length}))
    with pytest.raises(CheckpointError, match=r"config.json`: .* num_train_timesteps of 1 to 100"):
        scheduler_of({kind.__name__: kind}, path)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"timestep_spacing": "linspace"}, "timestep_spacing"), ({"steps_offset": 0}, "steps_offset")],
)
def test_noise_at_timestep_0_is_refused_by_name(change, name):
    """A grid that ends there has a last step without spread; without noise it is followed."""
    made = DDIMScheduler(**(PLAIN[DDIMScheduler] | change))
    with pytest.raises(ValueError, match=f"`{name}` must be positive .* at index 3"):
        sampler_from_scheduler(made, num_steps=STEPS, eta=1.0)
    assert sampler_from_scheduler(made, num_steps=STEPS, eta=0.0).timesteps[-1] == 0
