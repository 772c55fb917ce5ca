"""Score the actions of one stochastic step of a group, under any condition."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion import gaussian
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.group_records import GroupDecision
from mvczigal_ref.policy import Policy, network_output, step_transition
from mvczigal_ref.records import Conditioning
from mvczigal_ref.update.batch import ReplaySettings

__all__ = ["decision_under", "member_transition", "replay_decision", "score_members"]


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
        decision: Of the prompts in ``conditioning``.
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
    found = step_transition(sampler, output, state, steps)
    mean = decision.members_of(found.mean)
    return Transition(
        mean=mean,
        std=decision.members_of(found.std).expand(mean.shape[:3]),
        denoised=decision.members_of(found.denoised),
    )


def score_members(
    decision: GroupDecision, transition: Transition, *, settings: ReplaySettings
) -> Float[Tensor, "member prompt view"]:
    """Return the log-density of every action.

    Args:
        decision: Holds the actions.
        transition: Their Gaussians, from :func:`member_transition`. Gradient flows.
        settings: The reduction, as in the rollout.

    Returns:
        Log-densities [nats or nats/element].
    """
    action = decision.action.transpose(0, 1).to(transition.mean.dtype)
    return gaussian.log_prob(
        action, mean=transition.mean, std=transition.std, reduction=settings.reduction
    )


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
        decision: Of the prompts in ``conditioning``.
        conditioning: The prompts, or other captions in their place.
        settings: Guidance and reduction, as in the rollout.
        nodes_per_call: Parents of every prompt that go through the network together, as in the
            rollout; None is all.

    Returns:
        Log-densities as the decision holds them. Gradient flows to the policy.

    Examples:
        >>> from mvczigal_ref.diffusion.sampler import LcmSampler
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
        decision: Of the prompts in ``conditioning``.
        conditioning: Other captions in the prompts' place.
        settings: Guidance and reduction, as in the rollout.
        nodes_per_call: As in :func:`replay_decision`.

    Returns:
        The same states and actions, with ``log_prob``, and ``mean`` where one is kept, under
        the condition; detached.
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
        found = member_transition(policy, sampler, part, conditioning, settings=settings)
        scores.append(score_members(part, found, settings=settings))
        means.append(found.mean[:: part.branches])
    return torch.cat(scores).transpose(0, 1), torch.cat(means).transpose(0, 1)
