"""Flow-GRPO on FLUX.1-dev, and the methods that are built on its trainer.

Every setting is that of the released trainer (arXiv:2505.05470, 2508.04324, 2509.16117,
2603.12648), or docs/recipes.md says what differs and why. Rewards and prompts are the user's
choice; the lists that ``run.prompts`` and ``run.held_out`` name are published, and docs/recipes.md
says where.
"""

from dataclasses import replace

from mvczigal_ref.config import (
    AdvantageConfig,
    FlowConfig,
    ForwardConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SamplerConfig,
    TrainConfig,
)

__all__ = ["diffusion_nft", "flow_grpo", "flow_grpo_fast", "grpo_guard", "tempflow_grpo"]


def flow_grpo() -> TrainConfig:
    """Flow-GRPO on FLUX.1-dev: groups of 24, noise at all of 6 steps but the last.

    Guidance 3.5, no KL penalty, the standard deviation of the whole batch; evaluated at 28 steps.
    """
    return TrainConfig(
        recipe="flow_grpo",
        model=ModelConfig(
            network="flow",
            weights="black-forest-labs/FLUX.1-dev",
            image_size=512,
            lora_rank=64,
            lora_alpha=128.0,
            dtype="bf16",
            gradient_checkpointing=True,
            views_per_decode=4,
            tf32=True,
        ),
        sampler=SamplerConfig(kind="flow", num_steps=6, evaluation_steps=28, guidance_scale=3.5),
        flow=FlowConfig(kernel="sde", noise_scale=0.9, text_length=128),
        rollout=RolloutConfig(
            kind="group", members=24, window="fixed", window_size=5, nodes_per_call=4
        ),
        reward=RewardConfig(per_view="pickscore", joint="per_view"),
        advantage=AdvantageConfig(mode="per_view", spread="batch"),
        objective=ObjectiveConfig(kind="policy_gradient", clip_range=1e-4),
        optim=OptimConfig(
            lr=3e-4,
            weight_decay=1e-4,
            max_grad_norm=1.0,
            optimizer_steps_per_epoch=2,
            average_decay=0.9,
        ),
        run=RunConfig(
            iterations=1000,
            objects_per_iteration=48,
            objects_per_slice=1,
            prompts="prompts/pickscore_train.txt",
            held_out="prompts/pickscore_test.txt",
            evaluation_noises=1,
        ),
    )


def flow_grpo_fast() -> TrainConfig:
    """Flow-GRPO-Fast on FLUX.1-dev: noise in the first 3 of 6 steps, each group's deviation.

    Coefficient-preserving noise of 0.8. The window's start is drawn from 0 to half the steps less
    the window: here always 0. The published clip, 1e-5, belongs to the released log-density
    `-(x - mean)^2`, which is set.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="flow_grpo_fast",
        flow=FlowConfig(kernel="cps", noise_scale=0.8, density="unscaled", text_length=128),
        rollout=replace(
            base.rollout, window="random", window_size=3, window_start=0, window_last_start=0
        ),
        advantage=replace(base.advantage, spread="group"),
        objective=replace(base.objective, clip_range=1e-5),
    )


def grpo_guard() -> TrainConfig:
    """GRPO-Guard on FLUX.1-dev: Flow-GRPO with ratios whose spread no noise level changes.

    Published on Stable Diffusion 3.5 alone (`grpo_guard_sd3`); the choice of FLUX.1 is ours.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="grpo_guard",
        advantage=replace(base.advantage, spread="group"),
        objective=replace(base.objective, kind="guard", clip_range=4e-6),
        optim=replace(base.optim, lr=1e-4),
    )


def tempflow_grpo() -> TrainConfig:
    """TempFlow-GRPO on FLUX.1-dev: at every step 6 branches of 4 trunks, weighed by their noise.

    A branch's image differs from its siblings' by the noise of one step, so its reward judges that
    step.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="tempflow_grpo",
        model=replace(base.model, image_size=1024, lora_rank=32, lora_alpha=64.0),
        sampler=replace(base.sampler, num_steps=10, evaluation_steps=50),
        flow=replace(base.flow, noise_scale=0.7),
        rollout=replace(base.rollout, kind="branches", members=6, trunks=4, window_size=9),
        reward=replace(base.reward, per_view="hpsv3"),
        advantage=replace(base.advantage, spread="group"),
        objective=replace(base.objective, step_weight="noise", kl_weight=0.004),
        run=replace(base.run, iterations=250),
    )


def diffusion_nft() -> TrainConfig:
    """DiffusionNFT on FLUX.1-dev: samples noised again and fitted, without a trajectory.

    The policy that samples follows the one that learns. Published on Stable Diffusion 3.5 alone
    (`diffusion_nft_sd3`); the choice of FLUX.1 is ours.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="diffusion_nft",
        sampler=replace(base.sampler, num_steps=10, guidance_scale=1.0),
        flow=replace(base.flow, ode="dpm2m"),
        rollout=replace(base.rollout, window="all"),
        objective=ObjectiveConfig(kind="forward_process", kl_weight=1e-4),
        forward=ForwardConfig(mix=1.0, levels=9, old_decay_unit="optimizer_step"),
        optim=replace(base.optim, optimizer_steps_per_epoch=1, average_every=1),
    )
