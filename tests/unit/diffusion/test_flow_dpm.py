"""`diffusion.flow_dpm`: oracle, laws, order of convergence, values of diffusers, errors."""

import itertools
import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow import flow_ode_transition
from mvczigal_ref.diffusion.flow_dpm import OdeMemory, dpm2m_transition, dpm2m_weight
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from tests.strategies import randn

LEVELS = st.tuples(st.floats(0.6, 0.99), st.floats(0.3, 0.55), st.floats(0.02, 0.25))
TARGETS = [(0.0, 1.0), (2.0, 0.3), (-1.0, 2.5)]


def level(value):
    """Hold a level in fp64."""
    return torch.tensor(value, dtype=torch.float64)


def weight_oracle(q, s, r):
    """Write the correction's weight as the paper does, through its own data prediction."""
    lam = {x: math.log((1 - x) / x) for x in (q, s, r)}
    h, last = lam[r] - lam[s], lam[s] - lam[q]
    # x_r = r/s x - alpha_r (e^-h - 1) (D_0 + D_1 / 2), with D_1 = (D_0 - D_q) h / last.
    return -(1 - r) * math.expm1(-h) * 0.5 * h / last


def gaussian_velocity(x, s, mean, spread):
    """Return the best velocity at a level for clean latents of N(mean, spread^2)."""
    variance = ((1 - s) * spread) ** 2 + s**2
    deviation = (x - (1 - s) * mean) / variance
    return s * deviation - (mean + (1 - s) * spread**2 * deviation)


def exact(x, s, r, mean, spread):
    """Carry a latent down the exact flow, which keeps its quantile."""
    deviation = [math.hypot((1 - level) * spread, level) for level in (s, r)]
    return (1 - r) * mean + deviation[1] / deviation[0] * (x - (1 - s) * mean)


def error(ode, num_steps, target, first=0.9, last=0.1):
    """Follow the ODE of a Gaussian with so many steps; return how far off it ends."""
    sigmas = torch.linspace(first, last, num_steps + 1, dtype=torch.float64)
    sampler = FlowSampler.create(sigmas=sigmas, kernel="ode", ode=ode)
    start, memory = 1.7, None
    x = torch.full((1, 1, 1), start, dtype=torch.float64)
    for step in range(num_steps):
        v = gaussian_velocity(x, sigmas[step].item(), *target)
        taken, memory = sampler.follow(v, x, step, memory)
        x = taken.mean
    return abs(x.item() - exact(start, first, last, *target))


# -- oracle ------------------------------------------------------------------------------


@given(LEVELS)
def test_the_weight_is_that_of_the_paper(levels):
    """Of the data prediction, at alpha = 1 - sigma."""
    q, s, r = levels
    found = dpm2m_weight(sigma_last=level(q), sigma_t=level(s), sigma_prev=level(r))
    assert found.item() == pytest.approx(weight_oracle(q, s, r), rel=1e-9)


@given(LEVELS)
def test_the_step_is_the_paper_s(levels):
    """Written out in floats from the two predictions."""
    q, s, r = levels
    velocity, latent, clean = randn(3, 2, 1, 1, 1, dtype=torch.float64)
    taken = dpm2m_transition(
        velocity, latent, sigma_t=level(s), sigma_prev=level(r),
        memory=OdeMemory(clean=clean, sigma=level(q)),
    )  # fmt: skip
    for place in range(2):
        v, x, before = (t[place].item() for t in (velocity, latent, clean))
        now = x - s * v
        mean = r / s * x + (1 - r / s) * now + weight_oracle(q, s, r) * (now - before)
        assert taken.mean[place].item() == pytest.approx(mean, rel=1e-9, abs=1e-9)
        assert taken.denoised[place].item() == pytest.approx(now, rel=1e-9, abs=1e-9)
    assert not taken.std.any()


# -- laws --------------------------------------------------------------------------------


@given(st.floats(0.1, 1.0), st.floats(0.0, 0.9))
def test_without_a_memory_it_is_euler_bit_for_bit(s, share):
    """As it is out of pure noise's prediction, and down to level 0, whatever it remembers."""
    velocity, latent, clean = randn(3, 2, 1, 2, 2, dtype=torch.float64)
    levels = {"sigma_t": level(s), "sigma_prev": level(s * share)}
    euler = flow_ode_transition(velocity, latent, **levels)
    memories = [None, *[OdeMemory(clean=clean, sigma=level(1.0))] * (s < 1.0)]
    for memory in memories:
        assert torch.equal(dpm2m_transition(velocity, latent, **levels, memory=memory).mean,
                           euler.mean)  # fmt: skip
    down = {"sigma_t": level(0.5), "sigma_prev": level(0.0)}
    for q in (0.75, 1.0):
        last = dpm2m_transition(
            velocity, latent, **down, memory=OdeMemory(clean=clean, sigma=level(q))
        )
        assert torch.equal(last.mean, flow_ode_transition(velocity, latent, **down).mean)


@given(LEVELS)
def test_a_prediction_that_stays_needs_no_correction(levels):
    """Straight paths are followed exactly by any number of steps."""
    q, s, r = levels
    clean, noise = randn(2, 1, 2, 2, dtype=torch.float64)
    latent = (1 - s) * clean + s * noise
    taken = dpm2m_transition(
        noise - clean, latent, sigma_t=level(s), sigma_prev=level(r),
        memory=OdeMemory(clean=clean, sigma=level(q)),
    )  # fmt: skip
    assert torch.allclose(taken.mean, (1 - r) * clean + r * noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("ode", "order"), [("euler", 1), ("dpm2m", 2)])
def test_its_order_of_convergence_is_two_and_euler_s_one(ode, order, target):
    """Against the exact flow of a Gaussian; doubled steps, error over 2 to the order."""
    coarse, fine = error(ode, 320, target), error(ode, 640, target)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.06)


def test_at_ten_steps_it_is_nearer_than_euler():
    """Where it is used."""
    for target in TARGETS:
        assert error("dpm2m", 10, target) < 0.35 * error("euler", 10, target)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_tensor_of_steps_is_every_step_by_itself(shape):
    """Latents at different levels, each with its own memory."""
    sampler = FlowSampler.create(sigmas=flow_sigmas(8, shift=3.0), kernel="ode", ode="dpm2m")
    steps = torch.randint(1, 8, shape)
    velocity, latent, clean = randn(3, *shape, 1, 2, 2, dtype=torch.float64)
    last = OdeMemory(clean=clean, sigma=sampler.sigma_t[steps - 1])
    taken, memory = sampler.follow(velocity, latent, steps, last)
    for at in itertools.product(*map(range, shape)):
        one = OdeMemory(clean=clean[at], sigma=last.sigma[at])
        alone, _ = sampler.follow(velocity[at], latent[at], int(steps[at]), one)
        assert torch.equal(alone.mean, taken.mean[at])
        assert torch.equal(memory.clean[at], alone.denoised)


def test_euler_remembers_nothing():
    """It is the transition of the ODE, and needs no memory."""
    sampler = FlowSampler.create(sigmas=flow_sigmas(4), kernel="sde", noise_scale=0.7)
    velocity, latent = randn(2, 1, 2, 2, dtype=torch.float64)
    taken, memory = sampler.follow(velocity, latent, 1)
    assert memory is None
    assert torch.equal(taken.mean, sampler.deterministic().transition(velocity, latent, 1).mean)


# -- gradients ---------------------------------------------------------------------------


def test_gradients_flow_through_the_velocity_the_latent_and_the_memory():
    """And are those of finite differences."""
    inputs = [x.requires_grad_() for x in randn(3, 1, 2, 2, dtype=torch.float64)]

    def step(velocity, latent, clean):
        memory = OdeMemory(clean=clean, sigma=level(0.8))
        levels = {"sigma_t": level(0.5), "sigma_prev": level(0.3)}
        return dpm2m_transition(velocity, latent, **levels, memory=memory).mean

    assert torch.autograd.gradcheck(step, inputs)


# -- values of diffusers -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_steps", [3, 10, 20])
def test_equals_diffusers_solver_on_its_grid(num_steps):
    """`use_flow_sigmas`, order 2, midpoint; its levels and predictions are fp32."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2,
        solver_type="midpoint", algorithm_type="dpmsolver++",
    )  # fmt: skip
    scheduler.set_timesteps(num_steps)
    sampler = FlowSampler.create(sigmas=scheduler.sigmas.double(), kernel="ode", ode="dpm2m")
    mine = theirs = randn(2, 3, 4, 4)
    memory = None
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = torch.tanh(mine) + 0.1 * step
        taken, memory = sampler.follow(velocity, mine, step, memory)
        mine = taken.mean
        theirs = scheduler.step(torch.tanh(theirs) + 0.1 * step, timestep, theirs).prev_sample
        # Both round to fp32 in each step, where logarithms of levels near 1 lose two digits.
        torch.testing.assert_close(mine, theirs, rtol=0, atol=3e-5)


# -- errors ------------------------------------------------------------------------------


def test_half_precision_is_refused():
    """The weight would round away."""
    with pytest.raises(ValueError, match="`sigma_last` must be float32 or float64"):
        dpm2m_weight(sigma_last=level(0.8).half(), sigma_t=level(0.5), sigma_prev=level(0.2))
