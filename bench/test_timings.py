"""Seconds of the primitives and of one iteration, saved and compared by pytest-benchmark.

    nox -s bench -- --compare

Each run is saved below ``.benchmarks/`` and set beside the one before it.
"""

import pytest
import torch

from bench.cost import PROMPTS, SHAPES, build, trainee
from mvczigal_ref.policy import network_output
from mvczigal_ref.records import Trajectory
from mvczigal_ref.update.replay import replay_log_prob


@pytest.fixture(scope="module")
def system():
    """Build shape S on one thread."""
    torch.set_num_threads(1)
    return build(SHAPES["S"])[0]


@pytest.fixture(scope="module")
def call(system):
    """Bind one network call of both prompts."""
    latent = torch.randn(1, 2, *system.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning = system.conditioning(PROMPTS)

    def call():
        return network_output(
            system.policy, system.sampler, latent, torch.tensor([3]), conditioning,
            guidance_scale=7.0,
        )  # fmt: skip

    return call


def test_network_call(benchmark, call):
    """Without gradient, as in a rollout."""
    with torch.no_grad():
        benchmark(call)


def test_replay(benchmark, system):
    """One step of one arm, with its backward pass."""
    zero = torch.zeros(8, 2, *system.latent_shape)
    arm = Trajectory(state=zero, action=zero, log_prob=zero[..., 0, 0, 0], denoised=zero[0])
    conditioning = system.conditioning(PROMPTS)

    def replay():
        replay_log_prob(
            system.policy, system.sampler, arm, [3], conditioning, guidance_scale=7.0
        ).sum().backward()

    benchmark(replay)


def test_decoding(benchmark, system):
    """All views of both prompts."""
    latent = torch.zeros(2, *system.latent_shape)
    benchmark(system.images, latent)


def test_iteration(benchmark):
    """Rollout, reward, update of shape S."""
    torch.set_num_threads(1)
    iterate = trainee("S")
    benchmark.pedantic(iterate, rounds=3, iterations=1, warmup_rounds=1)
