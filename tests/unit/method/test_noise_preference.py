"""`method.noise_preference`: oracle, laws, errors; on the tiny multi-view UNet."""

import math
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.method.noise_preference import noised_pairs, pair_loss
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import build_system
from mvczigal_ref.system.sampler import build_sampler
from mvczigal_ref.update.forward import NoisedSamples, _Microbatch
from tests.iterations import FORWARD, config_of, system_of

CPU = torch.device("cpu")
GAP = [[1.0, -0.5, 0.0, 2.0, -1.0, 0.5], [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]


def run(**objective) -> TrainConfig:
    """Take the tiny recipe, with changes."""
    config = recipe("tiny_mv_diffusion_dpo")
    return replace(config, objective=replace(config.objective, **objective))


@pytest.fixture(scope="module")
def system():
    """Build the tiny multi-view UNet with its LoRA."""
    return build_system(run(), device=CPU)


def batch_of(system, config, *, steps=(1, 3)):
    """Noise two pairs of random samples."""
    noise = system.noise(range(2), 0, seed=config.run.seed)
    both = torch.stack([noise.initial(), 0.5 * noise.initial()], dim=1)
    conditioning = system.conditioning(["a red cube", "a can"])
    return noised_pairs(system, both, conditioning, noise, gap=torch.tensor(GAP), steps=steps)


def told(system, config):
    """Collect what the objective is told of both levels, over the frozen reference."""
    batch, found = batch_of(system, config), []

    def objective(noised):
        found.append(noised)
        return pair_loss(config, noised)[0], {}

    for index in range(2):
        _Microbatch(
            policy=system.policy, batch=batch, index=index, objective=objective, old=None,
            reference=system.backbone.without_lora, settings=group_update_settings(config),
        ).accumulate(weight=1.0, on_policy=True)  # fmt: skip
    for parameter in system.trained().values():
        parameter.grad = None
    return found


# -- laws --------------------------------------------------------------------------------


def test_the_first_value_is_exactly_log_2(system):
    """A LoRA that begins at zero is its reference to the last bit; a tie costs nothing."""
    log_2 = torch.tensor(2.0).log().item()
    joint, apart = (
        [pair_loss(config, noised)[0].item() for noised in told(system, config)]
        for config in (run(density="joint"), run())
    )

    assert joint == [log_2, log_2]
    assert apart == [pytest.approx(11 / 12 * log_2, rel=1e-6)] * 2


def test_each_level_s_error_is_in_its_own_noise(system):
    """What is told of a level fits together: its latent is made of its share and its noise."""
    one, other = told(system, run())

    assert not torch.equal(one.noise, other.noise)
    for noised in (one, other):
        signal, noise = (share.sqrt()[..., None, None, None] for share in
                         (noised.level, 1.0 - noised.level))  # fmt: skip
        expected = signal * noised.clean + noise * noised.noise
        torch.testing.assert_close(noised.latent_t, expected, rtol=1e-6, atol=1e-6)


def test_both_samples_of_a_pair_have_the_level_s_noise(system):
    """It differs between levels and pairs; latents and timesteps are those of the grid."""
    batch, sampler = batch_of(system, run()), build_sampler(run())

    assert torch.equal(batch.noise[:, 0], batch.noise[:, 1])
    assert len({tuple(row) for row in batch.noise[:, 0].flatten(0, 1).flatten(1).tolist()}) == 4
    assert batch.timesteps == tuple(sampler.timesteps[[1, 3]].tolist())
    for index, a in enumerate(sampler.alpha_bar_t[[1, 3]].tolist()):
        expected = math.sqrt(a) * batch.clean + math.sqrt(1 - a) * batch.noise[index]
        torch.testing.assert_close(batch.noised(index), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(batch.advantage, torch.stack([torch.tensor(GAP), -torch.tensor(GAP)]))


def test_joint_errors_are_sums_over_views(system):
    """The object with the larger mean gap wins as a whole."""
    batch, generator = batch_of(system, run()), torch.Generator().manual_seed(1)
    shape = batch.clean.shape
    output, reference = (torch.randn(shape, generator=generator) for _ in range(2))
    noised = NoisedSamples(
        velocity=output, velocity_old=None, velocity_reference=reference,
        latent_t=batch.noised(0), clean=batch.clean, noise=batch.noise[0],
        level=torch.full_like(batch.advantage, batch.levels[0]), advantage=batch.advantage,
    )  # fmt: skip
    config, terms = run(density="joint", preference_scale=0.5), []
    config = replace(config, sampler=replace(config.sampler, prediction_type="epsilon"))
    for item, row in enumerate(GAP):
        errors = [
            [(o[arm, item] - batch.noise[0][arm, item]).square().mean((1, 2, 3)).sum().item()
             for arm in range(2)]
            for o in (output, reference)
        ]  # fmt: skip
        margin = 0.25 * ((errors[1][0] - errors[0][0]) - (errors[1][1] - errors[0][1]))
        terms.append(math.log1p(math.exp(-math.copysign(margin, margin * sum(row)))))
    loss, _ = pair_loss(config, noised)

    assert loss.item() == pytest.approx(sum(terms) / 2, rel=1e-5)


# -- errors ------------------------------------------------------------------------------


def test_a_flow_s_grid_is_refused():
    """Its samples have no signal share; groups have a form of their own."""
    config = config_of(FORWARD)
    flow = system_of(config)
    noise = flow.noise(range(1), 0, seed=0)
    both = torch.stack([noise.initial()] * 2, dim=1)
    with pytest.raises(TypeError, match="must have signal shares to noise samples"):
        noised_pairs(
            flow,
            both,
            flow.conditioning(["prompt 0"]),
            noise,
            gap=torch.ones(1, both.shape[2]),
            steps=(0,),
        )
