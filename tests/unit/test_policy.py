"""`policy`: oracle, laws, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.policy import Policy, network_output, step_transition
from tests.policies import LinearPolicy, Recorded, numbered
from tests.trajectories import sampler_of

GAINS = (0.5, -0.2, 0.3)
STEPS = st.lists(st.integers(0, 3), min_size=1, max_size=4)


def latent(steps, objects=3, views=2, seed=0):
    """Draw states of some steps."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, objects, views, 2, 3, 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# -- oracle ------------------------------------------------------------------------------


@settings(max_examples=15)
@given(STEPS, st.integers(1, 3), st.floats(0, 9), st.floats(0, 2))
def test_every_row_gets_its_own_step_object_and_view(steps, objects, guidance, camera):
    """One call for all of them, each at its own timestep with its own text."""
    policy, sampler = Recorded(LinearPolicy(*GAINS)), sampler_of("lcm", 4)
    state = latent(len(steps), objects)
    output = network_output(
        policy,
        sampler,
        state,
        torch.tensor(steps),
        numbered(range(objects), 2),
        guidance_scale=guidance,
        camera_scale=camera,
    )

    assert len(policy.calls) == 1
    for place, step in enumerate(steps):
        for item in range(objects):
            told = 0.02 * guidance + 0.05 * camera + 1e-4 * sampler.timesteps[step].item()
            expected = GAINS[item] * state[place, item] + told
            torch.testing.assert_close(output[place, item], expected, rtol=1e-12, atol=1e-12)


# -- laws --------------------------------------------------------------------------------


@given(st.sampled_from(["lcm", "ddim"]), STEPS)
def test_a_transition_is_the_samplers_at_each_step(kind, steps):
    """One standard deviation a step; means and denoised latents as if computed alone."""
    sampler, state = sampler_of(kind, 4), latent(len(steps))
    output = latent(len(steps), seed=1)
    transition = step_transition(sampler, output, state, torch.tensor(steps))

    assert transition.std.shape == (len(steps), 1, 1)
    for place, step in enumerate(steps):
        alone = sampler.transition(output[place], state[place], step)
        torch.testing.assert_close(transition.mean[place], alone.mean)
        torch.testing.assert_close(transition.denoised[place], alone.denoised)
        torch.testing.assert_close(transition.std[place, 0, 0], alone.std)


def test_one_step_is_told_one_timestep():
    """As in sampling: a network that is told one number computes the same bits for one step."""
    policy, sampler = Recorded(LinearPolicy(*GAINS)), sampler_of("lcm", 4)
    for steps, expected in (([2], [499]), ([2, 3], [499] * 6 + [259] * 6)):
        network_output(
            policy,
            sampler,
            latent(len(steps)),
            torch.tensor(steps),
            numbered(range(3), 2),
            guidance_scale=1.0,
        )
        assert policy.calls[-1].timestep == expected


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_network_gets_full_precision(stored, expected):
    """Whatever latents are stored in; the transition is computed in it too."""
    sampler, state = sampler_of("lcm", 4), latent(1).to(stored)
    steps = torch.tensor([1])
    output = network_output(
        LinearPolicy(*GAINS), sampler, state, steps, numbered(range(3), 2), guidance_scale=1.0
    )
    transition = step_transition(sampler, output, state, steps)

    assert output.dtype == transition.mean.dtype == transition.std.dtype == expected


def test_any_module_of_that_form_is_a_policy():
    """Nothing needs to be subclassed."""
    assert isinstance(LinearPolicy(*GAINS), Policy)


# -- gradients ---------------------------------------------------------------------------


def test_gradient_flows_to_states_and_parameters():
    """Through network and transition."""
    policy, sampler = LinearPolicy(*GAINS), sampler_of("lcm", 4)
    state = latent(2).requires_grad_()
    steps = torch.tensor([0, 2])
    output = network_output(
        policy, sampler, state, steps, numbered(range(3), 2), guidance_scale=1.0
    )
    step_transition(sampler, output, state, steps).mean.sum().backward()

    assert state.grad.abs().min() > 0
    assert policy.gain.grad.abs().min() > 0
