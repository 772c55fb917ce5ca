"""Plain sampling of all views as one decision process."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion import gaussian
from mvczigal_ref.diffusion.gaussian import Reduction
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.policy import Policy, StepLatent, network_output, step_transition
from mvczigal_ref.records import Conditioning, Trajectory
from mvczigal_ref.rollout.noise import NoiseSource
from mvczigal_ref.shapes import ObjectLatent

__all__ = ["Recorder", "first_output", "standard_rollout"]


class Recorder:
    """Draws, rounds, scores and collects the actions of one arm.

    Args:
        storage_dtype: Dtype of stored latents; an action is rounded to it
            before it is scored, so that replay scores the very same numbers.
        reduction: Of the log-density over channels, height and width.
    """

    def __init__(self, *, storage_dtype: torch.dtype, reduction: Reduction) -> None:
        self.storage_dtype = storage_dtype
        self.reduction: Reduction = reduction
        self._states: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._log_probs: list[Tensor] = []

    def round(self, latent: ObjectLatent) -> ObjectLatent:
        """Round to the storage dtype."""
        return latent.to(self.storage_dtype)

    def act(self, transition: Transition, noise: ObjectLatent) -> ObjectLatent:
        """Draw an action and round it, unrecorded."""
        drawn = gaussian.sample(transition.mean[0], transition.std[0], noise)
        return self.round(drawn)

    def record(self, state: ObjectLatent, action: ObjectLatent, transition: Transition) -> None:
        """Score a rounded action and keep it."""
        log_prob = gaussian.log_prob(
            action[None].to(transition.mean.dtype),
            mean=transition.mean,
            std=transition.std,
            reduction=self.reduction,
        )
        self._states.append(state)
        self._actions.append(action)
        self._log_probs.append(log_prob[0])

    def trajectory(self, denoised: ObjectLatent) -> Trajectory:
        """Stack what was recorded."""
        return Trajectory(
            state=torch.stack(self._states),
            action=torch.stack(self._actions),
            log_prob=torch.stack(self._log_probs),
            denoised=denoised,
        )


def first_output(
    policy: Policy,
    sampler: Sampler,
    latent: ObjectLatent,
    conditioning: Conditioning,
    *,
    guidance_scale: float,
    camera_scale: float = 1.0,
) -> StepLatent:
    """Call the network at x_T: the call that both arms of a pair share.

    Args:
        policy: The network.
        sampler: The sampling grid.
        latent: x_T, already rounded to the storage dtype [1].
        conditioning: Of the same objects.
        guidance_scale: Strength of the prompt [1].
        camera_scale: Strength of the camera features [1].

    Returns:
        The guided prediction at step 0.
    """
    step = torch.zeros(1, dtype=torch.long, device=latent.device)
    with torch.no_grad():
        return network_output(
            policy, sampler, latent[None], step, conditioning,
            guidance_scale=guidance_scale, camera_scale=camera_scale,
        )  # fmt: skip


@torch.no_grad()
def standard_rollout(
    policy: Policy,
    sampler: Sampler,
    latent: ObjectLatent,
    conditioning: Conditioning,
    noise: NoiseSource,
    *,
    guidance_scale: float,
    camera_scale: float = 1.0,
    storage_dtype: torch.dtype = torch.float32,
    reduction: Reduction = "mean",
    shared_output: Float[Tensor, "1 object view c h w"] | None = None,
) -> Trajectory:
    r"""Sample one trajectory an object.

    .. math:: x_{t-1} \sim \mathcal{N}(\mu_\theta(x_t), \sigma_t^2 I), \quad t = T, \dots, 1

    Source:
        arXiv:2505.20107, the unified multi-view decision process: state all
        views at once, action all next views at once.

    Args:
        policy: The network.
        sampler: Grid and transition kernel.
        latent: x_T [1].
        conditioning: Of the same objects.
        noise: Step noise; draw 0 of every step is read.
        guidance_scale: Strength of the prompt [1].
        camera_scale: Strength of the camera features [1].
        storage_dtype: Dtype of stored latents.
        reduction: Of the log-density over channels, height and width.
        shared_output: The network's output at x_T, if already known.

    Returns:
        States, actions, log-densities and final latents; ``num_steps`` network
        calls, one fewer with ``shared_output``.
    """
    recorder = Recorder(storage_dtype=storage_dtype, reduction=reduction)
    state, transition = recorder.round(latent), None
    for step, index in enumerate(step_indices(sampler, latent.device)):
        output = shared_output if step == 0 else None
        if output is None:
            output = network_output(
                policy, sampler, state[None], index, conditioning,
                guidance_scale=guidance_scale, camera_scale=camera_scale,
            )  # fmt: skip
        transition = step_transition(sampler, output, state[None], index)
        action = recorder.act(transition, noise(step, 0))
        recorder.record(state, action, transition)
        state = action
    return recorder.trajectory(final_latent(sampler, state, transition))


def step_indices(sampler: Sampler, device: torch.device) -> Sequence[Tensor]:
    """Give every step's index as a tensor of one element."""
    return torch.arange(sampler.num_steps, device=device).split(1)


def final_latent(
    sampler: Sampler, action: ObjectLatent, transition: Transition | None
) -> ObjectLatent:
    """Choose what is decoded: the last denoised latent of LCM, the last action of DDIM."""
    if transition is not None and sampler.last_action_is_image_independent:
        return transition.denoised[0]
    return action
