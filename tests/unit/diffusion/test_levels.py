"""Step indices of every sampler: laws, errors."""

import inspect
import itertools
import math
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.sampler import require_density
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar, shift_snr
from tests.strategies import randn

ALPHA_BAR = shift_snr(scaled_linear_alpha_bar(), 8.0)


def of_kind(name, num_steps):
    """Build a sampler of any kind."""
    if name == "flow":
        sigmas = flow_sigmas(num_steps)
        return FlowSampler.create(sigmas=sigmas, kernel="sde", noise_scale=0.7)
    create = {"lcm": LcmSampler.create, "ddim": DdimSampler.create}[name]
    return create(num_steps=num_steps, alpha_bar=ALPHA_BAR)


# -- laws --------------------------------------------------------------------------------


@given(st.sampled_from(["lcm", "ddim", "flow"]), st.lists(st.integers(1, 3), max_size=3), st.data())
def test_an_index_pairs_each_latent_with_its_own_step(name, batch, data):
    """One for all, or one axis for every axis of the batch, of its length or 1."""
    sampler = of_kind(name, 4)
    output, latent = randn(2, *batch, 1, 2, 2, dtype=torch.float64)
    axes = data.draw(st.sampled_from([[], [1]] if batch else [[]])) or [
        data.draw(st.sampled_from([1, n])) for n in batch
    ]
    steps = torch.tensor(
        data.draw(st.lists(st.integers(0, 3), min_size=math.prod(axes), max_size=math.prod(axes)))
    ).reshape(axes)
    taken, raised = sampler.transition(output, latent, steps), sampler.invert(output, latent, steps)
    for place in itertools.product(*map(range, batch)):
        step = steps.expand(batch)[place].item()
        alone = sampler.transition(output[place], latent[place], step)

        assert torch.equal(taken.mean[place], alone.mean)
        assert torch.equal(taken.denoised[place], alone.denoised)
        assert torch.equal(taken.std.expand(batch)[place], alone.std)
        assert torch.equal(raised[place], sampler.invert(output[place], latent[place], step))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lcm", "ddim", "flow"])
@pytest.mark.parametrize(
    ("index", "batch"),
    [
        ((3,), (3, 3)), ((3,), (3, 2)), ((2,), (3, 2)), ((3, 1), (3,)), ((3, 1), (2, 3)),
        ((1, 1), (3,)), ((3,), ()),
    ],
    ids=[
        "square batch", "steps first", "objects", "outer product", "axes swapped", "an axis more",
        "no batch",
    ],
)  # fmt: skip
def test_an_index_without_an_axis_for_each_of_the_batch_is_refused(name, index, batch):
    """Broadcasting would give objects, the last axis, the steps of the first one."""
    sampler = of_kind(name, 3)
    (latent,) = randn(1, *batch, 1, 2, 2, dtype=torch.float64)
    step = torch.zeros(index, dtype=torch.int64)
    given_ = rf"\(.*\), .*got {re.escape(str(index))}.*step\[:, None\]"
    transition, invert = (inspect.unwrap(f.__func__) for f in (sampler.transition, sampler.invert))
    for call in (transition, invert):
        with pytest.raises(ValueError, match=rf"`step` must be one index.*{given_}"):
            call(sampler, latent, latent, step)


DENSITIES = {
    "lcm": LcmSampler.create(num_steps=3, alpha_bar=ALPHA_BAR),
    "ddim": DdimSampler.create(num_steps=3, alpha_bar=ALPHA_BAR),
    "ddim without noise": DdimSampler.create(num_steps=3, alpha_bar=ALPHA_BAR, eta=0.0),
    "sde": FlowSampler.create(sigmas=flow_sigmas(3), kernel="sde", noise_scale=0.7),
    "cps": FlowSampler.create(sigmas=flow_sigmas(3), kernel="cps", noise_scale=0.7),
    "ode": FlowSampler.create(sigmas=flow_sigmas(3), kernel="ode"),
}
COUNTS = {"ddim without noise": 0, "cps": 2, "ode": 0}


@pytest.mark.parametrize("name", DENSITIES)
def test_steps_without_a_spread_have_no_density_to_ask_for(name):
    """All of the ODE's and of DDIM at eta 0, and the last of CPS, which ends clean."""
    sampler, count = DENSITIES[name], COUNTS.get(name, 3)
    require_density("steps", range(count), sampler)

    assert sampler.num_density_steps == count
    for step in range(count, 3):
        with pytest.raises(
            ValueError, match=rf"`steps` must be below {count}, the steps .*\[0, {step}\]"
        ):
            require_density("steps", [0, step], sampler)


@pytest.mark.parametrize("name", DENSITIES)
def test_a_sampler_is_frozen(name):
    """What was sampled under one setting is scored under it."""
    with pytest.raises(FrozenInstanceError):
        DENSITIES[name].timesteps = torch.zeros(3)
