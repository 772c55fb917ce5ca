"""Grids, steps and inversions from their equations, fp64."""

import math
from itertools import pairwise

import pytest
import torch

from tests.integration.oracles import real

SHAPE = (2, 4, 3, 3)
STEPS = (1, 3, 4, 8)
KINDS = ("epsilon", "v_prediction", "sample")
# Every operation rounds by 1e-16; dividing by the root of the noisiest level costs two digits.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def drawn(seed):
    """Draw what a network gave or saw."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def level(shift=1.0):
    """Share of signal after each of 1000 steps, its ratio to noise divided at the noisy end."""
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    kept, found = 1.0, []
    for index, beta in enumerate((root**2).tolist()):
        kept *= 1 - beta
        ratio = kept / (1 - kept) * math.exp(-index / 999 * math.log(shift))
        found.append(ratio / (1 + ratio))
    return found


def clean_and_noise(kind, output, latent, share):
    """Read what a network predicted as the clean latent and the noise."""
    signal, rest = math.sqrt(share), math.sqrt(1 - share)
    if kind == "epsilon":
        return (latent - rest * output) / signal, output
    if kind == "sample":
        return output, (latent - signal * output) / rest
    return signal * latent - rest * output, signal * output + rest * latent


def consistent(clean, latent, time):
    """Apply the boundary condition of consistency models."""
    scaled = 10.0 * time
    return scaled / math.sqrt(scaled**2 + 0.25) * clean + 0.25 / (scaled**2 + 0.25) * latent


@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_levels_are_the_schedule_s(shift):
    """Scaled-linear betas from 0.00085 to 0.012."""
    found = real.scaled_linear_alpha_bar(dtype=torch.float64)
    found = real.shift_snr(found, shift) if shift != 1.0 else found
    expected = torch.tensor(level(shift), dtype=torch.float64)

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", STEPS)
def test_lcm_steps_and_inversions(steps, kind):
    """Down: N(sqrt(a_s) f, 1 - a_s), at the end to its own level; up: from there, at time s."""
    share, output, latent = level(8.0), drawn(0), drawn(1)
    sampler = real.LcmSampler.create(
        num_steps=steps, alpha_bar=torch.tensor(share).double(), prediction_type=kind
    )
    share = torch.tensor(share).double().tolist()
    grid = range(999, 0, -20)
    times = [grid[math.floor(50 * step / steps)] for step in range(steps)]
    lower = [*times[1:], times[-1]]
    assert sampler.timesteps.tolist() == times
    for step, (t, s) in enumerate(zip(times, lower, strict=True)):
        clean, _ = clean_and_noise(kind, output, latent, share[t])
        image = consistent(clean, latent, t)
        down = sampler.transition(output, latent, step)
        torch.testing.assert_close(down.denoised, image, **TOLERANCE)
        torch.testing.assert_close(down.mean, math.sqrt(share[s]) * image, **TOLERANCE)
        assert float(down.std) == pytest.approx(math.sqrt(1 - share[s]), rel=1e-14)

        clean, epsilon = clean_and_noise(kind, output, latent, share[s])
        image = consistent(clean, latent, s)
        expected = math.sqrt(share[t]) * image + math.sqrt(1 - share[t]) * epsilon
        torch.testing.assert_close(sampler.invert(output, latent, step), expected, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "eta"), [(1, 1.0), (3, 0.3), (4, 1.0), (16, 0.6)])
def test_ddim_steps_and_inversions(steps, eta, kind):
    """Leading grid, offset 1; beneath it the first level; the inversion has no noise."""
    share, output, latent = level(), drawn(2), drawn(3)
    table = torch.tensor(share, dtype=torch.float64)
    sampler = real.DdimSampler.create(
        num_steps=steps, alpha_bar=table, prediction_type=kind, eta=eta
    )
    length = 1000 // steps
    times = [length * (steps - 1 - step) + 1 for step in range(steps)]
    assert sampler.timesteps.tolist() == times
    for step, t in enumerate(times):
        high, low = share[t], share[max(t - length, 0)]
        clean, epsilon = clean_and_noise(kind, output, latent, high)
        spread = eta * math.sqrt((1 - low) / (1 - high) * (1 - high / low))
        mean = math.sqrt(low) * clean + math.sqrt(1 - low - spread**2) * epsilon
        down = sampler.transition(output, latent, step)
        torch.testing.assert_close(down.mean, mean, **TOLERANCE)
        assert float(down.std) == pytest.approx(spread, rel=1e-10)

        clean, epsilon = clean_and_noise(kind, output, latent, low)
        expected = math.sqrt(high) * clean + math.sqrt(1 - high) * epsilon
        torch.testing.assert_close(sampler.invert(output, latent, step), expected, **TOLERANCE)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("shift", "lowest"), [(1.0, None), (3.0, None), (3.0, 0.01)])
def test_flow_grids(steps, shift, lowest):
    """Even levels from 1, each shifted to k s / (1 + (k - 1) s), and 0."""
    last = 1 / steps if lowest is None else lowest
    even = [1 - (1 - last) * step / max(steps - 1, 1) for step in range(steps)]
    expected = [*(shift * s / (1 + (shift - 1) * s) for s in even), 0.0]

    found = real.flow_sigmas(steps, shift=shift, lowest_sigma=lowest).tolist()
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("kernel", ["sde", "constant", "cps", "ode"])
def test_flow_steps_and_inversions(kernel):
    """The reverse equation with its score, or coefficients kept; and the way back up."""
    scale = {"sde": 0.7, "constant": 0.3, "cps": 0.8, "ode": 0.0}[kernel]
    grid, velocity, x = (1.0, 0.85, 0.5, 0.2, 0.0), drawn(4), drawn(5)
    sampler = real.FlowSampler.create(
        sigmas=torch.tensor(grid, dtype=torch.float64), kernel=kernel, noise_scale=scale
    )
    for step, (s, r) in enumerate(pairwise(grid)):
        clean, epsilon = x - s * velocity, x + (1 - s) * velocity
        if kernel == "cps":
            std = r * math.sin(scale * math.pi / 2)
            mean = (1 - r) * clean + math.sqrt(r**2 - std**2) * epsilon
        else:
            spread = scale
            if kernel == "sde":
                spread = scale * math.sqrt(s / (1 - (r if s == 1.0 else s)))
            score, std = -epsilon / s, spread * math.sqrt(s - r)
            mean = x - velocity * (s - r) + spread**2 / 2 * score * (s - r)
        down = sampler.transition(velocity, x, step)
        torch.testing.assert_close(down.mean, mean, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(down.denoised, clean, rtol=1e-14, atol=1e-14)
        assert float(down.std) == pytest.approx(std, rel=1e-14, abs=0.0)
        up = sampler.invert(velocity, x, step)
        torch.testing.assert_close(up, x + (s - r) * velocity, rtol=1e-14, atol=1e-14)
