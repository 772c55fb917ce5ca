"""Direct group preference: oracle, laws, gradients, golden values, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.objective.advantage_matching import matching_error
from mvczigal_ref.objective.group_preference import (
    group_preference_loss,
    group_preference_weight,
)
from tests.golden import constants, names, tensors
from tests.strategies import randn
from tests.unannotated import without_shape_checks
from tests.unit.objective.test_advantage_matching import noised

ADVANTAGE = torch.tensor([1.5, -1.0, -0.5], dtype=torch.float64)


def group(seed=0):
    """Give one group of three samples, and its errors under the three velocities."""
    told, target = noised(seed)
    errors = {
        name: (told[name] - target).square().mean(dim=(-3, -2, -1))
        for name in ("velocity", "velocity_old", "velocity_reference")
    }
    return told, errors


# -- oracle ------------------------------------------------------------------------------


@given(st.floats(0.1, 200.0), st.floats(1e-3, 0.9), st.floats(0.0, 1.0), st.integers(0, 99))
def test_the_loss_is_the_released_one(scale, clip_range, beta, seed):
    """In plain floats: the group's weight, the clip of each sample, and the penalty."""
    told, errors = group(seed)
    loss, stats = group_preference_loss(
        **told, advantage=ADVANTAGE, scale=scale, clip_range=clip_range, kl_weight=beta
    )
    new, old, frozen = (errors[name].tolist() for name in errors)
    a = ADVANTAGE.tolist()
    score = sum(x * scale * (e - r) / 3 for x, e, r in zip(a, new, frozen, strict=True))
    weight = 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, score))))
    distance = (told["velocity"] - told["velocity_reference"]).square().mean().item()
    value = weight * math.fsum(x * e for x, e in zip(a, new, strict=True)) / 3 + beta * distance
    clipped = 0
    for x, e, before in zip(a, new, old, strict=True):
        ratio = math.exp(before - e)
        clipped += ratio > 1 + clip_range if x > 0 else ratio < 1 - clip_range

    assert loss.item() == pytest.approx(value, rel=1e-8, abs=1e-10)
    assert stats.clip_fraction.item() == pytest.approx(clipped / 3)
    assert stats.reference_kl.item() == pytest.approx(distance, rel=1e-10)


@given(st.floats(0.1, 20.0), st.integers(0, 99))
def test_without_a_clip_its_gradient_is_that_of_the_logistic_loss(scale, seed):
    """Of -log sigmoid of minus the group's score, over the scale."""
    told, _ = group(seed)
    told["velocity"].requires_grad_()
    loss, _ = group_preference_loss(**told, advantage=ADVANTAGE, scale=scale, clip_range=math.inf)
    (found,) = torch.autograd.grad(loss, told["velocity"])
    noise = {name: told[name] for name in ("clean", "latent_t", "level")}
    change = matching_error(told["velocity"], **noise) - matching_error(
        told["velocity_reference"], **noise
    )
    logistic = -torch.nn.functional.logsigmoid(-scale * (ADVANTAGE * change).mean()) / scale
    (expected,) = torch.autograd.grad(logistic, told["velocity"])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_a_group_of_two_is_diffusion_dpo():
    """Winner and loser, of half the scale: the gradient of its logistic loss."""
    told, _ = noised(levels=(0.4, 0.4))
    told["velocity"].requires_grad_()
    pair = torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss, _ = group_preference_loss(**told, advantage=pair, scale=6.0, clip_range=math.inf)
    (found,) = torch.autograd.grad(loss, told["velocity"])
    noise = {name: told[name] for name in ("clean", "latent_t", "level")}
    winner, loser = matching_error(told["velocity"], **noise) - matching_error(
        told["velocity_reference"], **noise
    )
    dpo = -torch.nn.functional.logsigmoid(-3.0 * (winner - loser)) / 6.0
    (expected,) = torch.autograd.grad(dpo, told["velocity"])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


# -- laws --------------------------------------------------------------------------------


def test_a_group_that_is_preferred_already_weighs_nothing():
    """And one that is disliked weighs 1; at the reference it is a half."""
    error, advantage = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    better = torch.tensor([0.0, 2.0])
    weights = [
        group_preference_weight(mine, theirs, advantage, scale=50.0).item()
        for mine, theirs in ((better, error), (error, better), (error, error))
    ]
    assert weights == pytest.approx([0.0, 1.0, 0.5], abs=1e-9)


def test_groups_are_weighed_each_by_itself():
    """Members lie along the first axis, whatever the others are."""
    error, reference, advantage = randn(3, 3, 2, 4, dtype=torch.float64)
    whole = group_preference_weight(error, reference, advantage, scale=2.0)
    for place in ((0, 1), (1, 3)):
        alone = group_preference_weight(
            error[:, *place], reference[:, *place], advantage[:, *place], scale=2.0
        )
        assert whole[place].item() == pytest.approx(alone.item(), rel=1e-12)


def test_a_clipped_sample_has_no_gradient_and_the_others_have_theirs():
    """Only one that went beyond the range the way that its advantage points."""
    told, errors = group()
    told["velocity"].requires_grad_()
    bound = 1e-3
    loss, stats = group_preference_loss(**told, advantage=ADVANTAGE, scale=1.0, clip_range=bound)
    loss.backward()
    change = (errors["velocity_old"] - errors["velocity"]).expm1() * ADVANTAGE.sign()
    moved = told["velocity"].grad.flatten(1).abs().sum(1) > 0

    assert 0 < stats.clip_fraction.item() < 1
    assert torch.equal(moved, change <= bound)


# -- golden ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", names("peers", "dgpo"))
def test_released_trainer(case):
    """Loss, its gradient, and which samples are held back."""
    golden, settings = tensors("peers", case), constants("peers", case)
    velocity = golden["prediction"].clone().requires_grad_()
    loss, stats = group_preference_loss(
        velocity, velocity_old=golden["old_prediction"],
        velocity_reference=golden["ref_prediction"], clean=golden["x0"], latent_t=golden["xt"],
        level=golden["t"], advantage=golden["advantage"], scale=settings["beta_dpo"],
        clip_range=settings["clip_range"], kl_weight=settings["beta"],
    )  # fmt: skip
    (slope,) = torch.autograd.grad(loss, velocity)

    torch.testing.assert_close(loss, golden["loss"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, golden["grad"], rtol=1e-10, atol=1e-14)
    assert stats.clip_fraction.item() == golden["clipped"].double().mean().item()
    assert (slope.abs().amax(dim=(-3, -2, -1)) == 0.0).equal(
        golden["clipped"].bool() & (settings["beta"] == 0.0)
    )


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"scale": 0.0}, "`scale` must be positive"),
        ({"clip_range": 0.0}, "`clip_range` must be positive"),
        ({"kl_weight": -1.0}, "`kl_weight` must be finite and not negative"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(told, message):
    """By its name."""
    settings = {"scale": 1.0, "clip_range": 0.1, **told}
    with pytest.raises(ValueError, match=message):
        group_preference_loss(**group()[0], advantage=ADVANTAGE, **settings)


@pytest.mark.parametrize("place", range(3))
def test_a_weight_of_half_precision_is_refused(place):
    """The logistic of a hundredfold difference would be rounded to 0 or 1."""
    three = [torch.ones(2)] * 3
    three[place] = three[place].half()
    with without_shape_checks(), pytest.raises(ValueError, match="must be float32 or float64"):
        group_preference_weight(*three, scale=100.0)


def test_advantages_that_would_broadcast_are_refused():
    """One per member, of as many prompts, would be every prompt's."""
    told = {
        name: value[:, None].expand(-1, 3, *value.shape[1:]) for name, value in group()[0].items()
    }
    by_prompt = ADVANTAGE[:, None].expand(-1, 3)
    group_preference_loss(**told, advantage=by_prompt, scale=1.0, clip_range=0.1)
    with without_shape_checks(), pytest.raises(ValueError, match="`advantage` must have the shape"):
        group_preference_loss(**told, advantage=ADVANTAGE, scale=1.0, clip_range=0.1)


def test_a_loss_of_nothing_is_refused():
    """Its mean would be no number."""
    empty = {key: value[:0] for key, value in group()[0].items()}
    with pytest.raises(ValueError, match="`error` must not be empty"):
        group_preference_loss(**empty, advantage=ADVANTAGE[:0], scale=1.0, clip_range=0.1)
