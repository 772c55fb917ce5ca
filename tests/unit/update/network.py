"""A small multi-view network with a LoRA, its pairs, and their replay."""

from functools import cache

import torch

from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.pair import paired_rollout
from mvczigal_ref.update.replay import replay_log_prob
from tests.unit.models.small import conditioning, fresh_components, randn
from tests.unit.update.pairs import GUIDANCE


@cache
def tuned_policy(dtype, guidance_width=8):
    """Build a small multi-view UNet with a LoRA that has been trained, as it were."""
    policy = fresh_components(guidance_width).policy.to(dtype)
    add_lora(policy.unet, rank=2, alpha=2.0, seed=0)
    for seed, parameter in enumerate(lora_parameters(policy.unet).values()):
        parameter.data.copy_(0.2 * randn(*parameter.shape, seed=seed))
    return policy


def network_pair(policy, sampler, storage, **told):
    """Sample two objects of three views with it."""
    return paired_rollout(
        policy,
        sampler,
        None,
        conditioning(2, 3, time_cond_proj_dim=policy.guidance_width).to(dtype=torch.float32),
        SeededNoise(seed=0, iteration=0, objects=[0, 1], shape=(3, 4, 8, 8)),
        guidance_scale=GUIDANCE,
        storage_dtype=storage,
        **told,
    )


def network_log_prob(policy, sampler, trajectory, steps, objects=slice(0, 2), **told):
    """Replay some of their steps and objects."""
    known = conditioning(2, 3, time_cond_proj_dim=policy.guidance_width).to(dtype=torch.float32)
    return replay_log_prob(
        policy,
        sampler,
        trajectory.objects(objects),
        steps,
        known.objects(objects),
        **{"guidance_scale": GUIDANCE, **told},
    )
