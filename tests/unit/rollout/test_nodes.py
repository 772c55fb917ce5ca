"""`rollout.nodes`: oracle, laws, errors."""

import pytest
import torch

from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.sampler import Transition, require_density
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.rollout.nodes import (
    NodeStep,
    check_settings,
    draw_decision,
    initial_nodes,
    without_noise,
)
from tests.policies import LinearPolicy, Recorded, numbered
from tests.strategies import randn
from tests.trajectories import noise, sampler_of
from tests.unit.rollout.flow_cases import GUIDANCE, flow


def walk(policy):
    """Step the nodes of two prompts of two views, which the noise of a test names too."""
    return NodeStep(
        policy=policy,
        conditioning=numbered((0, 1), 2),
        guidance_scale=GUIDANCE,
        camera_scale=0.25,
    )


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [torch.float64, torch.float32, torch.bfloat16])
def test_a_decision_scores_the_rounded_draw(storage):
    """Mean plus spread times noise, members of one node adjacent; prompts first in the record."""
    wide = torch.promote_types(storage, torch.float32)
    state, mean = randn(2, 2, 3, 1, 1, 2, 2, dtype=torch.float64)
    std = torch.tensor([0.5, 2.0], dtype=wide).reshape(2, 1, 1)
    drawn = randn(4, 3, 1, 1, 2, 2, seed=1)
    transition = Transition(mean=mean.to(wide), std=std, denoised=mean.to(wide))
    decision = draw_decision(
        flow(6), state.to(storage), transition, drawn, step=5, depth=2, reduction="sum"
    )

    assert (decision.step, decision.depth, decision.branches) == (5, 2, 2)
    assert torch.equal(decision.state, state.to(storage).transpose(0, 1))
    for prompt in range(3):
        for member in range(4):
            parent = member // 2
            centre, spread = mean[parent, prompt].to(wide), std[parent]
            action = (centre + spread * drawn[member, prompt]).to(storage)
            density = torch.distributions.Normal(centre, spread).log_prob(action.to(wide)).sum()

            assert torch.equal(decision.action[prompt, member], action)
            close = 1e-12 if storage == torch.float64 else 1e-5
            torch.testing.assert_close(
                decision.log_prob[prompt, member, 0], density, rtol=close, atol=close
            )


# -- laws --------------------------------------------------------------------------------


def test_one_call_serves_all_nodes():
    """At one step, with both scales; an alone node is called as a plain rollout is."""
    policy, sampler = Recorded(LinearPolicy(0.5)), flow(3)
    for nodes in (1, 3):
        walk(policy).output(sampler, randn(nodes, 2, 2, 3, 2, 2), 1)
    level = sampler.timesteps[1].item()

    assert [(call.rows, call.timestep) for call in policy.calls] == [
        (4, [level]),
        (12, [level] * 12),
    ]
    assert {(c.guidance_scale, c.camera_scale) for c in policy.calls} == {(GUIDANCE, 0.25)}


@pytest.mark.parametrize("denoised", [False, True])
def test_a_finish_reads_the_image_where_its_sampler_does(denoised):
    """Off the last latent, or off the last clean guess: two images where the grid ends above 0."""
    sampler = flow(2, end=0.2, image_is_denoised=denoised).deterministic()
    x = latent = randn(1, 2, 2, 3, 2, 2, dtype=torch.float64)
    for step in range(2):
        told = LinearPolicy.told(sampler.timesteps[step], GUIDANCE, 0.25)
        taken = sampler.transition(0.5 * x + told, x, step)
        x = taken.mean
    final = walk(LinearPolicy(0.5)).finish(sampler, latent)

    assert torch.equal(final, taken.denoised if denoised else x)
    assert not torch.equal(taken.denoised, x)


@pytest.mark.parametrize("storage", [torch.float64, torch.float32, torch.float16])
def test_roots_are_drawn_in_fp32_or_wider(storage):
    """They are rounded where they are stored."""
    drawn = noise().members([(0,), (1,)], "initial")
    roots = initial_nodes(noise(), [(0,), (1,)], storage_dtype=storage)

    assert torch.equal(roots, drawn.to(torch.promote_types(storage, torch.float32)))


def test_without_noise_is_the_same_grid():
    """The flow's ODE, and DDIM without spread."""
    ddim = sampler_of("ddim", 3)

    assert without_noise(flow(3)).kernel == "ode"
    assert without_noise(ddim).eta == 0.0
    assert torch.equal(without_noise(ddim).timesteps, ddim.timesteps)


# -- errors ------------------------------------------------------------------------------


def test_rejects_steps_without_a_spread():
    """As the sampler has them: consistency sampling has one everywhere."""
    still = DdimSampler.create(
        num_steps=3, alpha_bar=scaled_linear_alpha_bar(dtype=torch.float64), eta=0.0
    )
    for sampler in (flow(3), sampler_of("lcm", 3), sampler_of("ddim", 3)):
        require_density("steps", (0, 2), sampler)
    for sampler, most in ((flow(3, "cps"), 2), (flow(3, "ode"), 0), (still, 0)):
        with pytest.raises(ValueError, match=rf"`steps` must be below {most}, .* got \[0, 2\]"):
            require_density("steps", (0, 2), sampler)


def test_rejects_a_sampler_that_has_no_deterministic_form():
    """A consistency step renews the noise."""
    with pytest.raises(ValueError, match=r"`sampler` must have a deterministic .* LcmSampler"):
        without_noise(sampler_of("lcm", 2))


def test_rejects_noise_of_other_views():
    """A policy could only guess."""
    with pytest.raises(ValueError, match=r"`conditioning` must be .* \(2, 2\); got \(2, 3\)"):
        check_settings(numbered((0, 1), 3), noise(), reduction="mean")
