"""Settings of a pair's loss and replay, as a configuration asks for them."""

from collections.abc import Callable
from functools import partial

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.plugins import load_plugin
from mvczigal_ref.method.plugin_loss import plugin_gradients
from mvczigal_ref.objective.joint import joint_gradients
from mvczigal_ref.objective.preference import preference_gradients
from mvczigal_ref.objective.reward_difference import (
    RewardDifferenceGradients,
    reward_difference_gradients,
)
from mvczigal_ref.rollout.pair import first_joint_step
from mvczigal_ref.system import System
from mvczigal_ref.update.pairs import PairObjective
from mvczigal_ref.update.replay import UpdateSettings

__all__ = ["pair_objective", "pair_update_settings"]


def pair_objective(config: TrainConfig) -> PairObjective:
    """Bind the settings of the loss: the reward difference of ZigAL and RDL, DPO's preference, or
    that of a plug-in.

    Args:
        config: The section ``objective`` is read.

    Returns:
        The loss and both its derivatives.
    """
    gradients = _pair_objective(config)
    return partial(joint_gradients, gradients) if _is_joint(config) else gradients


def _is_joint(config: TrainConfig) -> bool:
    return config.objective.density == "joint"


def _pair_objective(config: TrainConfig) -> Callable[..., RewardDifferenceGradients]:
    objective = config.objective
    if objective.is_plugin:
        return partial(plugin_gradients, load_plugin("objectives", objective.kind), objective)
    if objective.kind == "preference":
        return partial(
            preference_gradients,
            scale=objective.preference_scale,
            clip_range=objective.clip_range,
        )
    return partial(
        reward_difference_gradients,
        clip_range=objective.clip_range if objective.clip else float("inf"),
        temperature=objective.temperature,
    )


def pair_update_settings(system: System, config: TrainConfig) -> UpdateSettings:
    """Gather the settings of a pair's replay.

    Args:
        system: System whose sampler says whether the image shows the last action.
        config: The run.

    Returns:
        The trained steps, cuts, passes, guidance and clip range.
    """
    steps = list(range(system.sampler.num_steps))
    if system.sampler.last_action_is_image_independent and not config.objective.train_last_action:
        steps.pop()
    # Calls of several steps are none of the rollout's: then any step may be joint.
    exact = config.optim.steps_per_microbatch == 1
    zigzag_steps = config.zigzag.steps if config.objective.pairing == "zigzag" else 0
    joint = first_joint_step(zigzag_steps) if exact else 0
    return UpdateSettings(
        steps=steps,
        joint_density=_is_joint(config),
        joint_from=joint if config.run.arms_per_call > 1 else None,
        steps_per_microbatch=config.optim.steps_per_microbatch,
        objects_per_microbatch=config.run.replay_objects_per_slice,
        epochs=config.optim.epochs_per_iteration,
        optimizer_steps=config.optim.optimizer_steps_per_epoch,
        max_grad_norm=config.optim.max_grad_norm,
        scale_growth_interval=config.optim.loss_scale_growth_interval,
        clip_range=config.objective.clip_range,
        guidance_scale=config.sampler.guidance_scale,
        camera_scale=config.sampler.camera_scale,
        reduction=config.objective.reduction,
    )
