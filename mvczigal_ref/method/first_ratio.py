"""First ratio of a slice that is sampled ahead, checked while its policy is still there."""

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.records import Samples
from mvczigal_ref.system import System
from mvczigal_ref.update.loop import require_ratio_of_one
from mvczigal_ref.update.replay import replay_decision, replay_log_prob

__all__ = ["first_log_ratio", "require_first_ratio"]


def require_first_ratio(
    system: System, samples: Samples, conditioning: Conditioning, config: TrainConfig, place: str
) -> None:
    """Refuse samples that replay does not reproduce; one network call, without gradient.

    The update cannot ask this of samples drawn ahead, since its parameters are not theirs.

    Args:
        system: Network with the parameters that sampled, and sampler.
        samples: One slice's, just drawn.
        conditioning: Text and cameras of its prompts.
        config: The run.
        place: Slice that this is, for the message.

    Raises:
        ReplayMismatchError: If the first ratio is not exactly 1.
    """
    log_ratio = first_log_ratio(system, samples, conditioning, config)
    if log_ratio is not None:
        deviation = float(log_ratio.abs().max())
        if deviation == deviation:  # decoding names non-finite latents
            require_ratio_of_one(deviation, place)


@torch.no_grad()
def first_log_ratio(
    system: System,
    samples: Samples,
    conditioning: Conditioning,
    config: TrainConfig,
    *,
    policy: Policy | None = None,
) -> Tensor | None:
    """Replay the first network call of a slice whose actions are trained.

    Args:
        system: Network with the parameters that sampled, and sampler.
        samples: One slice's.
        conditioning: Text and cameras of its prompts.
        config: Guidance, reduction and cuts are read.
        policy: Called in place of the system's, if given.

    Returns:
        Log-ratios of its actions, 0 where replay is right [nats or nats/element]; None where no
        density is trained.
    """
    network = system.policy if policy is None else policy
    if config.objective.prefers_noise:
        return None
    if samples.pair is not None:
        arm = samples.pair.zigzag
        score = replay_log_prob(
            network, system.sampler, arm, [0], conditioning,
            guidance_scale=config.sampler.guidance_scale,
            camera_scale=config.sampler.camera_scale, reduction=config.objective.reduction,
        )  # fmt: skip
        return score - arm.log_prob[:1]
    if not samples.decisions:
        return None
    settings = group_update_settings(config)
    decision = samples.decisions[0].split(settings.nodes_per_call)[0]
    score = replay_decision(network, system.sampler, decision, conditioning, settings=settings)
    return score - decision.log_prob
