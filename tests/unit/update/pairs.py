"""Small sampled pairs to learn from, and the loss as one graph of both arms."""

from functools import partial

import torch

from mvczigal_ref.objective.reward_difference import (
    reward_difference_gradients,
    reward_difference_loss,
)
from mvczigal_ref.rollout.pair import paired_rollout
from mvczigal_ref.update.pair_batch import PairBatch
from mvczigal_ref.update.replay import UpdateSettings, replay_log_prob
from tests.policies import numbered
from tests.trajectories import noise

GUIDANCE = 3.0
SHAPE = (2, 3, 2, 2)


def gaps(objects, views=SHAPE[0], seed=0):
    """Draw advantage gaps of order one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(objects, views, generator=generator, dtype=torch.float64)


def sampled(policy, sampler, slices, *, gap=None, shape=SHAPE, seed=0, **told):
    """Sample pairs and hold them in slices of consecutive objects."""
    total = sum(slices)
    gap = gaps(total, shape[0], seed) if gap is None else gap
    batches, first = [], 0
    for size in slices:
        objects = range(first, first + size)
        conditioning = numbered(objects, shape[0])
        rollout = paired_rollout(
            policy,
            sampler,
            None,
            conditioning,
            noise(objects, shape, seed),
            **{"guidance_scale": GUIDANCE, "storage_dtype": torch.float64, **told},
        )
        batches.append(
            PairBatch(
                rollout=rollout,
                conditioning=conditioning,
                advantage_gap=gap[first : first + size],
                first_object=first,
            )
        )
        first += size
    return batches


def settings_of(sampler, **changes):
    """Train all steps one by one, unless told otherwise."""
    settings = {
        "steps": range(sampler.num_steps),
        "guidance_scale": GUIDANCE,
        "max_grad_norm": 1e9,
        **changes,
    }
    return UpdateSettings(**settings)


def objective_of(clip_range=1e-2, temperature=1.0):
    """Bind the pair loss."""
    return partial(reward_difference_gradients, clip_range=clip_range, temperature=temperature)


def whole_loss(policy, sampler, batches, steps, *, clip_range=1e-2, temperature=1.0):
    """Return the loss over some pairs with both arms' graphs, and all log-ratios by arm."""
    ratios = {"zigzag": [], "standard": []}
    for batch in batches:
        for arm, found in ratios.items():
            trajectory = getattr(batch.rollout, arm)
            log_prob = replay_log_prob(
                policy,
                sampler,
                trajectory,
                list(steps),
                batch.conditioning,
                guidance_scale=GUIDANCE,
            )
            found.append(log_prob - trajectory.log_prob[list(steps)])
    zigzag, standard = (torch.cat(found, dim=1) for found in ratios.values())
    gap = torch.cat([batch.advantage_gap for batch in batches]).expand_as(zigzag)
    loss, stats = reward_difference_loss(
        zigzag, standard, gap, clip_range=clip_range, temperature=temperature
    )
    return loss, stats
