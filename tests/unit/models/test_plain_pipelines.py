"""`plain_pipelines`: the grid of somebody's own SDXL, by the scheduler that lies with it."""

import json
import warnings

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.plain_pipelines import plain_scheduler, warn_of_grid
from mvczigal_ref.models.published import SdxlSources
from mvczigal_ref.models.schedulers import sampler_from_scheduler

BASE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
SDXL = BASE | {
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
    "sample_max_value": 1.0,
    "trained_betas": None,
}
LIGHTNING = SDXL | {"timestep_spacing": "trailing"}
"""Settings as SDXL's base and the pipelines of Lightning and Hyper-SD have them."""


@pytest.fixture
def write(tmp_path):
    """Write settings as those of a plain pipeline, and give its folder."""

    def folder_of(settings):
        folder = tmp_path / "scheduler"
        folder.mkdir(exist_ok=True)
        (folder / "scheduler_config.json").write_text(json.dumps(settings))
        return str(tmp_path)

    return folder_of


@pytest.fixture
def scheduler(write):
    """Write settings, and read them as those of a plain pipeline."""

    def read(settings, *, few_steps=False):
        return plain_scheduler(write(settings), SdxlSources(), few_steps=few_steps)

    return read


# -- oracle: diffusers' own steps ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_steps", [1, 4, 8, 25])
@pytest.mark.parametrize("settings", [SDXL, LIGHTNING], ids=["base", "lightning"])
def test_the_steps_are_eulers(scheduler, settings, num_steps):
    """From the same first latent, scaled to Euler's variance, to the same image."""

    def net(latent, time):
        return torch.tanh(0.7 * latent + 0.001 * float(time))

    theirs = EulerDiscreteScheduler.from_config(settings)
    theirs.set_timesteps(num_steps)
    sampler = sampler_from_scheduler(scheduler(settings), num_steps=num_steps, eta=0.0)
    latent = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    state = latent * (theirs.sigmas[0].double() ** 2 + 1).sqrt().float()
    for step, time in enumerate(theirs.timesteps):
        output = net(theirs.scale_model_input(state, time), time)
        state = theirs.step(output, time, state).prev_sample
        at = sampler.transition(net(latent, time), latent, step)
        latent = at.mean

    assert sampler.timesteps.tolist() == theirs.timesteps.tolist()
    torch.testing.assert_close(at.denoised, state, rtol=1e-3, atol=1e-3)


# -- laws ---------------------------------------------------------------------------------


def test_ddim_and_lcm_are_taken_whole(scheduler):
    """With every setting that is followed."""
    ddim = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
    made = scheduler(BASE | ddim | {"timestep_spacing": "linspace"})
    assert (made.config.timestep_spacing, made.config.set_alpha_to_one) == ("linspace", False)
    lcm = BASE | {"_class_name": "LCMScheduler", "original_inference_steps": 100}
    for few_steps in (False, True):
        made = scheduler(lcm, few_steps=few_steps)
        assert made.config.original_inference_steps == 100


def test_a_distilled_network_keeps_its_grid(scheduler):
    """Of a base's scheduler it takes what the network predicts alone."""
    made = scheduler(LIGHTNING | {"prediction_type": "v_prediction"}, few_steps=True)
    assert type(made).__name__ == "LCMScheduler"
    assert made.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("change", "words", "spacing"),
    [
        ({"use_karras_sigmas": True}, "samples with use_karras_sigmas = True; ", "leading"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "DPMSolverMultistepSch.*; ", "leading"),
        ({"_class_name": "TCDScheduler", "timestep_spacing": "trailing"}, "TCDSch", "trailing"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing = linspace; ", "leading"),
        ({"steps_offset": 0}, "steps_offset = 0; ", "leading"),
        ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type = sigma_min; ", "leading"),
        ({"beta_schedule": None}, "beta_schedule = linear; ", "leading"),
    ],
    ids=str,
)
def test_what_is_taken_instead_is_told(scheduler, change, words, spacing):
    """One warning names the settings and the grid."""
    settings = {name: value for name, value in (SDXL | change).items() if value is not None}
    with pytest.warns(UserWarning, match=f"{words}.*DDIM's steps on a {spacing} grid"):
        made = scheduler(settings)
    assert made.config.timestep_spacing == spacing
    assert sampler_from_scheduler(made, num_steps=4, eta=1.0).timesteps[-1] in (1, 249)


def test_without_settings_they_are_sdxls(scheduler, tmp_path):
    """As for the published base."""
    made = plain_scheduler(str(tmp_path), SdxlSources(), few_steps=False)
    assert made.config.timestep_spacing == "leading"


DDIM = BASE | {"_class_name": "DDIMScheduler", "clip_sample": False, "steps_offset": 1}
LCM = BASE | {"_class_name": "LCMScheduler"}


@pytest.mark.parametrize(
    ("settings", "few_steps", "words"),
    [
        (LIGHTNING, False, "timestep_spacing = trailing; "),
        (SDXL | {"steps_offset": 3, "use_karras_sigmas": True}, False, "karras.*steps_offset = 3"),
        (DDIM | {"clip_sample": True, "steps_offset": 0}, False, "offset = 0, clip_sample = True;"),
        (DDIM | {"set_alpha_to_one": False}, False, "set_alpha_to_one = False; "),
        (LCM, False, "LCMScheduler; "),
        (LCM | {"original_inference_steps": 100}, True, "original_inference_steps = 100; "),
        (
            LCM | {"timestep_scaling": 1.0, "thresholding": True},
            True,
            "scaling = 1.0, thresh.*True",
        ),
    ],
    ids=str,
)
def test_a_run_warns_of_another_grid_than_its_own(write, settings, few_steps, words):
    """By the file and its settings; a run samples on the grid of its own section."""
    with pytest.warns(UserWarning, match=rf"scheduler_config\.json` samples with .*{words}.*grid"):
        warn_of_grid(write(settings), SdxlSources(), few_steps=few_steps)


@pytest.mark.parametrize(
    ("settings", "few_steps", "trailing"),
    [
        (SDXL, False, False),
        (DDIM, False, False),
        (LCM, True, False),
        (LIGHTNING, True, False),
        (LIGHTNING, False, True),
        (DDIM | {"timestep_spacing": "trailing", "steps_offset": 0}, False, True),
    ],
)
def test_a_run_says_nothing_of_its_own_grid(write, settings, few_steps, trailing):
    """Nor of a base's scheduler beside a network that is distilled to few steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_grid(write(settings), SdxlSources(), few_steps=few_steps, trailing=trailing)


# -- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SDXL | {"_class_name": "EDMEulerScheduler"}, "scheduler of SDXL's noise.*EDMEuler"),
        (SDXL | {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "noise.*FlowMatchEuler"),
        (SDXL | {"_class_name": ["DDIMScheduler"]}, "scheduler of SDXL's noise"),
        (SDXL | {"use_flow_sigmas": True}, "use_flow_sigmas = False"),
        (SDXL | {"timestep_spacing": "even"}, "timestep_spacing of leading, .* got 'even'"),
        (SDXL | {"steps_offset": 1.5}, "whole steps_offset; got .* '1.5'"),
        (SDXL | {"timestep_spacing": ["leading"]}, "timestep_spacing of leading"),
        (DDIM | {"steps_offset": 5000}, r"config\.json.*`steps_offset` must be in 0\.\.999"),
        (LCM | {"original_inference_steps": 0}, r"original_num_steps` must be in 1\.\.1000"),
        (
            BASE | {"_class_name": "DDIMScheduler", "clip_sample": True},
            r"scheduler_config\.json.*clip_sample = False",
        ),
    ],
    ids=str,
)
def test_what_is_not_followed_is_refused(scheduler, settings, message):
    """The file and the setting are named."""
    with pytest.raises(CheckpointError, match=message):
        scheduler(settings)
