"""Published runs at full size: SDXL with row attention, few-step and not.

Published numbers are per process, of four with 24 GB each; ours are of the whole run. So
``run.objects_per_iteration`` is 4 processes x R rounds x P prompts per round. The published
accumulation A counts timesteps over prompts: between two parameter changes a process uses A / T
prompts, where T is the number of sampling steps. A process has R P prompts per iteration, hence
``optim.optimizer_steps_per_epoch`` = R P T / A. The same objects go into each of those steps
whatever the number of processes. ``run.iterations`` is published epochs x iterations.

The published trainer samples a round's prompts together and replays them one by one. Here prompts
sampled together are replayed together, so that the first ratio is exactly 1.
``run.objects_per_slice`` is the number of objects whose update fits into 20 GiB;
``model.views_per_decode`` keeps the autoencoder, whose activations would be the largest, within the
same. Results depend on both only by rounding. On smaller cards ``model.offload_frozen`` saves
6 GiB more.

The networks come from where they are published, and ``model.sources`` names other places.
``reward.weights`` names a folder that the user fills. The animal names and the held-out objects are
lists of our own, shipped beside these recipes; MATE-3D's prompts are the user's to fetch, and
docs/recipes.md says where.
"""

from dataclasses import replace

from mvczigal_ref.config import (
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RewardConfig,
    RunConfig,
    SamplerConfig,
    TrainConfig,
)
from mvczigal_ref.config.types import Table

__all__ = ["lcm_sdxl_mate3d", "lcm_sdxl_simple", "sdxl_simple"]

_PROCESSES = 4


def lcm_sdxl_simple() -> TrainConfig:
    """MVC-ZigAL on LCM-SDXL at 8 steps, for 45 animal names: 24 GB cards, 700 iterations.

    4 prompts x 1 round per process; 32 timesteps are 4 prompts: one parameter change per iteration.
    """
    return TrainConfig(
        recipe="lcm_sdxl_simple",
        model=ModelConfig(
            weights="lcm_sdxl",
            rig="paper",
            image_size=768,
            lora_rank=16,
            lora_alpha=16.0,
            dtype="fp16",
            storage_dtype="fp16",
            gradient_checkpointing=True,
            views_per_decode=2,
        ),
        sampler=SamplerConfig(
            kind="lcm", prediction_type="epsilon", num_steps=8, guidance_scale=7.0, snr_shift=8.0
        ),
        reward=RewardConfig(
            per_view="pickscore",
            joint="hyperscore.overall",
            weights=Table({"hyperscore": "weights/hyperscore"}),
        ),
        objective=ObjectiveConfig(clip_range=1e-4, train_last_action=True),
        optim=OptimConfig(lr=1e-4, max_grad_norm=5.0, optimizer_steps_per_epoch=1),
        run=RunConfig(
            iterations=70 * 10,
            objects_per_iteration=_PROCESSES * 1 * 4,
            objects_per_slice=2,
            prompts="prompts/simple_animals.txt",
            held_out="prompts/objects_held_out.txt",
            seed=42,
        ),
    )


def lcm_sdxl_mate3d() -> TrainConfig:
    """MVC-ZigAL on LCM-SDXL at 8 steps, for the 160 prompts of MATE-3D: 1000 iterations.

    4 prompts x 4 rounds per process; 64 timesteps are 8 prompts: two parameter changes per
    iteration.
    """
    base = lcm_sdxl_simple()
    return replace(
        base,
        recipe="lcm_sdxl_mate3d",
        optim=replace(base.optim, lr=5e-5, optimizer_steps_per_epoch=2),
        run=replace(
            base.run,
            iterations=100 * 10,
            objects_per_iteration=_PROCESSES * 4 * 4,
            prompts="prompts/mate3d.txt",
        ),
    )


def sdxl_simple() -> TrainConfig:
    """MVC-ZigAL on SDXL itself: DDIM at 16 steps, for 45 animal names, 700 iterations.

    2 prompts x 2 rounds per process; 64 timesteps are 4 prompts: one parameter change per
    iteration. Guidance doubles the batch and leads away from a negative prompt.
    """
    base = lcm_sdxl_simple()
    return replace(
        base,
        recipe="sdxl_simple",
        model=replace(base.model, weights="sdxl", lora_rank=4, lora_alpha=4.0),
        sampler=replace(
            base.sampler,
            kind="ddim",
            num_steps=16,
            eta=1.0,
            negative_prompt="watermark, ugly, deformed, noisy, blurry, low contrast",
        ),
        optim=replace(base.optim, lr=5e-5),
        run=replace(base.run, objects_per_iteration=_PROCESSES * 2 * 2, objects_per_slice=1),
    )
