"""`method.forward`: laws."""

import torch

from mvczigal_ref.constraint import constraint_step
from mvczigal_ref.method import forward
from mvczigal_ref.system.sampler import build_sampler
from tests.iterations import FORWARD, START, config_of, staged, system_of


def test_every_sample_has_noise_of_its_own_at_every_level():
    """The levels are those of the grid, and each sample meets its own prompt's advantage."""
    config = config_of(FORWARD)
    system = system_of(config)
    stages = staged(system, config)
    constraint = constraint_step(START, forward.joint_mean(stages.rewards))
    advantages = forward.compare(
        stages.rewards, stages.samples, stages.here, multiplier=constraint.multiplier
    )
    batches = forward.forward_batches(system, stages.under(advantages), stages.here)
    rows = [row for batch in batches for row in batch.noise.flatten(0, 3).flatten(1).tolist()]

    assert len({tuple(row) for row in rows}) == len(rows) == 2 * 2 * 3 * 3
    # Levels are the iteration's: all samples of all slices are fitted at the same ones.
    assert len({batch.levels for batch in batches}) == 1
    ((advantage,),) = advantages
    for n, batch in enumerate(batches):
        assert set(batch.levels) < set(build_sampler(config).sigma_t.tolist())
        assert torch.equal(batch.clean, stages.samples[n].denoised.transpose(0, 1))
        assert torch.equal(batch.advantage[:, 0], advantage[n])
