"""DiffusionNFT, AWM and DGPO: samples noised again, and no density of a trajectory."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method.forward_batches import forward_batches
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.method.group_metrics import joint_mean, reward_metrics
from mvczigal_ref.method.groups import compare
from mvczigal_ref.method.protocol import Experience, Iteration, Learned, Learner
from mvczigal_ref.objective.advantage_matching import advantage_matching_loss
from mvczigal_ref.objective.clipped import SurrogateStats
from mvczigal_ref.objective.diffusion_nft import NftStats, diffusion_nft_loss, old_policy_decay
from mvczigal_ref.objective.group_preference import group_preference_loss
from mvczigal_ref.system import System
from mvczigal_ref.update.forward import NoisedSamples, update_forward
from mvczigal_ref.update.parameters import mixed_parameters, parameters_as

__all__ = [
    "compare",
    "forward_loss",
    "joint_mean",
    "learn",
    "needs_reference",
    "reward_metrics",
]


def learn(learner: Learner, experience: Experience, iteration: Iteration) -> Learned:
    """Noise the samples, fit velocities to them, and change the parameters.

    Source:
        arXiv:2509.16117 (DiffusionNFT), 2509.25050 (AWM), 2510.08425 (DGPO), by ``forward.loss``.

    Args:
        learner: System whose trainable parameters change, and those of the policy that sampled.
        experience: Groups, the prompts' own conditioning, and the advantages of all prompts;
            captions are not read.
        iteration: Iteration whose index seeds levels and noise; the sections ``objective``,
            ``forward`` and ``optim`` are read.

    Returns:
        Means over the update, the parameters of the policy that samples next, and the loss scale
        of the next update.

    Raises:
        ValueError: If ``learner`` has no ``old``.
        NonFiniteError: If a number is non-finite; says where.
        ZeroGradientError: If a gradient is exactly zero though advantages differ.
    """
    system, old = learner.system, learner.old
    if old is None:
        msg = "`old` must hold the parameters of the policy that samples; got None."
        raise ValueError(msg)
    config = iteration.config
    metrics, loss_scale = update_forward(
        system.policy,
        learner.optimizer,
        forward_batches(system, experience, iteration),
        partial(forward_loss, config),
        parameters=system.trained(),
        world=iteration.world,
        settings=group_update_settings(config),
        old=partial(parameters_as, system.trained(), learner.behaviour or old),
        reference=system.backbone.without_lora if needs_reference(config) else None,
        loss_scale=learner.loss_scale,
    )
    follower = _follow(old, system, config, iteration.index)
    return Learned(metrics=metrics, old=follower, loss_scale=loss_scale)


def needs_reference(config: TrainConfig) -> bool:
    """Say whether the loss reads the velocity of the network without its LoRA.

    Args:
        config: Settings of a run on the forward process.

    Returns:
        True for a penalty towards it, and for a group's preference over it.
    """
    return config.objective.kl_weight > 0.0 or config.forward.loss == "group_preference"


def _follow(
    old: Mapping[str, Tensor], system: System, config: TrainConfig, iteration: int
) -> dict[str, Tensor]:
    """Let the policy that samples follow the one that has learnt."""
    forward, optim, count = config.forward, config.optim, iteration
    if forward.old_decay_unit == "optimizer_step":
        count = (iteration + 1) * optim.epochs_per_iteration * optim.optimizer_steps_per_epoch
    decay = old_policy_decay(
        count, rate=forward.old_decay_rate, largest=forward.old_decay_largest,
        after=forward.old_decay_after,
    )  # fmt: skip
    return mixed_parameters(old, system.trained(), old_share=decay)


def forward_loss(config: TrainConfig, noised: NoisedSamples) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss that ``forward.loss`` names.

    Args:
        config: The sections ``objective``, ``forward`` and ``advantage`` are read.
        noised: Samples of one noise level, with every velocity that the loss reads.

    Returns:
        The mean loss, with gradient, and its diagnostics by the metric's name.
    """
    objective, forward = config.objective, config.forward
    shared: dict[str, Any] = {
        "velocity_old": noised.velocity_old,
        "velocity_reference": noised.velocity_reference,
        "latent_t": noised.latent_t,
        "clean": noised.clean,
        "level": noised.level,
        "advantage": noised.advantage,
        "kl_weight": objective.kl_weight,
    }
    clip_range = objective.clip_range if objective.clip else float("inf")
    loss: Tensor
    stats: NftStats | SurrogateStats
    if forward.loss == "matching":
        loss, stats = advantage_matching_loss(
            noised.velocity, weight=forward.matching_weight, clip_range=clip_range, **shared
        )
    elif forward.loss == "group_preference":
        loss, stats = group_preference_loss(
            noised.velocity, scale=objective.preference_scale, clip_range=clip_range, **shared
        )
    else:
        loss, stats = diffusion_nft_loss(
            noised.velocity, mix=forward.mix, advantage_clip=config.advantage.clip, **shared
        )
    return loss, {f"forward/{name}": value for name, value in asdict(stats).items()}
