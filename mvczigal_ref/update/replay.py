"""Replay of stored actions: their log-densities under today's parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion import gaussian
from mvczigal_ref.diffusion.sampler import Sampler, Transition, require_density
from mvczigal_ref.policy import (
    Conditioning,
    Policy,
    action_log_prob,
    network_output,
    step_transition,
)
from mvczigal_ref.records import ActionReduction, GroupDecision, Trajectory

__all__ = [
    "GroupUpdateSettings",
    "ReplaySettings",
    "StepLogProb",
    "UpdateSettings",
    "decision_under",
    "member_transition",
    "replay_decision",
    "replay_log_prob",
    "require_counts",
    "score_members",
]

StepLogProb = Float[Tensor, "step object view"]
"""One log-density per step, object and view [nats or nats/element]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplaySettings:
    """Settings of a replay, and of the parameter changes that it makes."""

    epochs: int = 1
    """Passes over an iteration's samples."""

    optimizer_steps: int = 1
    """Parameter changes per pass; divides the slices."""

    max_grad_norm: float = 5.0
    """Largest Euclidean norm of the gradient [gradient units]."""

    scale_growth_interval: int = 2000
    """Finite gradients after which a loss scale doubles [optimiser steps]."""

    clip_range: float = 1e-2
    """Largest log-ratio that does not count as clipped [nats or nats/element]."""

    guidance_scale: float
    """Strength of the prompt, as in the rollout [1]."""

    camera_scale: float = 1.0
    """Strength of the camera features, as in the rollout [1]."""

    reduction: ActionReduction = "mean"
    """Reduction of a log-density over a latent's elements, as in the rollout."""

    def __post_init__(self) -> None:
        """Refuse an update that would train nothing."""
        require_counts(
            epochs=self.epochs,
            optimizer_steps=self.optimizer_steps,
            scale_growth_interval=self.scale_growth_interval,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateSettings(ReplaySettings):
    """Settings of a replay of stored pairs, and of the cuts that it is made in."""

    steps: Sequence[int]
    """Sampling steps whose actions are trained; at least one."""

    steps_per_microbatch: int = 1
    """Steps replayed in one network call; 1 keeps the first ratio exactly 1."""

    objects_per_microbatch: int | None = None
    """Objects replayed in one network call; None is the rollout's slice, the only value with a
    first ratio of exactly 1."""

    joint_density: bool = False
    """Whether log-ratios are summed over the views of an object before they are clipped."""

    joint_from: int | None = None
    """First sampling step from which both arms are replayed in one network call; None is never."""

    def __post_init__(self) -> None:
        """Refuse an update that would train nothing."""
        if not self.steps:
            msg = (
                "`steps` must name at least one sampling step; got none. A grid of one step has "
                "only its last action to train."
            )
            raise ValueError(msg)
        ReplaySettings.__post_init__(self)
        require_counts(
            steps_per_microbatch=self.steps_per_microbatch,
            objects_per_microbatch=self.objects_per_microbatch,
        )


def require_counts(**counts: int | None) -> None:
    """Refuse a count below 1; None stands for all there are.

    Args:
        **counts: Numbers by the name of their argument.

    Raises:
        ValueError: If one is below 1; names it.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            msg = f"`{name}` must be at least 1; got {count}."
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupUpdateSettings(ReplaySettings):
    """Settings of a replay of groups' decisions, and of the cuts that it is made in."""

    nodes_per_call: int | None = None
    """Parents of every prompt in one network call, as in the rollout; None is all."""

    step_per_decision: bool = False
    """Whether the parameters change after each decision, from noise to image, and not once."""

    by_sequence: bool = False
    """Whether the objective reads the mean log-ratio of whole trajectories."""

    def __post_init__(self) -> None:
        """Refuse calls of nothing."""
        ReplaySettings.__post_init__(self)
        require_counts(nodes_per_call=self.nodes_per_call)


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
        trajectory: Trajectory of the objects in ``conditioning``.
        steps: Steps to score, in any order, all in one network call.
        conditioning: Text and cameras of the objects.
        guidance_scale: As in the rollout [1].
        camera_scale: As in the rollout [1].
        reduction: As in the rollout.

    Returns:
        Log-densities [nats or nats/element]. Gradient flows to the policy.

    Raises:
        ValueError: If a step is outside the trajectory, or drew no noise and has no density.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
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


def member_transition(
    policy: Policy,
    sampler: Sampler,
    decision: GroupDecision,
    conditioning: Conditioning,
    *,
    settings: ReplaySettings,
) -> Transition:
    """Make every member's Gaussian, with one network call at the parents' states.

    Args:
        policy: The network.
        sampler: The kernel that drew the members.
        decision: Decision of the prompts in ``conditioning``.
        conditioning: The prompts, or other captions in their place.
        settings: Guidance, as in the rollout.

    Returns:
        Entries of shape ``(member, prompt, view)``. Gradient flows to the policy.
    """
    state, steps = decision.network_state(), decision.network_steps()
    output = network_output(
        policy,
        sampler,
        state,
        steps,
        conditioning,
        guidance_scale=settings.guidance_scale,
        camera_scale=settings.camera_scale,
    )
    by_parent = step_transition(sampler, output, state, steps)
    mean = decision.members_of(by_parent.mean)
    std = by_parent.std
    if decision.std_factor != 1.0:
        std = std * decision.std_factor
    return Transition(
        mean=mean,
        std=decision.members_of(std).expand(mean.shape[:3]),
        denoised=decision.members_of(by_parent.denoised),
    )


def score_members(
    sampler: Sampler, decision: GroupDecision, transition: Transition, *, settings: ReplaySettings
) -> Float[Tensor, "member prompt view"]:
    """Return the log-density of every action.

    Args:
        sampler: The kernel that drew the actions.
        decision: Holds the actions.
        transition: Gaussians of the actions, from :func:`member_transition`. Gradient flows.
        settings: The reduction, as in the rollout.

    Returns:
        Log-densities [nats or nats/element].
    """
    action = decision.action.transpose(0, 1).to(transition.mean.dtype)
    return action_log_prob(sampler, action, transition, reduction=settings.reduction)


def replay_decision(
    policy: Policy,
    sampler: Sampler,
    decision: GroupDecision,
    conditioning: Conditioning,
    *,
    settings: ReplaySettings,
    nodes_per_call: int | None = None,
) -> Float[Tensor, "prompt member view"]:
    r"""Score stored actions under the present parameters and a condition.

    .. math:: \log p_\theta(x_{t-1}^i | x_t^i, c_k)

    Source:
        arXiv:2603.12648 (MV-GRPO), whose ratios hold both densities under one condition, of
        actions that another one drew. Under the prompt itself, on the rollout's own slices,
        the result is the stored number bit for bit.

    Args:
        policy: The network.
        sampler: The kernel that drew the actions.
        decision: Decision of the prompts in ``conditioning``.
        conditioning: The prompts, or other captions in their place.
        settings: Guidance and reduction, as in the rollout.
        nodes_per_call: Parents of every prompt that go through the network together, as in the
            rollout; None is all.

    Returns:
        Log-densities as the decision holds them. Gradient flows to the policy.

    Examples:
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> zero, components = torch.zeros(1, 2, 6, 4, 8, 8), tiny_components(seed=0)
        >>> replay_decision(
        ...     components.policy,
        ...     LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000)),
        ...     GroupDecision(
        ...         step=0, depth=0, state=zero, action=zero, log_prob=zero[..., 0, 0, 0]
        ...     ),
        ...     components.build_conditioning(["a red cube"], PAPER_RIG, image_size=32),
        ...     settings=ReplaySettings(guidance_scale=7.0),
        ... ).shape
        torch.Size([1, 2, 6])
    """
    return _replayed(policy, sampler, decision, conditioning, settings, nodes_per_call)[0]


@torch.no_grad()
def decision_under(
    policy: Policy,
    sampler: Sampler,
    decision: GroupDecision,
    conditioning: Conditioning,
    *,
    settings: ReplaySettings,
    nodes_per_call: int | None = None,
) -> GroupDecision:
    r"""Give stored actions the density and the mean that another condition gives them.

    .. math:: \log p_{\theta'}(x_{t-1}^i | x_t^i, c_k), \qquad \mu_{\theta'}(x_t^i, c_k)

    Source:
        arXiv:2603.12648 (MV-GRPO): whatever compares policies under a caption, the ratio and
        GRPO-Guard's shift of it, has both sides under that caption.

    Args:
        policy: The network that drew the actions, unchanged since.
        sampler: The kernel that drew them.
        decision: Decision of the prompts in ``conditioning``.
        conditioning: Other captions in the prompts' place.
        settings: Guidance and reduction, as in the rollout.
        nodes_per_call: As in :func:`replay_decision`.

    Returns:
        States and actions as they were, with ``log_prob``, and ``mean`` where one is stored,
        under the condition; detached.
    """
    log_prob, mean = _replayed(policy, sampler, decision, conditioning, settings, nodes_per_call)
    return replace(decision, log_prob=log_prob, mean=None if decision.mean is None else mean)


def _replayed(
    policy: Policy,
    sampler: Sampler,
    decision: GroupDecision,
    conditioning: Conditioning,
    settings: ReplaySettings,
    nodes_per_call: int | None,
) -> tuple[Float[Tensor, "prompt member view"], Float[Tensor, "prompt parent view c h w"]]:
    """Score every action, and give the mean at every parent."""
    scores, means = [], []
    for part in decision.split(nodes_per_call):
        transition = member_transition(policy, sampler, part, conditioning, settings=settings)
        scores.append(score_members(sampler, part, transition, settings=settings))
        means.append(transition.mean[:: part.branches])
    return torch.cat(scores).transpose(0, 1), torch.cat(means).transpose(0, 1)
