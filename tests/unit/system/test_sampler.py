"""`grids`: the sampler is the configuration's."""

import pytest
import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.euler_ancestral import EulerAncestralSampler
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.tcd import TcdSampler
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.system.sampler import build_sampler
from tests import oracles

FLOW = (
    "model.network=flow", "sampler.kind=flow", "reward.joint=per_view", "advantage.mode=per_view",
    "objective.kind=policy_gradient", "rollout.kind=group",
)  # fmt: skip


def build(*words, **how):
    """Build the grid of some settings."""
    return build_sampler(load_config(overrides=words), **how)


@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_the_sampler_is_on_the_published_schedule(shift):
    """Scaled-linear betas, their signal-to-noise ratio divided along the grid; tables in fp32."""
    level = oracles.scaled_linear_alpha_bar(1000, 0.00085, 0.012)
    level = oracles.shifted_alpha_bar(level, shift, "interpolated")
    sampler = build("sampler.num_steps=8", f"sampler.snr_shift={shift}")

    assert isinstance(sampler, LcmSampler)
    assert sampler.timesteps.tolist() == [999, 879, 759, 639, 499, 379, 259, 139]
    assert sampler.alpha_bar_t.dtype == torch.float32
    expected = torch.tensor([level[t] for t in sampler.timesteps.tolist()])
    torch.testing.assert_close(sampler.alpha_bar_t, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
def test_the_sampler_is_the_settings(kind):
    """Kernel, length, prediction and stochasticity."""
    eta = ["sampler.eta=0.5"] if kind == "ddim" else []
    sampler = build(f"sampler.kind={kind}", "sampler.prediction_type=sample", *eta)

    assert isinstance(sampler, {"lcm": LcmSampler, "ddim": DdimSampler}[kind])
    assert (sampler.num_steps, sampler.prediction_type) == (4, "sample")
    if kind == "ddim":
        assert sampler.eta == 0.5
        assert sampler.timesteps.tolist() == [751, 501, 251, 1]


@pytest.mark.parametrize(
    ("words", "sampler_type", "times", "drawn"),
    [
        (["lcm", "spacing=trailing"], LcmSampler, [999, 749, 499, 249], 4),
        (["ddim", "spacing=trailing", "eta=0.3"], DdimSampler, [999, 749, 499, 249], 4),
        (["tcd", "eta=0.3"], TcdSampler, [999, 759, 499, 259], 3),
        (["euler_ancestral", "eta=0.7"], EulerAncestralSampler, [999, 749, 499, 249], 3),
    ],
)
def test_few_step_networks_are_sampled_on_their_own_grids(words, sampler_type, times, drawn):
    """DMD2's, Hyper-SD's and Lightning's, TCD's, and SDXL-Turbo's; the settings' stochasticity."""
    kind, *more = words
    sampler = build(f"sampler.kind={kind}", *(f"sampler.{word}" for word in more))
    zero = torch.zeros(1, 1, 1)

    assert isinstance(sampler, sampler_type)
    assert sampler.timesteps.tolist() == times
    assert sampler.num_density_steps == drawn
    full = build(f"sampler.kind={kind}", *(f"sampler.{word}" for word in more if "eta" not in word))
    stds = [each.transition(zero, zero, 0).std.item() for each in (sampler, full)]
    assert (stds[0] < stds[1]) == (kind != "lcm")


@pytest.mark.parametrize(
    ("words", "trained", "shift"),
    [((), 2.5, 2.5), (("flow.shift=4",), 2.5, 4.0), ((), 1.0, 1.0)],
)
def test_a_flow_s_levels_are_shifted(words, trained, shift):
    """As the network was trained, unless a setting says otherwise."""
    sampler = build(*FLOW, *words, shift=trained)
    plain = [1.0, 0.75, 0.5, 0.25, 0.0]
    levels = [shift * s / (1 + (shift - 1) * s) for s in plain]

    assert isinstance(sampler, FlowSampler)
    assert sampler.sigma_t.dtype == torch.float32
    assert sampler.sigma_t.tolist() == pytest.approx(levels[:-1], rel=1e-6)
    assert sampler.sigma_prev.tolist() == pytest.approx(levels[1:], rel=1e-6)
    assert sampler.timesteps.tolist() == pytest.approx([1000 * s for s in levels[:-1]], rel=1e-6)


def test_a_flow_s_last_step_starts_where_its_network_s_pipeline_takes_it():
    """Shifted as the other levels are."""
    sampler = build(*FLOW, shift=3.0, lowest_sigma=0.1)
    levels = [3 * s / (1 + 2 * s) for s in (1.0, 0.7, 0.4, 0.1)]

    assert sampler.sigma_t.tolist() == pytest.approx(levels, rel=1e-6)
    assert sampler.sigma_prev.tolist() == pytest.approx([*levels[1:], 0.0], rel=1e-6)


def test_a_flow_s_kernel_is_the_settings():
    """Its noise, and where the image is read off."""
    sampler = build(*FLOW, "flow.kernel=constant", "flow.noise_scale=0.3")
    assert (sampler.kernel, sampler.noise_scale, sampler.image_is_denoised) == (
        "constant", 0.3, False,
    )  # fmt: skip
    assert build(*FLOW, "flow.image_is_denoised=true").image_is_denoised


@pytest.mark.parametrize("words", [(), ("sampler.kind=ddim",), FLOW])
def test_another_length_may_be_asked_for(words):
    """Such as that of evaluation; the rest stays."""
    assert build(*words, num_steps=7).num_steps == 7
    assert build(*words).num_steps == 4


def test_a_shift_that_makes_levels_equal_is_refused():
    """By its section, before anything is loaded."""
    with pytest.raises(ConfigError, match="settings of `flow` leave no grid of steps: `sigmas`"):
        build(*FLOW, "flow.shift=1e30")
