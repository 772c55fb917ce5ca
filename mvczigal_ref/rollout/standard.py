"""Plain sampling of all views as one decision process."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion import gaussian
from mvczigal_ref.diffusion.precision import require_choice
from mvczigal_ref.diffusion.sampler import Sampler, Transition
from mvczigal_ref.policy import Conditioning, Policy, StepLatent, network_output, step_transition
from mvczigal_ref.records import ActionReduction, Trajectory
from mvczigal_ref.rollout.noise import NoiseSource
from mvczigal_ref.shapes import ObjectLatent

__all__ = ["Recorder", "first_output", "standard_rollout", "step_indices", "step_noise"]


class Recorder:
    """Draws, rounds, scores and collects the actions of one arm.

    Args:
        storage_dtype: Dtype of stored latents; an action is rounded to it
            before it is scored, so that replay scores the very same numbers.
        reduction: Reduction of the log-density over channels, height and width: "mean"
            [nats/element] or "sum" [nats].

    Raises:
        ValueError: If ``reduction`` is unknown, or would keep the elements apart.
    """

    def __init__(self, *, storage_dtype: torch.dtype, reduction: ActionReduction) -> None:
        require_choice("reduction", reduction, get_args(ActionReduction))
        self.storage_dtype = storage_dtype
        self.reduction: ActionReduction = reduction
        self._states: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._log_probs: list[Tensor] = []

    def round(self, latent: ObjectLatent) -> ObjectLatent:
        """Round to the storage dtype.

        Args:
            latent: In any floating dtype [1].

        Returns:
            The latent as it will be stored, and as the network sees it next.
        """
        return latent.to(self.storage_dtype)

    def act(self, transition: Transition, noise: ObjectLatent | None) -> ObjectLatent:
        """Draw an action and round it; it is not recorded yet.

        Args:
            transition: Gaussian of one step.
            noise: Standard normal [1]; None takes the mean.

        Returns:
            The rounded action.
        """
        if noise is None:
            return self.round(transition.mean[0])
        drawn = gaussian.sample(transition.mean[0], transition.std[0], noise)
        return self.round(drawn)

    def record(self, state: ObjectLatent, action: ObjectLatent, transition: Transition) -> None:
        """Score a rounded action and keep it.

        Args:
            state: Latents that the network saw, rounded [1].
            action: Latents that were drawn there, rounded [1].
            transition: The Gaussian that it was drawn from, not rounded.
        """
        log_prob = gaussian.log_prob(
            action[None].to(transition.mean.dtype),
            mean=transition.mean,
            std=transition.std,
            reduction=self.reduction,
        )
        self._states.append(state)
        self._actions.append(action)
        self._log_probs.append(log_prob[0])

    def trajectory(self, last: Transition, *, image_is_denoised: bool) -> Trajectory:
        """Stack what was recorded.

        Args:
            last: The last step's Gaussian.
            image_is_denoised: Whether the image is decoded from its denoised latent, as
                :attr:`Sampler.last_action_is_image_independent` says, or from the last action.

        Returns:
            The record of this arm.
        """
        action = torch.stack(self._actions)
        return Trajectory(
            state=torch.stack(self._states),
            action=action,
            log_prob=torch.stack(self._log_probs),
            denoised=last.denoised[0] if image_is_denoised else action[-1].to(last.mean.dtype),
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
        conditioning: Text and cameras of the same objects.
        guidance_scale: Strength of the prompt [1].
        camera_scale: Strength of the camera features [1].

    Returns:
        The guided prediction at step 0, without gradient.
    """
    with torch.no_grad():
        return network_output(
            policy,
            sampler,
            latent[None],
            step_indices(sampler, latent.device)[0],
            conditioning,
            guidance_scale=guidance_scale,
            camera_scale=camera_scale,
        )


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
    reduction: ActionReduction = "mean",
    shared_output: Float[Tensor, "1 object view c h w"] | None = None,
    steps: range | None = None,
) -> Trajectory:
    r"""Sample one trajectory per object.

    .. math:: x_{t-1} \sim \mathcal{N}(\mu_\theta(x_t), \sigma_t^2 I), \quad t = T, \dots, 1

    and :math:`x_{t-1} = \mu_\theta(x_t)` where a step draws no noise, as DDIM's at ``eta`` 0.

    Source:
        arXiv:2505.20107, the unified multi-view decision process: state all
        views at once, action all next views at once. Ours: an action is rounded to
        the storage dtype and scored after.

    Args:
        policy: The network.
        sampler: Grid and transition kernel.
        latent: x_T, or the state at the first of ``steps`` [1].
        conditioning: Text and cameras of the same objects.
        noise: Step noise; draw 0 of every step is read.
        guidance_scale: Strength of the prompt [1].
        camera_scale: Strength of the camera features [1].
        storage_dtype: Dtype of stored latents.
        reduction: Reduction of the log-density over channels, height and width: "mean"
            [nats/element] or "sum" [nats].
        shared_output: The network's output at x_T, if it has been computed.
        steps: Adjacent steps to take; None is all.

    Returns:
        States, actions, log-densities (NaN where a step draws no noise) and final latents,
        without gradient; ``num_steps`` network calls, one fewer with ``shared_output``.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> from mvczigal_ref.rollout.noise import SeededNoise
        >>> components = tiny_components(seed=0)
        >>> noise = SeededNoise(seed=0, iteration=0, objects=[0], shape=(6, 4, 8, 8))
        >>> trajectory = standard_rollout(
        ...     components.policy,
        ...     LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000)),
        ...     noise.initial(),
        ...     components.build_conditioning(["a red cube"], PAPER_RIG, image_size=32),
        ...     noise.arm("standard"),
        ...     guidance_scale=7.0,
        ... )
        >>> trajectory.action.shape
        torch.Size([2, 1, 6, 4, 8, 8])
    """
    denoise = partial(
        network_output,
        policy,
        sampler,
        conditioning=conditioning,
        guidance_scale=guidance_scale,
        camera_scale=camera_scale,
    )
    recorder = Recorder(storage_dtype=storage_dtype, reduction=reduction)
    state = recorder.round(latent)
    draw_noise = step_noise(sampler, noise)
    indices = step_indices(sampler, latent.device)
    for step in range(sampler.num_steps) if steps is None else steps:
        index = indices[step]
        shared = shared_output if step == 0 else None
        output = denoise(state[None], index) if shared is None else shared
        transition = step_transition(sampler, output, state[None], index)
        action = recorder.act(transition, draw_noise(step, 0))
        recorder.record(state, action, transition)
        state = action
    return recorder.trajectory(
        transition, image_is_denoised=sampler.last_action_is_image_independent
    )


def step_noise(sampler: Sampler, noise: NoiseSource) -> Callable[[int, int], ObjectLatent | None]:
    """Draw noise where a step has a spread, and nothing where it has none.

    Args:
        sampler: Knows which steps have a spread.
        noise: Step noise.

    Returns:
        A function of step and draw, None where the step takes its mean.
    """
    return lambda step, draw: noise(step, draw) if step < sampler.num_density_steps else None


def step_indices(sampler: Sampler, device: torch.device) -> Sequence[Tensor]:
    """Give every step's index as a tensor of one element, all moved to the device at once.

    Args:
        sampler: The sampling grid.
        device: Device of the latents.

    Returns:
        ``num_steps`` tensors, 0 the noisiest.
    """
    indices = torch.arange(sampler.num_steps, device=device)
    return [indices[step : step + 1] for step in range(sampler.num_steps)]
