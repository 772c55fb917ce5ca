"""Single-view SDXL and Stable Diffusion 1.5, many steps and few: the methods of this package.

Each network is sampled as its authors publish (arXiv:2112.10752, 2307.01952; SDXL-Turbo
2311.17042, SDXL-Lightning 2402.13929, Hyper-SD 2404.13686, DMD2 2405.14867, TCD 2402.19159,
LCM-LoRA 2311.05556): steps, grid, guidance and image size are theirs. Two are published as
deterministic, Lightning and Hyper-SD; a share of fresh noise, `sampler.eta`, is ours, for without
it no step has a density. Objective, rate, LoRA and group size are our choice, from Flow-GRPO's and
MVC-ZigAL's, and no run at this size has been made. Rewards and prompts are the user's choice.
"""

from dataclasses import replace

from mvczigal_ref.config import (
    AdvantageConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SamplerConfig,
    TrainConfig,
)
from mvczigal_ref.config.types import Table

__all__ = [
    "sd15_grpo",
    "sd15_lcm_zigal",
    "sdxl_dmd2_zigal",
    "sdxl_grpo",
    "sdxl_hyper_grpo",
    "sdxl_lcm_zigal",
    "sdxl_lightning_grpo",
    "sdxl_tcd_grpo",
    "sdxl_turbo_grpo",
]

_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def sd15_grpo() -> TrainConfig:
    """GRPO on Stable Diffusion 1.5: groups of 8 by DDIM at 50 steps, guidance 5 as in DDPO.

    Noise at a random 60 % of the steps is trained, as DanceGRPO does.
    """
    return TrainConfig(
        recipe="sd15_grpo",
        model=ModelConfig(
            network="unet",
            weights="stable-diffusion-v1-5/stable-diffusion-v1-5",
            image_size=512,
            lora_rank=16,
            lora_alpha=16.0,
            dtype="bf16",
            gradient_checkpointing=True,
            views_per_decode=4,
        ),
        sampler=SamplerConfig(
            kind="ddim", prediction_type="epsilon", num_steps=50, guidance_scale=5.0, eta=1.0
        ),
        rollout=RolloutConfig(kind="group", members=8, window="all", nodes_per_call=4),
        reward=RewardConfig(per_view="pickscore", joint="per_view"),
        advantage=AdvantageConfig(mode="per_view", spread="group"),
        objective=ObjectiveConfig(kind="policy_gradient", clip_range=1e-4, train_share=0.6),
        optim=OptimConfig(lr=1e-4, weight_decay=1e-4, max_grad_norm=1.0),
        run=RunConfig(
            iterations=300,
            objects_per_iteration=16,
            objects_per_slice=1,
            prompts="prompts/pickscore_train.txt",
            held_out="prompts/pickscore_test.txt",
            evaluation_noises=1,
        ),
    )


def sdxl_grpo() -> TrainConfig:
    """GRPO on SDXL: groups of 8 by DDIM at 20 steps, guidance 5."""
    base = sd15_grpo()
    return replace(
        base,
        recipe="sdxl_grpo",
        model=replace(base.model, weights=_SDXL, image_size=1024, views_per_decode=1),
        sampler=replace(base.sampler, num_steps=20),
        rollout=replace(base.rollout, nodes_per_call=2),
    )


def sdxl_turbo_grpo() -> TrainConfig:
    """GRPO on SDXL-Turbo: ancestral Euler's 4 steps at 512 px, unguided; 3 of them draw noise."""
    base = _few_steps("sdxl_turbo_grpo")
    return replace(
        base,
        model=replace(base.model, weights="stabilityai/sdxl-turbo", image_size=512),
        sampler=replace(base.sampler, kind="euler_ancestral", eta=1.0),
    )


def sdxl_lightning_grpo() -> TrainConfig:
    """GRPO on SDXL-Lightning's 4-step LoRA: Euler's steps as DDIM's, with noise of eta 0.3."""
    return _distilled(
        "sdxl_lightning_grpo", "ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors"
    )


def sdxl_hyper_grpo() -> TrainConfig:
    """GRPO on Hyper-SDXL's 4-step LoRA: DDIM on a trailing grid, with noise of eta 0.3."""
    return _distilled("sdxl_hyper_grpo", "ByteDance/Hyper-SD/Hyper-SDXL-4steps-lora.safetensors")


def sdxl_tcd_grpo() -> TrainConfig:
    """GRPO on TCD's SDXL LoRA: 4 of its own stochastic steps, gamma 0.3; 3 of them draw noise."""
    base = _few_steps("sdxl_tcd_grpo")
    return replace(
        base,
        model=replace(base.model, sources=Table({"lora": "h1t/TCD-SDXL-LoRA"})),
        sampler=replace(base.sampler, kind="tcd", eta=0.3),
    )


def sdxl_lcm_zigal() -> TrainConfig:
    """ZigAL on single-view LCM-SDXL: zigzag and standard trajectories of 8 steps, guidance 7."""
    base = _pairs("sdxl_lcm_zigal")
    return replace(
        base,
        model=replace(base.model, sources=Table({"unet": "latent-consistency/lcm-sdxl"})),
        sampler=replace(base.sampler, num_steps=8, guidance_scale=7.0),
    )


def sdxl_dmd2_zigal() -> TrainConfig:
    """ZigAL on DMD2's SDXL LoRA: LCM's steps at 999, 749, 499 and 249, unguided."""
    base = _pairs("sdxl_dmd2_zigal")
    lora = "tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors"
    return replace(
        base,
        model=replace(base.model, sources=Table({"lora": lora})),
        sampler=replace(base.sampler, spacing="trailing"),
    )


def sd15_lcm_zigal() -> TrainConfig:
    """ZigAL on Stable Diffusion 1.5 with LCM-LoRA: 4 steps at 512 px, unguided."""
    base = _pairs("sd15_lcm_zigal")
    return replace(
        base,
        model=replace(
            base.model,
            weights="stable-diffusion-v1-5/stable-diffusion-v1-5",
            sources=Table({"lora": "latent-consistency/lcm-lora-sdv1-5"}),
            image_size=512,
        ),
    )


def _few_steps(name: str) -> TrainConfig:
    """Sample SDXL in four unguided steps, and train all that draw noise."""
    base = sdxl_grpo()
    return replace(
        base,
        recipe=name,
        sampler=replace(base.sampler, num_steps=4, guidance_scale=1.0),
        objective=replace(base.objective, train_share=1.0),
    )


def _distilled(name: str, lora: str) -> TrainConfig:
    """Sample a LoRA that was distilled for a deterministic grid, with a share of fresh noise."""
    base = _few_steps(name)
    return replace(
        base,
        model=replace(base.model, sources=Table({"lora": lora})),
        sampler=replace(base.sampler, spacing="trailing", eta=0.3),
    )


def _pairs(name: str) -> TrainConfig:
    """Compare two trajectories of each prompt by one reward, as MVC-ZigAL's first baseline."""
    base = _few_steps(name)
    return replace(
        base,
        sampler=replace(base.sampler, kind="lcm"),
        rollout=RolloutConfig(),
        advantage=AdvantageConfig(mode="per_view"),
        objective=ObjectiveConfig(clip_range=1e-4),
        optim=OptimConfig(lr=5e-5, max_grad_norm=5.0),
    )
