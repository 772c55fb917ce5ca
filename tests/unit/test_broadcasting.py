"""Shapes that a borrower brings, without the annotations' checks: refused, never broadcast."""

import math
import re

import pytest
import torch
from jaxtyping import config

import mvczigal_ref as m
from mvczigal_ref.diffusion.flow_dpm import OdeMemory
from mvczigal_ref.diffusion.sampler import Transition
from mvczigal_ref.objective.advantage_matching import matching_error, matching_score

ROWS = 4
LATENT = torch.ones(ROWS, 4, 8, 8)  # as many rows as channels, so that a lost axis broadcasts
NUMBER = torch.full((ROWS,), 0.5)
LOWER = torch.full((ROWS,), 0.25)
EPSILON = {"prediction_type": "epsilon"}
LCM = {"alpha_bar_t": NUMBER, "alpha_bar_prev": NUMBER + 0.1, **EPSILON}
FLOW = {"sigma_t": NUMBER, "sigma_prev": LOWER}
NOISY = {**FLOW, "noise_scale": 0.5}
MEANS = {"mean": LATENT, "mean_old": LATENT, "std": NUMBER, "reduction": "mean"}
ERRORS = {name: NUMBER for name in ("reference_zigzag", "reference_standard", "advantage_gap")}
VELOCITIES = {name: LATENT for name in ("velocity_old", "clean", "latent_t")}

# The call, its latents by place, its settings, and those that hold one number per latent.
LEVELS = [
    (m.sample, (LATENT,), {"std": NUMBER, "noise": LATENT}, "std"),
    (m.log_prob, (LATENT,), {"mean": LATENT, "std": NUMBER, "reduction": "mean"}, "std"),
    (m.kl_divergence, (), {
        "mean_p": LATENT, "std_p": NUMBER, "mean_q": LATENT, "std_q": NUMBER, "reduction": "mean"
    }, "std_p std_q"),
    (m.clean_and_noise, (LATENT, LATENT), {"alpha_bar_t": NUMBER, **EPSILON}, "alpha_bar_t"),
    (m.noised_latent, (LATENT, LATENT), {"alpha_bar_t": NUMBER}, "alpha_bar_t"),
    (m.ddim_transition, (LATENT, LATENT), {**LCM, "eta": 1.0}, "alpha_bar_t alpha_bar_prev"),
    (m.ddim_invert, (LATENT, LATENT), LCM, "alpha_bar_t alpha_bar_prev"),
    (m.lcm_transition, (LATENT, LATENT), {**LCM, "timestep": torch.tensor(9)},
     "alpha_bar_t alpha_bar_prev"),
    (m.lcm_invert, (LATENT, LATENT), {**LCM, "timestep_prev": torch.tensor(9)},
     "alpha_bar_t alpha_bar_prev"),
    (m.tcd_transition, (LATENT, LATENT), {**LCM, "alpha_bar_target": NUMBER + 0.2},
     "alpha_bar_t alpha_bar_prev alpha_bar_target"),
    (m.euler_ancestral_transition, (LATENT, LATENT), {**LCM, "eta": 1.0},
     "alpha_bar_t alpha_bar_prev"),
    (m.flow_latent, (LATENT, LATENT), {"sigma": NUMBER}, "sigma"),
    (m.flow_clean_and_noise, (LATENT, LATENT), {"sigma_t": NUMBER}, "sigma_t"),
    (m.flow_step, (LATENT, LATENT), {**FLOW, "replaced": LOWER, "std": LOWER},
     "sigma_t sigma_prev replaced std"),
    (m.flow_ode_transition, (LATENT, LATENT), FLOW, "sigma_t sigma_prev"),
    (m.flow_invert, (LATENT, LATENT), FLOW, "sigma_t sigma_prev"),
    (m.flow_sde_transition, (LATENT, LATENT), NOISY, "sigma_t sigma_prev"),
    (m.constant_noise_transition, (LATENT, LATENT), NOISY, "sigma_t sigma_prev"),
    (m.cps_transition, (LATENT, LATENT), NOISY, "sigma_t sigma_prev"),
    (m.dpm2m_transition, (LATENT, LATENT),
     {**FLOW, "memory": OdeMemory(clean=LATENT, sigma=torch.tensor(0.6))}, "sigma_t sigma_prev"),
    (m.reference_kl_without_step_length, (LATENT, LATENT),
     {"std": NUMBER, "step_length": NUMBER, "reduction": "mean"}, "step_length"),
    (matching_error, (LATENT,), {"clean": LATENT, "latent_t": LATENT, "level": NUMBER}, "level"),
    (m.guard_loss, (NUMBER, NUMBER), {**MEANS, "step_length": NUMBER}, "step_length"),
    (m.noise_error, (LATENT,), {"latent_t": LATENT, "noise": LATENT, "alpha_bar_t": NUMBER,
     **EPSILON}, "alpha_bar_t"),
]  # fmt: skip
# The call, its arguments, and those that must have one shape.
ALIKE = [
    (m.sample, {"mean": LATENT, "std": 0.5, "noise": LATENT}, "noise"),
    (m.log_prob, {"action": LATENT, "mean": LATENT, "std": 0.5, "reduction": "mean"}, "mean"),
    (m.classifier_free_guidance, {"uncond": LATENT, "cond": LATENT, "guidance_scale": 2.0}, "cond"),
    (m.flow_velocity, {"clean": LATENT, "noise": LATENT}, "noise"),
    (m.outside_region, {"log_ratio": NUMBER, "advantage": NUMBER, "divergence": NUMBER,
     "divergence_range": 0.1}, "advantage divergence"),
    (m.divergence_loss, {"log_ratio": NUMBER, "advantage": NUMBER, "repeats": NUMBER, **MEANS},
     "advantage repeats"),
    (m.through_sequence, {"log_ratio": NUMBER, "sequence": NUMBER}, "sequence"),
    (m.noise_preference_loss, {"error_zigzag": NUMBER, "error_standard": NUMBER, "scale": 1.0,
     "clip_range": 0.1, **ERRORS}, "reference_zigzag reference_standard advantage_gap"),
    (m.noise_error, {"output": LATENT, "latent_t": LATENT, "noise": LATENT, "alpha_bar_t": NUMBER,
     **EPSILON}, "noise"),
    (m.group_preference_weight, {"error": NUMBER, "error_reference": NUMBER, "advantage": NUMBER,
     "scale": 1.0}, "error_reference advantage"),
    (m.group_preference_loss, {"velocity": LATENT, **VELOCITIES, "velocity_reference": LATENT,
     "level": NUMBER, "advantage": NUMBER, "scale": 1.0, "clip_range": 0.1}, "advantage"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _unchecked():
    """Call as outside the tests, where nothing checks annotations."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def results(value):
    """Give a result's tensors that are as large as what was asked for."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Transition):
        return [value.mean, value.denoised]
    return [tensor for part in value for tensor in results(part)] if type(value) is tuple else []


def names(case):
    """Name a case by its function."""
    return case.__name__ if callable(case) else ""


@pytest.mark.parametrize(("call", "latents", "settings", "levels"), LEVELS, ids=names)
def test_one_number_per_latent_is_never_paired_with_other_axes(call, latents, settings, levels):
    """Numbers with a latent's own axes, as diffusers broadcasts them, would make n x n latents."""
    call(*latents, **settings)
    for name in levels.split():
        for axes, remedy in [((1, 1, 1), f"{name}[..., 0, 0, 0]"), ((1,), "Reshape it")]:
            number = settings[name].reshape(ROWS, *axes)
            rule = rf"`{name}` must be one number.*got {re.escape(str((ROWS, *axes)))}"
            with pytest.raises(ValueError, match=rf"{rule}.*{re.escape(remedy)}"):
                call(*latents, **{**settings, name: number})


@pytest.mark.parametrize(("call", "latents", "settings", "levels"), LEVELS, ids=names)
def test_one_number_for_all_serves(call, latents, settings, levels):
    """A level without axes, or with one of length 1."""
    full = call(*latents, **settings)
    for number in (0, [0]):
        one = {name: settings[name][number] for name in levels.split()}
        again = call(*latents, **{**settings, **one})
        assert results(full)
        for expected, got in zip(results(full), results(again), strict=True):
            torch.testing.assert_close(got.expand_as(expected), expected)


@pytest.mark.parametrize(("call", "latents", "settings", "levels"), LEVELS, ids=names)
def test_one_number_may_have_a_latents_own_axes(call, latents, settings, levels):
    """As released code gives its spread: one number for all, which adds no axis to a result."""
    plain, shaped = (
        {name: settings[name][0].reshape(axes) for name in levels.split()}
        for axes in ((), (1, 1, 1, 1))
    )
    expected, got = (results(call(*latents, **{**settings, **one})) for one in (plain, shaped))
    for one, other in zip(expected, got, strict=True):
        assert torch.equal(other, one)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 16, 64)])
def test_what_is_done_number_by_number_needs_no_axes(shape):
    """A mix and a difference are right for any shape, and give that shape back."""
    zero, one = torch.zeros(shape), torch.ones(shape)

    assert torch.equal(m.classifier_free_guidance(zero, one, guidance_scale=7.0), 7.0 * one)
    assert torch.equal(m.flow_velocity(one, 3.0 * one), 2.0 * one)


def test_one_level_of_a_matching_score_serves():
    """Of any axes, as the error takes it; a table's levels do not."""
    table = NUMBER.expand(ROWS, ROWS)
    scores = matching_score(table, torch.full((ROWS, ROWS), 0.5), weight="level")
    for one in (torch.tensor(0.5), NUMBER[:1]):
        assert torch.equal(matching_score(table, one, weight="level"), scores)
        assert matching_score(NUMBER[0], one, weight="level").shape == ()
    for several in (NUMBER, NUMBER[:, None]):
        with pytest.raises(ValueError, match=r"`level` must have the shape of"):
            matching_score(table, several, weight="level")


def test_one_number_of_repeats_serves():
    """As a float does."""
    settings = {**MEANS, "log_ratio": NUMBER, "advantage": NUMBER, "mean_old": LATENT + 1.0}
    _, by_tensor = m.divergence_loss(**settings, repeats=torch.tensor(2.0))
    _, by_float = m.divergence_loss(**settings, repeats=2.0)

    assert by_tensor.clip_fraction == by_float.clip_fraction == 2.0


@pytest.mark.parametrize(("call", "settings", "alike"), ALIKE, ids=names)
def test_what_goes_together_has_one_shape(call, settings, alike):
    """An axis more or a row for all would broadcast, and a mean would hide it."""
    call(**settings)
    for name in alike.split():
        tensor = settings[name]
        for other in (tensor[:, None], tensor[:1]):
            with pytest.raises(ValueError, match=r"must have the shape of"):
                call(**{**settings, name: other})


def test_packed_tokens_are_told_from_latents():
    """As FLUX has them, (row, token, channel): one channel more, and they are latents."""
    tokens = torch.ones(ROWS, 16, 64)
    with pytest.raises(ValueError, match=r"Packed tokens .*`latent\[:, None\]`"):
        m.flow_sde_transition(tokens, tokens, **NOISY)
    taken = m.flow_sde_transition(tokens[:, None], tokens[:, None], **NOISY)

    assert m.log_prob(taken.mean, mean=taken.mean, std=taken.std, reduction="mean").shape == (ROWS,)
    with pytest.raises(ValueError, match=r"`action` must have the axes .*`action\[:, None\]`"):
        m.log_prob(tokens[0], mean=tokens[0], std=0.5, reduction="mean")


@pytest.mark.parametrize("number", [0.5, [0.5]], ids=["float", "list"])
def test_a_number_where_a_tensor_is_meant_is_told_so(number):
    """Not that it has no dtype."""
    remedy = rf"`sigma_t` must be float32.*got {type(number).__name__}.*torch\.as_tensor"
    with pytest.raises(ValueError, match=remedy):
        m.flow_sde_transition(LATENT, LATENT, **{**NOISY, "sigma_t": number})


@pytest.mark.parametrize(
    "name", ["LcmSampler", "DdimSampler", "TcdSampler", "EulerAncestralSampler"]
)
def test_every_sampler_scores_its_actions(name):
    """By its Gaussian, and no step without a spread."""
    sampler = getattr(m, name).create(num_steps=3, alpha_bar=m.scaled_linear_alpha_bar())
    taken = sampler.transition(LATENT, 2.0 * LATENT, 1)
    score = sampler.log_prob(LATENT, taken, 1, reduction="mean")

    assert torch.equal(score, m.log_prob(LATENT, mean=taken.mean, std=taken.std, reduction="mean"))
    with pytest.raises(ValueError, match=r"`step` must be in 0\.\.2"):
        sampler.log_prob(LATENT, taken, -1, reduction="mean")
    last = sampler.num_density_steps
    if last < sampler.num_steps:
        with pytest.raises(ValueError, match=rf"`step` must be below num_density_steps = {last}"):
            sampler.log_prob(LATENT, taken, last, reduction="mean")
    assert math.isfinite(score.sum())
