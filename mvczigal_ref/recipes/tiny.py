"""MVC-ZigAL on the tiny world, at the size of a laptop, and its controls."""

from dataclasses import replace

from mvczigal_ref.config import (
    AdvantageConfig,
    ConstraintConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    SamplerConfig,
    TrainConfig,
)

__all__ = [
    "tiny",
    "tiny_per_view",
    "tiny_released",
    "tiny_shuffled",
]


def tiny() -> TrainConfig:
    """MVC-ZigAL on the tiny world: some minutes on two CPU cores.

    The per-view reward is raised while the multiplier holds the joint reward above its
    threshold. Four sampling steps at the published guidance of 7 leave the shipped weights room
    to improve: they paint best at guidance 2. The other recipes each change one thing in this one.
    """
    return TrainConfig(
        recipe="tiny",
        model=ModelConfig(lora_rank=8, lora_alpha=8.0, channels_last="auto"),
        sampler=SamplerConfig(num_steps=4, guidance_scale=7.0),
        objective=ObjectiveConfig(clip_range=1e-2),
        # Six views share one joint reward, so it teaches each view less than the view's own reward.
        # A small multiplier lets the views' own rewards decide until the joint one falls.
        constraint=ConstraintConfig(multiplier_init=0.3, multiplier_max=20.0, threshold_objects=96),
        # The errors of single iterations average out as the rate falls.
        optim=OptimConfig(lr=4e-3, decay_iterations=40, optimizer_steps_per_epoch=1),
        run=RunConfig(iterations=40, objects_per_iteration=32, objects_per_slice=8),
    )


def tiny_per_view() -> TrainConfig:
    """MVC-ZigAL's per-view reward alone, without the constraint.

    Shows what the constraint is for: this reward cannot tell one object from six.
    """
    return replace(tiny(), recipe="tiny_per_view", advantage=AdvantageConfig(mode="per_view"))


def tiny_shuffled() -> TrainConfig:
    """Control of `tiny`: advantages shuffled over objects, which must not learn.

    Any gain is noise or a fault.
    """
    return replace(tiny(), recipe="tiny_shuffled", advantage=AdvantageConfig(shuffle=True))


def tiny_released() -> TrainConfig:
    """Released trainer's settings at tiny size: clip 1e-4, last action trained, one step.

    Eight sampling steps, the first batch's mean as threshold, one optimiser step per
    iteration.
    """
    return replace(
        tiny(),
        recipe="tiny_released",
        sampler=SamplerConfig(num_steps=8, guidance_scale=7.0),
        objective=ObjectiveConfig(clip_range=1e-4, train_last_action=True),
        constraint=ConstraintConfig(),
        optim=OptimConfig(lr=1e-4, optimizer_steps_per_epoch=1),
    )
