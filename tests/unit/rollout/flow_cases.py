"""Rollouts of flow models on a linear policy: samplers, plans, and the process in floats."""

import itertools
import random

import torch
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.diffusion.gaussian import log_prob
from mvczigal_ref.policy import network_output, step_transition
from mvczigal_ref.rollout.group_plan import GroupPlan
from tests.policies import numbered
from tests.unit.diffusion.flow_cases import step_oracle

NOISE_SCALE = 0.6
GUIDANCE = 3.0
NOISY_KERNELS = st.sampled_from(["sde", "constant", "cps"])
STORAGE = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def flow(num_steps, kernel="sde", *, end=0.0, **how):
    """Build a sampler on a shifted grid; one that ends above 0 leaves some noise."""
    return FlowSampler.create(
        sigmas=end + (1.0 - end) * flow_sigmas(num_steps, shift=3.0),
        kernel=kernel,
        noise_scale=0.0 if kernel == "ode" else NOISE_SCALE,
        **how,
    )


@st.composite
def plans(draw):
    """Draw a tree over 3 or 4 steps, of which the last follows the ODE."""
    num_steps = draw(st.integers(3, 4))
    num_roots = draw(st.integers(1, 2))
    widths = (*draw(st.tuples(*[st.integers(1, 2)] * (num_steps - 1))), 1)
    also = draw(st.sets(st.integers(0, num_steps - 2)))
    dividing = [step for step, width in enumerate(widths) if width > 1]
    first = 0 if num_roots > 1 else min(dividing, default=0)
    stochastic = sorted({*dividing, *(step for step in also if step >= first)})
    # The type checker looks at one random entry of a tuple, which Hypothesis forbids while drawing.
    state = random.getstate()
    plan = GroupPlan(num_roots=num_roots, widths=widths, stochastic_steps=tuple(stochastic))
    random.setstate(state)
    return plan


def roll(rollout, policy, sampler, drawn, *more, **settings):
    """Sample the prompts that the noise names, in fp64 unless told otherwise."""
    settings = {"guidance_scale": GUIDANCE, "storage_dtype": torch.float64, **settings}
    conditioning = numbered(drawn.objects, drawn.shape[0])
    return rollout(policy, sampler, conditioning, drawn, *more, **settings)


def velocity(gain, x, timestep):
    """Evaluate the linear policy in floats, without cameras hidden."""
    return gain * x + 0.02 * GUIDANCE + 0.05 + 1e-4 * timestep


def float_step(kernel, gain, x, s, r):
    """Take one step in floats: mean, standard deviation, clean guess."""
    return step_oracle(kernel, velocity(gain, x, 1000 * s), x, s, r, NOISE_SCALE)


def tensors_of(record):
    """List every tensor of a record, by decision, the final latents last."""
    parts = [(d.state, d.action, d.log_prob) for d in record.decisions]
    return [*itertools.chain(*parts), record.denoised]


def replayed(policy, sampler, decision, conditioning, reduction="mean"):
    """Score a decision's actions anew, the prompts first as it holds them."""
    state, steps = decision.network_state(), decision.network_steps()
    output = network_output(policy, sampler, state, steps, conditioning, guidance_scale=GUIDANCE)
    transition = step_transition(sampler, output, state, steps)
    mean, std = (decision.members_of(part) for part in (transition.mean, transition.std))
    action = decision.action.transpose(0, 1).to(mean.dtype)
    return log_prob(action, mean=mean, std=std, reduction=reduction).transpose(0, 1)
