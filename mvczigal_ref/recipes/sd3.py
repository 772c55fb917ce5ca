"""Methods published on Stable Diffusion 3.5 Medium alone.

Every setting is that of the released trainer (arXiv:2510.22319, 2509.16117), or docs/recipes.md
says what differs and why.
"""

from dataclasses import replace

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.recipes.flow import diffusion_nft, grpo_guard

__all__ = ["diffusion_nft_sd3", "grpo_guard_sd3"]


def grpo_guard_sd3() -> TrainConfig:
    """GRPO-Guard on Stable Diffusion 3.5 Medium: groups of 24, noise at 9 of 10 steps.

    Guidance 4.5 in sampling and training; evaluated at 40 steps.
    """
    base = _medium(grpo_guard())
    return replace(
        base,
        recipe="grpo_guard_sd3",
        sampler=replace(base.sampler, num_steps=10, guidance_scale=4.5),
        flow=replace(base.flow, noise_scale=0.7),
        rollout=replace(base.rollout, window_size=9),
    )


def diffusion_nft_sd3() -> TrainConfig:
    """DiffusionNFT on Stable Diffusion 3.5 Medium: samples noised again, and no guidance."""
    return replace(_medium(diffusion_nft()), recipe="diffusion_nft_sd3")


def _medium(base: TrainConfig) -> TrainConfig:
    """Put Stable Diffusion 3.5 Medium in FLUX.1's place, with Flow-GRPO's LoRA and dtype for it."""
    model = replace(
        base.model,
        weights="stabilityai/stable-diffusion-3.5-medium",
        lora_rank=32,
        lora_alpha=64.0,
        dtype="fp16",
    )
    return replace(base, model=model, sampler=replace(base.sampler, evaluation_steps=40))
