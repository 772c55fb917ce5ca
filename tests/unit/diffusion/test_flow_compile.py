"""Every flow step compiles to one graph, forward and backward.

Run as a program it compiles all cases and prints, as JSON, what differed from plain Python: the
shape checks that pytest switches on are wrappers that cannot be traced.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mvczigal_ref.diffusion.flow import flow_clean_and_noise, flow_latent, flow_velocity
from mvczigal_ref.diffusion.flow_noise import cps_unscaled_log_prob
from mvczigal_ref.diffusion.flow_sampler import FLOW_KERNELS, FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.diffusion.gaussian import sample
from tests.unit.diffusion.compiled_steps import differs

ROOT = Path(__file__).parents[3]


def step_and_score(sampler):
    """Sample, score in every way there is, and carry back up; the step index is an input."""

    def run(velocity, latent, noise, step):
        taken = sampler.transition(velocity, latent, step)
        action = sample(taken.mean, taken.std, noise)
        score = cps_unscaled_log_prob(latent, mean=taken.mean, reduction="mean")
        if sampler.num_density_steps:
            score = score + sampler.log_prob(latent, taken, step, reduction="mean")
        raised = sampler.invert(velocity, action, step)
        return taken.mean, taken.std, taken.denoised, action, score, raised

    return run


def across(velocity, latent, noise, step):
    """Read a velocity, mix again, and take the velocity of the two."""
    sigma = step.to(velocity.dtype) / 4.0
    clean, predicted = flow_clean_and_noise(velocity, latent, sigma_t=sigma)
    return clean, predicted, flow_latent(clean, noise, sigma=sigma), flow_velocity(clean, predicted)


def cases():
    """Return every function that a rollout or an update would compile, by name."""
    # Four steps from pure noise to a level above 0, so that each has its density.
    sigmas = flow_sigmas(5, dtype=torch.float32)[:-1]
    found = {
        kernel: step_and_score(
            FlowSampler.create(
                sigmas=sigmas, kernel=kernel, noise_scale=0.0 if kernel == "ode" else 0.7
            )
        )
        for kernel in FLOW_KERNELS
    }
    return {**found, "across": across}


@pytest.fixture(scope="module")
def found():
    """Compile all cases once, in a process without shape checks and with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.unit.diffusion.test_flow_compile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", cases())
def test_compiled_as_one_graph_it_is_the_same_function(found, name):
    """With a tensor of step indices; the same numbers and the same gradient."""
    assert found[name] == ""


if __name__ == "__main__":
    print(json.dumps({name: differs(run, "aot_eager") for name, run in cases().items()}))
