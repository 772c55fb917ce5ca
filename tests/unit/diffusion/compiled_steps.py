"""Compile every step function as one graph and print, as JSON, what differed from plain Python.

Run as a program: the shape checks that pytest switches on are wrappers that cannot be traced.
"""

import json
import sys

import torch

from mvczigal_ref.diffusion import (
    DdimSampler,
    LcmSampler,
    classifier_free_guidance,
    guidance_embedding,
    joint_log_prob,
    kl_divergence,
    log_prob,
    sample,
    scaled_linear_alpha_bar,
)
from mvczigal_ref.diffusion.flow import flow_clean_and_noise, flow_latent, flow_velocity
from mvczigal_ref.diffusion.flow_noise import cps_unscaled_log_prob
from mvczigal_ref.diffusion.flow_sampler import FLOW_KERNELS, FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas

KINDS = ("epsilon", "v_prediction", "sample")
SAMPLERS = {"lcm": LcmSampler, "ddim": DdimSampler}


def step_and_score(sampler):
    """Sample, score and carry back up, with the step index as an input."""

    def run(output, latent, noise, step):
        taken = sampler.transition(output, latent, step)
        action = sample(taken.mean, taken.std, noise)
        score = log_prob(latent, mean=taken.mean, std=taken.std, reduction="mean")
        raised = sampler.invert(output, action, step)
        return taken.mean, taken.std, taken.denoised, action, score, raised

    return run


def flow_step_and_score(sampler):
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


def distances(output, latent, noise, step):
    """Everything else that runs inside a step."""
    std = step.to(output.dtype) + 1.0
    divergence = kl_divergence(mean_p=output, std_p=std, mean_q=latent, std_q=0.5, reduction="sum")
    joint = joint_log_prob(divergence, reduction="sum")
    guided = classifier_free_guidance(output, noise, guidance_scale=7.0)
    return divergence, joint, guided, guidance_embedding(std.reshape(-1), width=8)


def cases():
    """Return every function that a rollout or an update would compile, by name."""
    alpha_bar = scaled_linear_alpha_bar()
    # Four steps from pure noise to a level above 0, so that each has its density.
    sigmas = flow_sigmas(5, dtype=torch.float32)[:-1]
    steps = {
        f"{name}-{kind}": step_and_score(
            make.create(num_steps=4, alpha_bar=alpha_bar, prediction_type=kind)
        )
        for name, make in SAMPLERS.items()
        for kind in KINDS
    }
    flow_steps = {
        f"flow-{kernel}": flow_step_and_score(
            FlowSampler.create(
                sigmas=sigmas, kernel=kernel, noise_scale=0.0 if kernel == "ode" else 0.7
            )
        )
        for kernel in FLOW_KERNELS
    }
    return {**steps, **flow_steps, "distances": distances, "across": across}


def differs(function, backend):
    """Return what a compiled function does differently, or nothing."""
    generator = torch.Generator().manual_seed(0)
    output, latent, noise = torch.randn(3, 2, 3, 4, 5, 6, generator=generator)
    step = torch.tensor([[0, 1, 2], [3, 3, 0]])
    # All cases of a kind share their code, and Dynamo bounds how often one code is traced.
    torch._dynamo.reset()
    results, gradients = [], []
    for run in (function, torch.compile(function, fullgraph=True, backend=backend)):
        leaf = output.clone().requires_grad_()
        result = run(leaf, latent, noise, step)
        sum(r.square().sum() for r in result if r.requires_grad).backward()
        results.append(result)
        gradients.append(leaf.grad)
    for i, (plain, traced) in enumerate(zip(*results, strict=True)):
        if not torch.allclose(plain, traced, rtol=2e-6, atol=2e-6):
            return f"result {i} differs by {(plain - traced).abs().max().item()}"
    same = torch.allclose(*gradients, rtol=1e-5, atol=1e-5)
    return "" if same else "gradients differ"


def main(backend):
    """Try all cases."""
    print(json.dumps({name: differs(run, backend) for name, run in cases().items()}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "aot_eager")
