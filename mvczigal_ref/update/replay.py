"""Score stored actions under the present parameters."""

from collections.abc import Sequence

import torch

from mvczigal_ref.diffusion import gaussian
from mvczigal_ref.diffusion.sampler import Sampler, require_density
from mvczigal_ref.policy import Policy, network_output, step_transition
from mvczigal_ref.records import ActionReduction, Conditioning, Trajectory
from mvczigal_ref.update.batch import StepLogProb

__all__ = ["replay_log_prob"]


def replay_log_prob(
    policy: Policy,
    sampler: Sampler,
    trajectory: Trajectory,
    steps: Sequence[int],
    conditioning: Conditioning,
    *,
    guidance_scale: float,
    camera_scale: float = 1.0,
    reduction: ActionReduction = "mean",
) -> StepLogProb:
    r"""Score stored actions under the present parameters, with gradient.

    .. math:: \log p_\theta(a_t | s_t) = \log \mathcal{N}(a_t; \mu_\theta(s_t), \sigma_t^2 I)

    Source:
        arXiv:2505.20107. Ours: the Gaussian is made by the function that sampled the actions,
        and a stored action was rounded before it was scored, so on the rollout's own slices
        the result is the stored number bit for bit.

    Args:
        policy: The network.
        sampler: The kernel that sampled the trajectory.
        trajectory: Of the objects in ``conditioning``.
        steps: Which steps, in any order, all in one network call.
        conditioning: Of the objects.
        guidance_scale: As in the rollout [1].
        camera_scale: As in the rollout [1].
        reduction: As in the rollout.

    Returns:
        Log-densities [nats or nats/element]. Gradient flows to the policy.

    Raises:
        ValueError: If a step is outside the trajectory, or drew no noise and has no density.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.diffusion.sampler import LcmSampler
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> components = tiny_components(seed=0)
        >>> zero = torch.zeros(2, 1, 6, 4, 8, 8)
        >>> log_prob = replay_log_prob(
        ...     components.policy,
        ...     LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000)),
        ...     Trajectory(state=zero, action=zero, log_prob=zero[..., 0, 0, 0], denoised=zero[0]),
        ...     [0, 1],
        ...     components.build_conditioning(["a red cube"], PAPER_RIG, image_size=32),
        ...     guidance_scale=7.0,
        ... )
        >>> log_prob.shape, log_prob.requires_grad
        (torch.Size([2, 1, 6]), True)
    """
    num_steps = trajectory.state.shape[0]
    wrong = [step for step in steps if not 0 <= step < num_steps]
    if wrong or not steps:
        msg = f"`steps` must be some of 0..{num_steps - 1}, the stored steps; got {list(steps)}."
        raise ValueError(msg)
    require_density("steps", steps, sampler)
    index = torch.tensor(list(steps), device=trajectory.state.device)
    # A run of steps is a view of what is stored; other choices are copied.
    run = list(steps) == list(range(steps[0], steps[0] + len(steps)))
    chosen = slice(steps[0], steps[-1] + 1) if run else index
    state, action = trajectory.state[chosen], trajectory.action[chosen]
    output = network_output(
        policy,
        sampler,
        state,
        index,
        conditioning,
        guidance_scale=guidance_scale,
        camera_scale=camera_scale,
    )
    transition = step_transition(sampler, output, state, index)
    return gaussian.log_prob(
        action.to(transition.mean.dtype),
        mean=transition.mean,
        std=transition.std,
        reduction=reduction,
    )
