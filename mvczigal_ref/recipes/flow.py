"""The GRPO family on FLUX.1-dev, at published settings where they are known.

The settings are those of each method's paper or released code (arXiv:2505.05470, 2505.07818,
2508.04324, 2507.21802, 2510.01982, 2509.06040, 2509.16117, 2603.12648). What a source leaves open,
or had for another model, is Flow-GRPO's; MV-GRPO's are its authors' later ones. Rewards and prompts
are the user's choice: ``run.prompts`` and ``run.held_out`` name text files with one prompt a line.
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
from mvczigal_ref.settings_file import Table

__all__ = [
    "branch_grpo",
    "dance_grpo",
    "diffusion_nft",
    "flow_grpo",
    "flow_grpo_fast",
    "g2rpo",
    "grpo_guard",
    "mix_grpo",
    "mv_grpo_llm",
    "mv_grpo_vlm",
    "tempflow_grpo",
]


def flow_grpo() -> TrainConfig:
    """Flow-GRPO on FLUX.1-dev: groups of 24, noise at all of 6 steps but the last.

    Guidance 3.5, no divergence, the deviation of the whole batch; 28 steps where it is evaluated.
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
        ),
        sampler=SamplerConfig(kind="flow", num_steps=6, evaluation_steps=28, guidance_scale=3.5),
        flow=FlowConfig(kernel="sde", noise_scale=0.9),
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
            prompts="prompts/train.txt",
            held_out="prompts/test.txt",
            evaluation_noises=1,
        ),
    )


def flow_grpo_fast() -> TrainConfig:
    """Flow-GRPO-Fast on FLUX.1-dev: noise in 3 steps that begin anywhere in the first half.

    Coefficient-preserving noise of 0.8, no guidance. The published clip, 1e-5, belongs to the
    released log-density `-(x - mean)^2`; here it bounds ratios of the true density.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="flow_grpo_fast",
        sampler=replace(base.sampler, guidance_scale=1.0),
        flow=FlowConfig(kernel="cps", noise_scale=0.8),
        rollout=replace(
            base.rollout, window="random", window_size=3, window_start=0, window_last_start=2
        ),
        objective=replace(base.objective, clip_range=1e-5),
    )


def grpo_guard() -> TrainConfig:
    """GRPO-Guard on FLUX.1-dev: Flow-GRPO with ratios whose spread no noise level changes."""
    base = flow_grpo()
    objective = replace(base.objective, kind="guard", clip_range=2e-6)
    return replace(base, recipe="grpo_guard", objective=objective)


def dance_grpo() -> TrainConfig:
    """DanceGRPO on FLUX.1-dev: constant noise of 0.3 from one start, 60 % of 16 steps trained.

    Groups of 12, each with its own deviation; the image is the last clean prediction.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="dance_grpo",
        sampler=replace(base.sampler, num_steps=16),
        flow=FlowConfig(kernel="constant", noise_scale=0.3, shift=3.0, image_is_denoised=True),
        rollout=replace(base.rollout, members=12, shared_noise=True, window="all"),
        reward=replace(base.reward, per_view="hpsv2"),
        advantage=replace(base.advantage, spread="group", ddof=1),
        objective=replace(base.objective, train_share=0.6),
        optim=replace(base.optim, lr=1e-5),
        run=replace(base.run, iterations=300),
    )


def tempflow_grpo() -> TrainConfig:
    """TempFlow-GRPO on FLUX.1-dev: at every step 6 branches of 4 trunks, weighed by their noise.

    A branch's image differs from its siblings' by one step's noise, so its reward is that step's.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="tempflow_grpo",
        rollout=replace(base.rollout, kind="branches", members=6, trunks=4),
        advantage=replace(base.advantage, spread="group"),
        objective=replace(base.objective, step_weight="noise"),
    )


def mix_grpo() -> TrainConfig:
    """MixGRPO on FLUX.1-dev: noise in 4 of 25 steps, a window that slides every 25 iterations.

    Three rewards, each standardised by itself before their advantages are added.
    """
    base = dance_grpo()
    return replace(
        base,
        recipe="mix_grpo",
        sampler=replace(base.sampler, num_steps=25),
        flow=FlowConfig(kernel="sde", noise_scale=0.7, shift=3.0),
        rollout=replace(
            base.rollout, shared_noise=False, window="sliding", window_size=4, window_interval=25
        ),
        reward=replace(
            base.reward,
            per_view=Table({"hpsv2": 1.0, "image_reward": 1.0, "pickscore": 1.0}),
            combine="advantages",
        ),
        objective=replace(base.objective, train_share=1.0),
    )


def g2rpo() -> TrainConfig:
    """Granular-GRPO on FLUX.1-dev: single noisy steps 0 to 7 off one trunk, finished twice.

    By strides of 1 and 2, advantages added; the parameters change after each step.
    """
    base = dance_grpo()
    return replace(
        base,
        recipe="g2rpo",
        flow=FlowConfig(kernel="sde", noise_scale=0.7, shift=3.0),
        rollout=replace(
            base.rollout, kind="branches", shared_noise=False, window="fixed", window_size=8,
            strides=(1, 2),
        ),
        objective=replace(base.objective, train_share=1.0),
        optim=replace(
            base.optim, step_per_decision=True, optimizer_steps_per_epoch=1, average_every=1
        ),
    )  # fmt: skip


def branch_grpo() -> TrainConfig:
    """BranchGRPO on FLUX.1-dev: a tree that divides at steps 0, 3, 6 and 9 into 16 images.

    A node's reward is its leaves' mean, compared with the others of its depth.
    """
    base = dance_grpo()
    return replace(
        base,
        recipe="branch_grpo",
        rollout=RolloutConfig(
            kind="tree", split_steps=(0, 3, 6, 9), split_width=2, nodes_per_call=4
        ),
        objective=replace(base.objective, train_share=1.0),
    )


def diffusion_nft() -> TrainConfig:
    """DiffusionNFT on FLUX.1-dev: samples noised again and fitted, without a trajectory.

    The policy that samples follows the one that learns; no guidance.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="diffusion_nft",
        sampler=replace(base.sampler, num_steps=10, guidance_scale=1.0),
        rollout=replace(base.rollout, window="all"),
        objective=ObjectiveConfig(kind="forward_process", kl_weight=1e-4),
        forward=ForwardConfig(mix=1.0, levels=2),
    )


def mv_grpo_llm() -> TrainConfig:
    """MV-GRPO on FLUX.1-dev, captions by a language model: made before, by `mvczigal enhance`."""
    condition = ConditionConfig(enhancer="stored", file="captions.jsonl", num_captions=4)
    return replace(_mv_grpo(), recipe="mv_grpo_llm", condition=condition)


def mv_grpo_vlm() -> TrainConfig:
    """MV-GRPO on FLUX.1-dev, captions by a vision-language model that sees every sample."""
    condition = ConditionConfig(enhancer="local", model="Qwen/Qwen3-VL-8B-Instruct")
    return replace(_mv_grpo(), recipe="mv_grpo_vlm", condition=condition)


def _mv_grpo() -> TrainConfig:
    base = flow_grpo()
    return replace(
        base,
        sampler=replace(base.sampler, num_steps=16),
        flow=FlowConfig(kernel="sde", noise_scale=0.7, shift=3.0),
        rollout=replace(
            base.rollout,
            members=12,
            shared_noise=True,
            window="fixed",
            window_size=4,
            window_spacing=2,
        ),
        reward=replace(base.reward, per_view="hpsv3"),
        advantage=replace(base.advantage, spread="group"),
        optim=replace(base.optim, lr=2e-6),
        run=replace(base.run, iterations=300),
    )
