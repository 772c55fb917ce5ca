"""MV-GRPO on FLUX.1-dev (arXiv:2603.12648), its captions made before or while it trains."""

from dataclasses import replace

from mvczigal_ref.config import (
    ConditionConfig,
    FlowConfig,
    TrainConfig,
)
from mvczigal_ref.recipes.flow import flow_grpo

__all__ = ["mv_grpo_llm", "mv_grpo_vlm"]


def mv_grpo_llm() -> TrainConfig:
    """MV-GRPO on FLUX.1-dev, captions by a language model, made before by `mvczigal enhance`."""
    condition = ConditionConfig(enhancer="stored", file="captions.jsonl", num_captions=4)
    return replace(_mv_grpo(), recipe="mv_grpo_llm", condition=condition)


def mv_grpo_vlm() -> TrainConfig:
    """MV-GRPO on FLUX.1-dev, captions by a vision-language model that sees every sample."""
    condition = ConditionConfig(enhancer="local", model="Qwen/Qwen3-VL-8B-Instruct")
    return replace(_mv_grpo(), recipe="mv_grpo_vlm", condition=condition)


def _mv_grpo() -> TrainConfig:
    """Take the settings of the authors' next released trainer; this method's own is not public."""
    base = flow_grpo()
    return replace(
        base,
        sampler=replace(base.sampler, num_steps=16),
        flow=FlowConfig(kernel="sde", noise_scale=0.7, shift=3.0, text_length=256),
        rollout=replace(
            base.rollout,
            members=12,
            shared_noise=True,
            window="fixed",
            window_size=4,
            window_spacing=2,
        ),
        reward=replace(base.reward, per_view="hpsv3"),
        advantage=replace(base.advantage, spread="group", ddof=1, delta=1e-8),
        optim=replace(base.optim, lr=1e-4, optimizer_steps_per_epoch=1, average_decay=0.0),
        run=replace(
            base.run,
            iterations=300,
            objects_per_iteration=8,
            prompts="prompts/hpdv2_train.txt",
            held_out="prompts/hpdv2_test.txt",
        ),
    )
