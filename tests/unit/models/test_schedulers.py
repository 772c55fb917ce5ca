"""`schedulers`: oracle, laws, errors."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler

from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar, shift_snr
from mvczigal_ref.models.schedulers import sampler_from_scheduler, sdxl_scheduler
from tests.compare import FP32, assert_equal_to

SHIFTED = shift_snr(scaled_linear_alpha_bar(), 8.0)


def assert_same(found, expected):
    """Compare type, numbers and tables."""
    assert type(found) is type(expected)
    for name in found.__dataclass_fields__:
        a, b = getattr(found, name), getattr(expected, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


# -- oracle ------------------------------------------------------------------------------


def test_published_schedulers_are_the_published_grids():
    """Few steps: latent consistency; SDXL's own: implicit models. Shifted by 8, in fp32."""
    few = sampler_from_scheduler(sdxl_scheduler(few_steps=True), num_steps=8, snr_shift=8.0)
    many = sampler_from_scheduler(
        sdxl_scheduler(few_steps=False), num_steps=16, snr_shift=8.0, eta=0.5
    )

    expected = LcmSampler.create(num_steps=8, alpha_bar=SHIFTED)
    assert_same(few, expected.to(dtype=torch.float32))
    assert few.timesteps.tolist() == [999, 879, 759, 639, 499, 379, 259, 139]
    expected = DdimSampler.create(num_steps=16, alpha_bar=SHIFTED, eta=0.5)
    assert_same(many, expected.to(dtype=torch.float32))


def test_levels_are_diffusers_own():
    """Its scheduler and ours agree about the signal share at every timestep of the grid."""
    scheduler = sdxl_scheduler(few_steps=True)
    sampler = sampler_from_scheduler(scheduler, num_steps=8)
    scheduler.set_timesteps(8)

    assert sampler.timesteps.tolist() == scheduler.timesteps.tolist()
    theirs = scheduler.alphas_cumprod[sampler.timesteps]
    # Theirs is a product of a thousand fp32 numbers.
    assert_equal_to(sampler.alpha_bar_t, theirs, 20 * FP32)


# -- laws --------------------------------------------------------------------------------


def test_trained_betas_are_taken_as_they_are():
    """As the released code stores a shifted schedule; no shift is added to them."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), SHIFTED[:-1]])
    betas = (1.0 - SHIFTED / before).tolist()
    sampler = sampler_from_scheduler(LCMScheduler(trained_betas=betas), num_steps=4, snr_shift=8.0)
    expected = LcmSampler.create(num_steps=4, alpha_bar=SHIFTED).to(dtype=torch.float32)
    assert_equal_to(sampler.alpha_bar_t, expected.alpha_bar_t, FP32)


def test_every_setting_is_read():
    """Prediction, grid of distillation, boundary scaling, offset."""
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.02}
    lcm = sampler_from_scheduler(
        LCMScheduler(
            **noise,
            prediction_type="v_prediction",
            original_inference_steps=100,
            timestep_scaling=5.0,
        ),
        num_steps=3,
    )
    ddim = sampler_from_scheduler(
        DDIMScheduler(**noise, steps_offset=2, num_train_timesteps=500, clip_sample=False),
        num_steps=4,
    )

    alpha_bar = scaled_linear_alpha_bar(beta_start=0.001, beta_end=0.02)
    expected = LcmSampler.create(
        num_steps=3,
        alpha_bar=alpha_bar,
        prediction_type="v_prediction",
        original_num_steps=100,
        timestep_scaling=5.0,
    )
    assert_same(lcm, expected.to(dtype=torch.float32))
    alpha_bar = scaled_linear_alpha_bar(num_train_timesteps=500, beta_start=0.001, beta_end=0.02)
    expected = DdimSampler.create(num_steps=4, alpha_bar=alpha_bar, steps_offset=2)
    assert_same(ddim, expected.to(dtype=torch.float32))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            EulerDiscreteScheduler(beta_schedule="scaled_linear"),
            "`scheduler` must be an LCMScheduler or a DDIMScheduler; got EulerDiscreteScheduler",
        ),
        (LCMScheduler(beta_schedule="linear"), "`scheduler` must have .* got 'linear'"),
    ],
)
def test_another_scheduler_is_refused(scheduler, message):
    """Its steps or its noise are not this package's."""
    with pytest.raises(ValueError, match=message):
        sampler_from_scheduler(scheduler, num_steps=4)
