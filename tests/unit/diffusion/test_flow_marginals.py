"""Every flow kernel against the distributions that the ODE passes through.

For clean latents of N(m, t^2) the level s has N((1-s) m, (1-s)^2 t^2 + s^2), and the best velocity
is linear in the latent. A step is then a linear map plus noise, so the sampler's mean and variance
at every level are known without drawing anything.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.diffusion.gaussian import sample
from tests.strategies import randn
from tests.unit.diffusion.flow_cases import transition

KERNELS = ["ode", "sde", "constant", "cps"]
KEEPING = ["ode", "sde", "constant"]
TARGETS = [(0.0, 1.0), (2.0, 0.3), (-1.0, 2.5)]


def marginal(s, mean, spread):
    """Return mean and variance of the latents at a level."""
    return (1 - s) * mean, ((1 - s) * spread) ** 2 + s**2


def velocity(x, s, mean, spread):
    """Return the expected noise less the expected clean latent, given the latent."""
    centre, variance = marginal(s, mean, spread)
    deviation = (x - centre) / variance
    clean = mean + (1 - s) * spread**2 * deviation
    return s * deviation - clean


def propagate(kernel, sigmas, target, scale, start=None):
    """Return the sampler's mean and variance at every level, all steps read in one call."""
    s, r = sigmas[:-1, None], sigmas[1:, None]
    probe = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(len(s), 2)
    slope = velocity(probe, s, *target)
    step = transition(
        kernel, slope[..., None, None, None], probe[..., None, None, None], s, r, scale
    )
    offsets, ends = step.mean[..., 0, 0, 0].unbind(1)
    moments = [marginal(sigmas[0].item(), *target) if start is None else start]
    for offset, end, std in zip(
        offsets.tolist(), ends.tolist(), step.std[:, 0].tolist(), strict=True
    ):
        mean, variance = moments[-1]
        factor = end - offset
        moments.append((factor * mean + offset, factor**2 * variance + std**2))
    return moments


def even(num_steps, first=0.9, last=0.1):
    """Return a grid between two levels."""
    return torch.linspace(first, last, num_steps + 1, dtype=torch.float64)


# -- laws: the mean ----------------------------------------------------------------------


@given(
    st.sampled_from(KERNELS),
    st.floats(-3.0, 3.0),
    st.floats(0.0, 3.0),
    st.floats(0.0, 1.0),
    st.integers(1, 12),
    st.floats(0.3, 4.0),
)
def test_the_mean_is_the_marginal_s_on_any_grid(kernel, mean, spread, scale, num_steps, shift):
    """Exactly, from pure noise down to clean latents, however few the steps."""
    sigmas = flow_sigmas(num_steps, shift=shift)
    moments = propagate(kernel, sigmas, (mean, spread), scale)
    for s, (found, _) in zip(sigmas.tolist(), moments, strict=True):
        assert found == pytest.approx((1 - s) * mean, rel=1e-10, abs=1e-10)


# -- laws: the variance ------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KEEPING)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", [0.3, 0.7, 1.2])
def test_the_variance_goes_to_the_marginal_s_as_the_grid_gets_finer(kernel, target, scale):
    """At first order, at every level looked at; extrapolated, what is left is of second order."""
    levels = 8
    errors = {}
    for fine in (64, 128):
        moments = propagate(kernel, even(levels * fine), target, scale)
        errors[fine] = [
            found / marginal(s, *target)[1] - 1
            for s, (_, found) in zip(even(levels).tolist(), moments[::fine], strict=True)
        ]
    for coarse, fine in list(zip(errors[64], errors[128], strict=True))[1:]:
        assert abs(fine) < 4e-3
        assert abs(2 * fine - coarse) < 6e-5


@pytest.mark.parametrize("target", TARGETS)
def test_down_to_clean_latents_the_variance_is_the_target_s(target):
    """The last level, where constant noise is large against what is left of the predicted."""
    for kernel in KEEPING:
        errors = [
            propagate(kernel, even(n, last=0.0), target, 0.7)[-1][1] / target[1] ** 2 - 1
            for n in (1000, 4000)
        ]
        assert abs(errors[1]) < 5e-3
        assert abs(errors[1]) < 0.3 * abs(errors[0])


@pytest.mark.parametrize("target", TARGETS)
def test_out_of_pure_noise_the_variance_goes_to_the_marginal_s_too(target):
    """Constant noise at first order; noise with a pole at 1 at order a^2 if that is less."""
    orders = [("constant", 0.7, 1.0), ("sde", 0.7, 0.49), ("sde", 0.9, 0.81), ("sde", 1.2, 1.0)]
    for kernel, scale, order in orders:
        right = marginal(0.5, *target)[1]
        errors = [
            abs(propagate(kernel, even(n, 1.0, 0.5), target, scale)[-1][1] / right - 1)
            for n in (2000, 8000)
        ]
        assert errors[1] < 6e-3
        assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("kernel", ["sde", "constant"])
def test_noise_forgets_a_wrong_start_and_the_ode_does_not(kernel):
    """The stochastic step pulls towards the marginal; that is what its correction is for."""
    target, sigmas = (1.0, 0.5), even(2000)
    right = marginal(0.9, *target)
    wrong = (right[0] + 1.0, 4 * right[1])
    end = propagate(kernel, sigmas, target, 1.2, start=wrong)[-1]
    free = propagate("ode", sigmas, target, 0.0, start=wrong)[-1]
    centre, variance = marginal(0.1, *target)

    assert 0 < end[0] - centre < 0.6 * (free[0] - centre)
    assert 0 < end[1] - variance < 0.6 * (free[1] - variance)


# -- laws: the coefficient-preserving kernel ---------------------------------------------


@given(st.floats(-3.0, 3.0), st.floats(0.0, 1.0), st.integers(1, 12), st.floats(0.3, 4.0))
def test_cps_keeps_every_level_of_one_clean_latent_exactly(mean, scale, num_steps, shift):
    """Where the predictions are the truth: variance s^2 on any grid, with any scale."""
    sigmas = flow_sigmas(num_steps, shift=shift)
    moments = propagate("cps", sigmas, (mean, 0.0), scale)
    for s, (_, variance) in zip(sigmas.tolist(), moments, strict=True):
        assert variance == pytest.approx(s**2, rel=1e-10, abs=1e-20)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", [0.4, 0.8])
def test_cps_narrows_a_target_with_a_spread_however_fine_the_grid(target, scale):
    """To a known share of the marginal's variance, which the other kernels come back to."""
    s = 0.4
    variance = marginal(s, *target)[1]
    cosine = math.cos(scale * math.pi / 2)
    share = (1 + cosine) / (2 - (1 - cosine) * s**2 / variance)
    found = propagate("cps", even(20_000, last=s), target, scale)[-1][1]

    assert share < 0.995
    assert found / variance == pytest.approx(share, rel=1e-3)


# -- laws: what is drawn -----------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("target", TARGETS)
def test_drawn_latents_have_these_moments_at_every_level(kernel, target):
    """40,000 of them, down 6 steps from pure noise: within five standard errors."""
    sigmas, count = flow_sigmas(6, shift=2.0), 40_000
    moments = propagate(kernel, sigmas, target, 0.7)
    x = randn(count, 1, 1, 1, dtype=torch.float64)
    for i, (s, r) in enumerate(itertools.pairwise(sigmas)):
        step = transition(kernel, velocity(x, s, *target), x, s, r, 0.7)
        x = sample(step.mean, step.std, randn(count, 1, 1, 1, seed=i + 1, dtype=torch.float64))
        mean, variance = moments[i + 1]

        assert x.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
        assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
