"""DanceGRPO on FLUX.1-dev, and the methods that are built on its trainer.

Every setting is that of the released trainer (arXiv:2505.07818, 2507.21802, 2510.01982,
2509.06040), or docs/recipes.md says what differs and why. DanceGRPO's settings are those of its
LoRA script; the other methods train every weight, 12 billion at about 16 bytes of memory each.
"""

from dataclasses import replace

from mvczigal_ref.config import FlowConfig, RolloutConfig, TrainConfig
from mvczigal_ref.config.types import Table
from mvczigal_ref.recipes.flow import flow_grpo

__all__ = ["branch_grpo", "dance_grpo", "g2rpo", "mix_grpo"]


def dance_grpo() -> TrainConfig:
    """DanceGRPO on FLUX.1-dev: constant noise of 0.3 from one start, 60 % of 12 steps trained.

    Groups of 12, each with its own deviation; the image is the last clean prediction.
    """
    base = flow_grpo()
    return replace(
        base,
        recipe="dance_grpo",
        model=replace(base.model, image_size=720, lora_rank=128, lora_alpha=256.0),
        sampler=replace(base.sampler, num_steps=12),
        flow=FlowConfig(kernel="constant", noise_scale=0.3, shift=3.0, image_is_denoised=True),
        rollout=replace(base.rollout, members=12, shared_noise=True, window="all"),
        reward=replace(base.reward, per_view="hpsv2"),
        advantage=replace(base.advantage, spread="group", ddof=1, delta=1e-8),
        objective=replace(base.objective, train_share=0.6),
        optim=replace(base.optim, average_decay=0.0),
        run=replace(
            base.run,
            iterations=301,
            objects_per_iteration=16,
            prompts="prompts/hpdv2_train.txt",
            held_out="prompts/hpdv2_test.txt",
        ),
    )


def mix_grpo() -> TrainConfig:
    """MixGRPO on FLUX.1-dev: noise in 4 of 25 steps, a window that slides every 25 iterations.

    Three rewards, each standardised by itself before their advantages are averaged.
    """
    base = _every_weight()
    return replace(
        base,
        recipe="mix_grpo",
        sampler=replace(base.sampler, num_steps=25),
        flow=FlowConfig(kernel="sde", noise_scale=0.7, shift=3.0),
        rollout=replace(
            base.rollout, window="sliding", window_size=4, window_interval=25, window_end="restart"
        ),
        reward=replace(
            base.reward,
            per_view=Table(dict.fromkeys(("hpsv2", "image_reward", "pickscore"), 1 / 3)),
            combine="advantages",
        ),
        optim=replace(base.optim, optimizer_steps_per_epoch=4),
        run=replace(base.run, objects_per_iteration=32),
    )


def g2rpo() -> TrainConfig:
    """Granular-GRPO on FLUX.1-dev: single noisy steps 0 to 7 off one trunk, finished twice.

    They are finished by strides of 1 and 2. The advantages of two rewards are added; the
    parameters change after each step.
    """
    base = _every_weight()
    return replace(
        base,
        recipe="g2rpo",
        sampler=replace(base.sampler, num_steps=16),
        flow=FlowConfig(kernel="sde", noise_scale=0.7, shift=3.0),
        rollout=replace(
            base.rollout, kind="branches", shared_noise=False, window="fixed", window_size=8,
            strides=(1, 2), fine_steps=1,
        ),
        reward=replace(
            base.reward,
            per_view=Table({"clip_score": 1.0, "hpsv2": 1.0}),
            combine="advantages",
        ),
        optim=replace(base.optim, lr=2e-6, step_per_decision=True, optimizer_steps_per_epoch=1),
        run=replace(base.run, iterations=301),
    )  # fmt: skip


def branch_grpo() -> TrainConfig:
    """BranchGRPO on FLUX.1-dev: a tree that divides at steps 0, 3, 6 and 9 into 16 images.

    A node's reward is the mean of its leaves, compared with the other nodes of its depth.
    """
    base = _every_weight()
    return replace(
        base,
        recipe="branch_grpo",
        sampler=replace(base.sampler, num_steps=20),
        rollout=RolloutConfig(
            kind="tree", split_steps=(0, 3, 6, 9), split_width=2, nodes_per_call=4
        ),
        objective=replace(base.objective, clip_range=1e-3),
    )


def _every_weight() -> TrainConfig:
    """Train every weight at DanceGRPO's learning rate for that, as methods built on it do."""
    base = dance_grpo()
    return replace(
        base,
        model=replace(base.model, finetune="full", dtype="fp32"),
        objective=replace(base.objective, train_share=1.0),
        optim=replace(base.optim, lr=1e-5),
        run=replace(base.run, iterations=300),
    )
