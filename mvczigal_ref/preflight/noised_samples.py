"""Trials on samples that are noised again: what the network says of them, and what it learns."""

import torch
from torch import Tensor

from mvczigal_ref.distributed import World
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.preflight.scaled_gradient import scaled_gradient
from mvczigal_ref.preflight.trial import Trial
from mvczigal_ref.training.state import initial_loss_scale
from mvczigal_ref.update.forward import (
    Elsewhere,
    ForwardBatch,
    ForwardObjective,
    NoisedSamples,
    update_forward,
)
from mvczigal_ref.update.replay import ReplaySettings

__all__ = ["learn_from", "predicted"]


def predicted(trial: Trial, batch: ForwardBatch, gradient: bool) -> Tensor:
    """Ask the network of samples at their first level.

    Args:
        trial: Run that is tried.
        batch: Samples.
        gradient: Whether the network keeps its graph.

    Returns:
        Output of every sample, without gradient.
    """
    latent_t, members = batch.noised(0), batch.clean.shape[0]
    with torch.set_grad_enabled(gradient):
        output: Tensor = trial.system.policy(
            latent_t.flatten(0, 2), torch.tensor(batch.timestep(0), device=latent_t.device),
            batch.conditioning.repeat(members) if members > 1 else batch.conditioning,
            guidance_scale=trial.config.sampler.guidance_scale,
            camera_scale=trial.config.sampler.camera_scale,
        )  # fmt: skip
    return output.detach().reshape(latent_t.shape)


def learn_from(
    trial: Trial,
    batch: ForwardBatch,
    objective: ForwardObjective,
    *,
    old: Elsewhere | None = None,
    reference: Elsewhere | None = None,
) -> float:
    """Leave the gradient of a loss in the parameters, see :meth:`Trial.learn`.

    Args:
        trial: Run that is tried.
        batch: One slice of samples.
        objective: Loss of the run.
        old: Parameters of the policy that sampled, where the loss reads it.
        reference: Parameters of the reference policy, where the loss reads it.

    Returns:
        The loss scale that the gradient was made with, before it was taken out [1].
    """
    config, system = trial.config, trial.system
    objects = config.run.objects_per_iteration / config.optim.optimizer_steps_per_epoch
    levels = min(config.forward.levels, system.sampler.num_steps)
    share = trial.objects / (objects * levels)
    settings = group_update_settings(config)
    one_step = ReplaySettings(
        guidance_scale=settings.guidance_scale, camera_scale=settings.camera_scale,
        max_grad_norm=float("inf"),
    )  # fmt: skip

    def shared(noised: NoisedSamples) -> tuple[Tensor, dict[str, Tensor]]:
        return share * objective(noised)[0], {}

    return scaled_gradient(
        system,
        initial_loss_scale(config),
        lambda optimizer, scale: update_forward(
            system.policy, optimizer, [batch], shared, parameters=list(system.trained().values()),
            world=World(), settings=one_step, old=old, reference=reference, loss_scale=scale,
        ),
    )  # fmt: skip
