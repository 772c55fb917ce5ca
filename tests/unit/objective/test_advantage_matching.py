"""Advantage-weighted matching: oracle, laws, gradients, golden values, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow import flow_latent, flow_velocity
from mvczigal_ref.objective.advantage_matching import (
    advantage_matching_loss,
    matching_error,
    matching_score,
)
from tests.golden import constants, names, tensors
from tests.strategies import randn
from tests.unannotated import without_shape_checks

WEIGHTS = ["uniform", "level", "level_squared", "huber"]


def noised(seed=0, levels=(0.25, 0.6, 1.0)):
    """Give samples with noise, and three velocities."""
    clean, noise, *velocities = randn(5, len(levels), 1, 2, 2, seed=seed, dtype=torch.float64)
    level = torch.tensor(levels, dtype=torch.float64)
    names = ("velocity", "velocity_old", "velocity_reference")
    return dict(zip(names, velocities, strict=True)) | {
        "clean": clean,
        "latent_t": flow_latent(clean, noise, sigma=level),
        "level": level,
    }, flow_velocity(clean, noise)


def score_oracle(error, level, weight):
    """Turn an error into a score in floats."""
    if weight == "huber":
        return -level / 0.25 * ((error + 1e-10) ** 0.25 - 1e-10**0.25)
    return -error * {"uniform": 1.0, "level": level, "level_squared": level**2}[weight]


# -- oracle ------------------------------------------------------------------------------


@given(st.sampled_from(WEIGHTS), st.floats(0.01, 1.0), st.floats(0.0, 0.5), st.integers(0, 99))
def test_the_loss_is_the_papers(weight, clip_range, beta, seed):
    """Walked sample by sample in plain floats, from the noise itself."""
    told, target = noised(seed)
    advantage = torch.tensor([1.5, -0.5, -2.0], dtype=torch.float64)
    loss, stats = advantage_matching_loss(
        **told, advantage=advantage, weight=weight, clip_range=clip_range, kl_weight=beta
    )
    terms, clipped, distance = [], 0, []
    for row, (a, t) in enumerate(zip(advantage.tolist(), told["level"].tolist(), strict=True)):
        errors = [
            math.fsum((x - y) ** 2 for x, y in zip(
                told[name][row].flatten().tolist(), target[row].flatten().tolist(), strict=True
            )) / 4
            for name in ("velocity", "velocity_old")
        ]  # fmt: skip
        scores = [score_oracle(error, t, weight) for error in errors]
        ratio = math.exp(scores[0] - scores[1])
        near = max(1 - clip_range, min(1 + clip_range, ratio))
        terms.append(max(-a * ratio, -a * near))
        clipped += abs(ratio - 1) > clip_range
        apart = told["velocity"][row] - told["velocity_reference"][row]
        distance.append(math.fsum(x * x for x in apart.flatten().tolist()) / 4)
    expected = math.fsum(terms) / 3 + beta * math.fsum(distance) / 3

    assert loss.item() == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert stats.reference_kl.item() == pytest.approx(math.fsum(distance) / 3, rel=1e-10)
    assert stats.clip_fraction.item() == pytest.approx(clipped / 3)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WEIGHTS[:3])
def test_on_policy_it_is_pretraining_weighed_by_the_advantages(weight):
    """Its gradient is that of the weighed matching error."""
    told, _ = noised()
    told["velocity"].requires_grad_()
    told["velocity_old"] = told["velocity"].detach()
    advantage = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    loss, _ = advantage_matching_loss(**told, advantage=advantage, weight=weight, clip_range=1.0)
    (found,) = torch.autograd.grad(loss, told["velocity"])
    noise = {name: told[name] for name in ("clean", "latent_t", "level")}
    error = matching_error(told["velocity"], **noise)
    fit = -(advantage * matching_score(error, told["level"], weight=weight)).mean()
    (expected,) = torch.autograd.grad(fit, told["velocity"])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_the_true_velocity_has_no_error_and_the_best_score():
    """Whatever the weight; other velocities score less."""
    told, target = noised()
    noise = {name: told[name] for name in ("clean", "latent_t", "level")}
    best, other = matching_error(target, **noise), matching_error(told["velocity"], **noise)
    for weight in WEIGHTS:
        perfect = matching_score(torch.zeros(3).double(), told["level"], weight=weight)
        assert perfect.abs().max() < 1e-12
        assert (matching_score(other, told["level"], weight=weight) < 0).all()
    assert best.max() < 1e-25


def test_no_gradient_flows_but_through_the_velocity():
    """The sample, its noise and the other policies are constants."""
    told, _ = noised()
    for value in told.values():
        value.requires_grad_()
    loss, _ = advantage_matching_loss(
        **told, advantage=torch.ones(3).double(), clip_range=1.0, kl_weight=0.1
    )
    loss.backward()
    assert told["velocity"].grad is not None
    assert all(value.grad is None for name, value in told.items() if name != "velocity")


# -- golden ------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", WEIGHTS)
def test_released_trainer(weight):
    """Score of each latent, the loss and its gradient."""
    (case,) = [name for name in names("peers", "awm") if name == f"awm_loss_{weight}"]
    golden, settings = tensors("peers", case), constants("peers", case)
    velocity = golden["prediction"].clone().requires_grad_()
    noised_ = {"clean": golden["x0"], "latent_t": golden["xt"], "level": golden["t"]}
    loss, stats = advantage_matching_loss(
        velocity, velocity_old=golden["old_prediction"],
        velocity_reference=golden["ref_prediction"], advantage=golden["advantage"], weight=weight,
        clip_range=settings["clip_range"], kl_weight=settings["beta"], **noised_,
    )  # fmt: skip
    (slope,) = torch.autograd.grad(loss, velocity)
    score = matching_score(matching_error(velocity, **noised_), golden["t"], weight=weight)

    # The noise is told as a latent here, and comes back through a division by the level.
    torch.testing.assert_close(score, golden["log_prob"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, golden["loss"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, golden["grad"], rtol=1e-10, atol=1e-14)
    assert 0.0 < stats.clip_fraction.item() < 1.0


# -- errors ------------------------------------------------------------------------------


def test_an_unknown_weight_is_refused():
    """With the choice that there is."""
    with without_shape_checks(), pytest.raises(ValueError, match="`weight` must be"):
        matching_score(torch.zeros(1), torch.ones(1), weight="none")


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("weight", ["uniform", "level", "level_squared", "huber"])
def test_a_score_of_half_precision_is_refused(weight, narrow):
    """As every density; the Huber form's floor is 0 there, with a slope without bound."""
    one = torch.ones(2)
    for error, level in ((one.to(narrow), one), (one, one.to(narrow))):
        with without_shape_checks(), pytest.raises(ValueError, match="must be float32 or float64"):
            matching_score(error, level, weight=weight)


@pytest.mark.parametrize("name", ["clean", "latent_t", "level"])
def test_what_would_broadcast_is_refused(name):
    """One level per sample, of as many views, would be every view's."""
    told, _ = noised()
    told = {key: told[key] for key in ("velocity", "clean", "latent_t", "level")}
    told = {key: value[:, None].expand(-1, 3, *value.shape[1:]) for key, value in told.items()}
    assert matching_error(**told).shape == (3, 3)
    told[name] = told[name][:, 0]
    with without_shape_checks(), pytest.raises(ValueError, match=rf"`{name}` must (have|be)"):
        matching_error(**told)
