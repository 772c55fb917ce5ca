"""Weights by the size of each step's gradient: oracle, laws, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow_noise import constant_noise_transition
from mvczigal_ref.diffusion.gaussian import log_prob
from mvczigal_ref.objective.rectified import rectified_step_weights
from tests.golden import tensors

GAINS = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=6)


def held(values):
    """Hold numbers in fp64."""
    return torch.tensor(values, dtype=torch.float64)


@given(GAINS, st.data())
def test_a_step_weighs_one_over_its_gain(gains, data):
    """Over the mean of all that can be drawn, in plain floats."""
    some = data.draw(st.lists(st.sampled_from(gains), min_size=1, max_size=3))
    mean = math.fsum(1 / gain for gain in gains) / len(gains)
    found = rectified_step_weights(held(some), mean_over=held(gains))
    assert found.tolist() == pytest.approx([1 / gain / mean for gain in some], rel=1e-12)


@given(GAINS, st.floats(0.1, 10.0))
def test_over_all_steps_the_mean_is_one_and_no_unit_shows(gains, factor):
    """A velocity in other units changes nothing; weight times gain is one number."""
    weights = rectified_step_weights(held(gains), mean_over=held(gains))
    scaled = rectified_step_weights(factor * held(gains), mean_over=factor * held(gains))
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-12)
    torch.testing.assert_close(weights, scaled, rtol=1e-12, atol=0)
    products = weights * held(gains)
    torch.testing.assert_close(products, products[:1].expand_as(products), rtol=1e-12, atol=0)


def test_the_released_numbers():
    """Wan's grid of 20 steps: the size that it takes for timestep 999 is twice that for 785."""
    released = held(
        [7.4770, 7.0414, 6.6112, 6.1867, 5.7682, 5.3559, 4.9502, 4.5513, 4.1596, 3.7754]
    )
    weights = rectified_step_weights(1.0 / released, mean_over=1.0 / released)
    torch.testing.assert_close(weights, released / released.mean(), rtol=1e-12, atol=0)


def test_released_step():
    """Mean, score, and the weights of a batch, from how far a velocity of 1 moves each mean."""
    golden = tensors("peers", "flash_grpo_step")
    gains = []
    for row, step in enumerate(golden["step"].tolist()):
        levels = {"sigma_t": golden["sigma"][step], "sigma_prev": golden["sigma"][step + 1]}
        latent = golden["latent"][row].transpose(0, 1)  # frames before channels
        rate = float(golden["noise_rate"][row])
        taken, moved = (
            constant_noise_transition(velocity, latent, noise_scale=rate, **levels)
            for velocity in (golden["prediction"][row].transpose(0, 1), 0.0 * latent + 1.0)
        )
        still = constant_noise_transition(0.0 * latent, latent, noise_scale=rate, **levels)
        expected = golden["mean"][row].transpose(0, 1)
        torch.testing.assert_close(taken.mean, expected.double(), rtol=2e-6, atol=2e-6)
        drawn = golden["prev_latent"][row].transpose(0, 1)
        score = log_prob(drawn, mean=taken.mean, std=taken.std, reduction="mean").mean()
        torch.testing.assert_close(score, golden["log_prob"][row].double(), rtol=2e-6, atol=2e-6)
        assert float(taken.std) == pytest.approx(rate * float(golden["root_dt"][row]), rel=2e-6)
        gains.append(((moved.mean - still.mean).abs() / still.std).mean())
    weights = rectified_step_weights(torch.stack(gains), mean_over=torch.stack(gains))
    torch.testing.assert_close(
        1.0 / torch.stack(gains), golden["inverse_gain"].double(), rtol=2e-6, atol=0
    )
    torch.testing.assert_close(weights, golden["weight"].double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0], [math.inf], [math.nan]])
def test_what_is_no_gain_is_refused(bad):
    """Each by its name."""
    with pytest.raises(ValueError, match="`gain` must hold positive finite numbers"):
        rectified_step_weights(held(bad), mean_over=held([1.0]))
    with pytest.raises(ValueError, match="`mean_over` must hold positive finite numbers"):
        rectified_step_weights(held([1.0]), mean_over=held(bad))
