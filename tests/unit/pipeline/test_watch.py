"""`watch`: oracle, laws."""

import pytest
import torch

from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.pipeline.watch import RolloutStopped, WatchedPolicy, calls_per_step
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.rollout.zigzag import zigzag_rollout
from tests.unit.models.small import conditioning, small_components

STEPS = 3
SAMPLER = LcmSampler.create(
    num_steps=STEPS, alpha_bar=torch.linspace(0.9, 0.1, 1000, dtype=torch.float64)
)
NOISE = SeededNoise(seed=0, iteration=0, objects=[0], shape=(2, 4, 8, 8))


def rolled(policy, zigzag_steps, rounds=1):
    """Roll one object of two views out, in fp64."""

    def noise(step, draw):
        return NOISE.arm("a")(step, draw).double()

    common = (policy, SAMPLER, NOISE.initial().double(), conditioning(1, 2), noise)
    options = {"guidance_scale": 3.0, "storage_dtype": torch.float64}
    if not zigzag_steps:
        return standard_rollout(*common, **options)
    return zigzag_rollout(*common, zigzag_steps=zigzag_steps, zigzag_rounds=rounds, **options)


def watched(calls, go_on=True):
    """Watch the small network and keep what is reported."""
    steps, count = [], []

    def on_step_end(step, latent, denoised):
        steps.append((step, latent, denoised))
        return go_on

    policy = WatchedPolicy(
        small_components().policy,
        SAMPLER,
        calls,
        on_call=lambda: count.append(1),
        on_step_end=on_step_end,
    )
    return policy, steps, count


# -- oracle: the record of the same rollout ------------------------------------------------


@pytest.mark.parametrize(("zigzag_steps", "rounds"), [(0, 1), (1, 1), (2, 2)])
def test_what_is_reported_is_what_is_recorded(zigzag_steps, rounds):
    """The same bits as unwatched; after each step but the last, its action."""
    calls = calls_per_step(STEPS, zigzag_steps=zigzag_steps, zigzag_rounds=rounds)
    policy, steps, count = watched(calls)
    trajectory = rolled(policy, zigzag_steps, rounds)
    plain = rolled(small_components().policy, zigzag_steps, rounds)

    assert torch.equal(trajectory.action, plain.action)
    assert torch.equal(trajectory.denoised, plain.denoised)
    assert len(count) == sum(calls) == STEPS + 2 * zigzag_steps * rounds
    assert [step for step, _, _ in steps] == [0, 1]
    for step, latent, denoised in steps:
        assert torch.equal(latent, trajectory.action[step, 0])
        # Nearly the mean of what was drawn: the level's share of the denoised latent.
        alpha_bar = SAMPLER.alpha_bar_prev[step]
        noise = (latent - alpha_bar.sqrt() * denoised) / (1 - alpha_bar).sqrt()
        drawn = NOISE.arm("a")(step, rounds if step < zigzag_steps else 0)[0].double()
        torch.testing.assert_close(noise, drawn, rtol=1e-9, atol=1e-9)


# -- laws --------------------------------------------------------------------------------


def test_a_rollout_can_be_stopped():
    """After the step that was reported; what is denoised so far is handed on."""
    policy, steps, count = watched([1] * STEPS, go_on=False)
    with pytest.raises(RolloutStopped) as caught:
        rolled(policy, 0)

    assert len(steps) == len(count) == 1
    assert caught.value.denoised is steps[0][2]
