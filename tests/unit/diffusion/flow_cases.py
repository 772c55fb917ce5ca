"""Flow steps to draw, the kernels by name, and their definitions in plain Python floats."""

import math

import torch
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow import flow_ode_transition
from mvczigal_ref.diffusion.flow_noise import (
    constant_noise_transition,
    cps_transition,
    flow_sde_transition,
)
from tests.strategies import latents

NOISY = {
    "sde": flow_sde_transition,
    "constant": constant_noise_transition,
    "cps": cps_transition,
}
"""The kernels that draw noise."""

SCALES = st.floats(0.01, 1.0)
"""Noise scales that every kernel takes."""


def transition(kernel, velocity, latent, sigma_t, sigma_prev, noise_scale):
    """Call a kernel by its name."""
    levels = {"sigma_t": sigma_t, "sigma_prev": sigma_prev}
    if kernel == "ode":
        return flow_ode_transition(velocity, latent, **levels)
    return NOISY[kernel](velocity, latent, **levels, noise_scale=noise_scale)


@st.composite
def flow_steps(draw, lowest=0.0):
    """Draw ``(velocity, latent, level, next level)``; now and then a step out of pure noise."""
    velocity, latent = draw(latents(2))
    batch = latent.shape[:-3]
    count = batch.numel()
    level = st.one_of(st.floats(0.05, 0.95), st.just(1.0))
    share = st.one_of(st.just(lowest), st.floats(max(lowest, 0.01), 0.9))
    high = draw(st.lists(level, min_size=count, max_size=count))
    shares = draw(st.lists(share, min_size=count, max_size=count))
    low = [s * u for s, u in zip(high, shares, strict=True)]
    return (
        velocity,
        latent,
        *(torch.tensor(levels, dtype=torch.float64).reshape(batch) for levels in (high, low)),
    )


def step_oracle(kernel, v, x, s, r, a):
    """Return mean, standard deviation and clean latent, as the papers write them."""
    clean, noise = x - s * v, x + (1 - s) * v
    if kernel == "cps":
        std = r * math.sin(a * math.pi / 2)
        return (1 - r) * clean + math.sqrt(r * r - std * std) * noise, std, clean
    if kernel == "ode":
        g = 0.0
    elif kernel == "constant":
        g = a
    else:
        g = a * math.sqrt(s / (1 - (r if s == 1 else s)))
    score = -noise / s
    mean = x - v * (s - r) + 0.5 * g * g * score * (s - r)
    return mean, g * math.sqrt(s - r), clean
