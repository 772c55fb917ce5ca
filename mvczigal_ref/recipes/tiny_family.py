"""Further methods of both families on the tiny world, built on the recipes that they vary."""

from dataclasses import replace

from mvczigal_ref.config import ForwardConfig, ObjectiveConfig, TrainConfig
from mvczigal_ref.recipes.baselines import tiny_mv_dpo, tiny_mv_rdl
from mvczigal_ref.recipes.tiny_flow import (
    tiny_branch_grpo,
    tiny_diffusion_nft,
    tiny_flow_grpo,
    tiny_flow_grpo_fast,
    tiny_mix_grpo,
    tiny_mv_grpo_llm,
)

__all__ = [
    "tiny_awm",
    "tiny_branch_grpo_pruned",
    "tiny_cppo",
    "tiny_dgpo",
    "tiny_flash_grpo",
    "tiny_flow_dppo",
    "tiny_gspo",
    "tiny_mix_grpo_flash",
    "tiny_mv_diffusion_dpo",
    "tiny_mv_dpo_frozen",
    "tiny_mv_grpo_anchor",
    "tiny_mv_rdl_joint",
]


def tiny_gspo() -> TrainConfig:
    """GSPO on the tiny world: one ratio per trajectory, clipped as a whole; two passes."""
    base = tiny_flow_grpo()
    return replace(
        base,
        recipe="tiny_gspo",
        objective=replace(base.objective, kind="sequence", clip_range=5e-3),
        optim=replace(base.optim, lr=4e-3, epochs_per_iteration=2),
    )


def tiny_flow_dppo() -> TrainConfig:
    """Flow-DPPO on the tiny world: the exact divergence holds steps back, not a ratio's clip."""
    base = tiny_flow_grpo()
    return replace(
        base,
        recipe="tiny_flow_dppo",
        objective=ObjectiveConfig(kind="divergence", divergence_range=1e-4),
        optim=replace(base.optim, lr=4e-3, epochs_per_iteration=2),
    )


def tiny_cppo() -> TrainConfig:
    """CPPO on the tiny world: the half of each group that is most unlike the rest is trained."""
    base = tiny_flow_grpo()
    advantage = replace(base.advantage, pruned_share=0.5)
    return replace(base, recipe="tiny_cppo", advantage=advantage)


def tiny_flash_grpo() -> TrainConfig:
    """Flash-GRPO on the tiny world: one noisy step per iteration, weighed by its gradient's size.

    All prompts of an iteration have the same step.
    """
    base = tiny_flow_grpo()
    return replace(
        base,
        recipe="tiny_flash_grpo",
        rollout=replace(base.rollout, window="random", window_size=1, window_last_start=2),
        objective=replace(base.objective, step_weight="rectified"),
    )


def tiny_awm() -> TrainConfig:
    """AWM on the tiny world: pretraining's loss on the samples, weighed by their advantages."""
    base = tiny_diffusion_nft()
    return replace(
        base,
        recipe="tiny_awm",
        objective=ObjectiveConfig(kind="forward_process", clip_range=1.0, kl_weight=1e-3),
        forward=ForwardConfig(loss="matching", levels=1, old_decay_rate=0.0),
    )


def tiny_dgpo() -> TrainConfig:
    """DGPO on the tiny world: each group's better part preferred at once, over a frozen network."""
    base = tiny_diffusion_nft()
    return replace(
        base,
        recipe="tiny_dgpo",
        objective=ObjectiveConfig(
            kind="forward_process", preference_scale=100.0, clip_range=5e-2, kl_weight=1e-3
        ),
        forward=ForwardConfig(
            loss="group_preference", levels=1, shared_noise=True, old_decay_largest=0.3
        ),
    )


def tiny_mix_grpo_flash() -> TrainConfig:
    """MixGRPO-Flash on the tiny world: half the steps after the window, at second order."""
    base = tiny_mix_grpo()
    return replace(
        base,
        recipe="tiny_mix_grpo_flash",
        flow=replace(base.flow, ode="dpm2m"),
        rollout=replace(base.rollout, tail_share=0.5),
    )


def tiny_branch_grpo_pruned() -> TrainConfig:
    """BranchGRPO's pruned, mixed tree on the tiny world: the best and the worst leaves train.

    It divides by wider noise at 2 steps into 9 images, and draws noise at one step more.
    """
    base = tiny_branch_grpo()
    return replace(
        base,
        recipe="tiny_branch_grpo_pruned",
        rollout=replace(
            base.rollout, split_steps=(0, 1), split_width=3, split_noise=1.5, window_start=2,
            window_size=1, pruned_leaves="extremes",
        ),
    )  # fmt: skip


def tiny_mv_grpo_anchor() -> TrainConfig:
    """MV-GRPO on the tiny world with noisy steps one at a time, each a group off one anchor.

    The form of the nearest public trainer, where `tiny_mv_grpo_llm` draws all of them in one
    trajectory per sample.
    """
    base, fast = tiny_mv_grpo_llm(), tiny_flow_grpo_fast()
    rollout = replace(
        fast.rollout, kind="branches", members=6, shared_noise=False, window="fixed",
        window_size=2, window_last_start=0,
    )  # fmt: skip
    return replace(base, recipe="tiny_mv_grpo_anchor", rollout=rollout)


def tiny_mv_dpo_frozen() -> TrainConfig:
    """MV-DPO on the tiny world over a frozen reference, as D3PO, where `tiny_mv_dpo`'s moves."""
    base = tiny_mv_dpo()
    objective = replace(base.objective, reference="frozen")
    return replace(base, recipe="tiny_mv_dpo_frozen", objective=objective)


def tiny_mv_diffusion_dpo() -> TrainConfig:
    """Diffusion-DPO on the tiny world's six views: errors in noise over a frozen network."""
    base = tiny_mv_dpo_frozen()
    objective = replace(base.objective, preference_form="noise", preference_scale=500.0)
    return replace(base, recipe="tiny_mv_diffusion_dpo", objective=objective)


def tiny_mv_rdl_joint() -> TrainConfig:
    """MV-RDL on the tiny world with the density of all 6 views of an object, its unit 6 times.

    Temperature and clip range are 6 times those of `tiny_mv_rdl`, so that the first gradient is
    the same.
    """
    base = tiny_mv_rdl()
    objective = replace(
        base.objective, density="joint", clip_range=6 * base.objective.clip_range,
        temperature=6 * base.objective.temperature,
    )  # fmt: skip
    return replace(base, recipe="tiny_mv_rdl_joint", objective=objective)
