"""GRPO family on the tiny world: each full-size method, smaller.

All recipes share network, prompts and reward, and the learning rate except where a recipe says why
its own differs. They make as many network calls as their method asks for; ``mvczigal reproduce``
compares them at equal calls.
"""

from dataclasses import replace

from mvczigal_ref.config import (
    AdvantageConfig,
    ConditionConfig,
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

__all__ = [
    "tiny_branch_grpo",
    "tiny_dance_grpo",
    "tiny_diffusion_nft",
    "tiny_flow_grpo",
    "tiny_flow_grpo_fast",
    "tiny_flow_shuffled",
    "tiny_g2rpo",
    "tiny_grpo_guard",
    "tiny_mix_grpo",
    "tiny_mv_grpo_llm",
    "tiny_mv_grpo_vlm",
    "tiny_tempflow_grpo",
]


def tiny_flow_grpo() -> TrainConfig:
    """Flow-GRPO on the tiny world: groups of 8, noise at all of 4 steps but the last.

    Without guidance the shipped weights have room to improve. Members begin with the same noise,
    so that their rewards differ only by the noise of the steps, which is what is trained.
    """
    return TrainConfig(
        recipe="tiny_flow_grpo",
        model=ModelConfig(
            network="flow", weights="tiny_flow", lora_rank=8, lora_alpha=8.0, channels_last="auto"
        ),
        sampler=SamplerConfig(kind="flow", num_steps=4, guidance_scale=1.0),
        flow=FlowConfig(kernel="sde", noise_scale=0.7),
        rollout=RolloutConfig(
            kind="group", members=8, shared_noise=True, window="fixed", window_size=3
        ),
        reward=RewardConfig(per_view="world.per_view", joint="per_view"),
        advantage=AdvantageConfig(mode="per_view"),
        objective=ObjectiveConfig(kind="policy_gradient", clip_range=1e-2),
        # At 8e-3 changes at random (`tiny_flow_shuffled`) cost half of what is learnt.
        optim=OptimConfig(lr=6e-3, decay_iterations=40, optimizer_steps_per_epoch=1),
        # Single images differ much from noise to noise: many noises for a small standard error.
        run=RunConfig(
            iterations=40, objects_per_iteration=32, objects_per_slice=8, evaluation_noises=48
        ),
    )


def tiny_flow_grpo_fast() -> TrainConfig:
    """Flow-GRPO-Fast on the tiny world: a group divides at one of the first two steps.

    Coefficient-preserving noise in that step alone, and only it is trained.
    """
    base = tiny_flow_grpo()
    return replace(
        base,
        recipe="tiny_flow_grpo_fast",
        flow=FlowConfig(kernel="cps", noise_scale=0.8),
        rollout=replace(base.rollout, window="random", window_size=1, window_last_start=1),
    )


def tiny_grpo_guard() -> TrainConfig:
    """GRPO-Guard on the tiny world: Flow-GRPO with ratios whose spread no noise level changes."""
    base = tiny_flow_grpo()
    objective = replace(base.objective, kind="guard", clip_range=2e-3)
    return replace(base, recipe="tiny_grpo_guard", objective=objective)


def tiny_dance_grpo() -> TrainConfig:
    """DanceGRPO on the tiny world: constant noise, 60 % of the steps trained."""
    base = tiny_flow_grpo()
    return replace(
        base,
        recipe="tiny_dance_grpo",
        flow=FlowConfig(kernel="constant", noise_scale=0.6, image_is_denoised=True),
        rollout=replace(base.rollout, window="all"),
        advantage=replace(base.advantage, ddof=1),
        objective=replace(base.objective, train_share=0.6),
    )


def tiny_tempflow_grpo() -> TrainConfig:
    """TempFlow-GRPO on the tiny world: at every step 3 branches of 2 trunks, weighed by noise."""
    base = tiny_flow_grpo()
    return replace(
        base,
        recipe="tiny_tempflow_grpo",
        rollout=replace(base.rollout, kind="branches", members=3, trunks=2),
        objective=replace(base.objective, step_weight="noise"),
    )


def tiny_mix_grpo() -> TrainConfig:
    """MixGRPO on the tiny world: noise in 2 steps, a window that slides every 8 iterations."""
    base = tiny_flow_grpo()
    rollout = replace(base.rollout, window="sliding", window_size=2, window_interval=8)
    return replace(base, recipe="tiny_mix_grpo", rollout=rollout)


def tiny_g2rpo() -> TrainConfig:
    """Granular-GRPO on the tiny world: single noisy steps off one trunk, finished twice.

    The parameters change after each step, so the learning rate is smaller.
    """
    base = tiny_flow_grpo()
    return replace(
        base,
        recipe="tiny_g2rpo",
        rollout=replace(base.rollout, kind="branches", members=6, window_size=2, strides=(1, 2)),
        optim=replace(base.optim, lr=4e-3, step_per_decision=True),
    )


def tiny_branch_grpo() -> TrainConfig:
    """BranchGRPO on the tiny world: a tree that divides at each of 3 steps into 8 images."""
    base = tiny_flow_grpo()
    flow = FlowConfig(kernel="constant", noise_scale=0.6)
    rollout = RolloutConfig(
        kind="tree", split_steps=(0, 1, 2), split_width=2, window="fixed", window_size=3
    )
    return replace(base, recipe="tiny_branch_grpo", flow=flow, rollout=rollout)


def tiny_diffusion_nft() -> TrainConfig:
    """DiffusionNFT on the tiny world: samples noised again and fitted, without a trajectory.

    An iteration makes more network calls than those of other methods, so at equal calls there
    are fewer iterations, at a higher rate.
    """
    base = tiny_flow_grpo()
    return replace(
        base,
        recipe="tiny_diffusion_nft",
        rollout=replace(base.rollout, shared_noise=False, window="all"),
        objective=ObjectiveConfig(kind="forward_process", kl_weight=1e-4),
        forward=ForwardConfig(mix=1.0, levels=1),
        optim=replace(base.optim, lr=8e-3),
    )


def tiny_mv_grpo_vlm() -> TrainConfig:
    """MV-GRPO on the tiny world: each sample is described by measuring it.

    Otherwise it is `tiny_flow_grpo_fast`.
    """
    condition = ConditionConfig(enhancer="world")
    return replace(tiny_flow_grpo_fast(), recipe="tiny_mv_grpo_vlm", condition=condition)


def tiny_mv_grpo_llm() -> TrainConfig:
    """MV-GRPO on the tiny world: captions with another part, or another colour of the part.

    Otherwise it is `tiny_flow_grpo_fast`. Captions do not name another body, which no sample
    would show.
    """
    condition = ConditionConfig(
        enhancer="world_edits", num_captions=4, instructions=("part_colour", "part")
    )
    return replace(tiny_flow_grpo_fast(), recipe="tiny_mv_grpo_llm", condition=condition)


def tiny_flow_shuffled() -> TrainConfig:
    """Control of `tiny_flow_grpo`: advantages shuffled over prompts, which must not learn."""
    base = tiny_flow_grpo()
    advantage = replace(base.advantage, shuffle=True)
    return replace(base, recipe="tiny_flow_shuffled", advantage=advantage)
