"""Group rollouts: the ODE outside a window, stochastic steps inside, and trees."""

from typing import Literal, get_args

import torch

from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.precision import require_choice, require_positive
from mvczigal_ref.diffusion.sampler import Sampler, require_density
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.records import ActionReduction, GroupTrajectory
from mvczigal_ref.rollout.finish import compressed_tail
from mvczigal_ref.rollout.group_plan import GroupPlan
from mvczigal_ref.rollout.nodes import (
    NodeStep,
    check_settings,
    draw_decision,
    initial_nodes,
    without_noise,
)
from mvczigal_ref.rollout.noise import SeededNoise

__all__ = ["SplitDensity", "group_rollout"]

SplitDensity = Literal["drawn", "kernel"]
"""Density that scores an action where a group divides by wider noise: that of the noise, or the
kernel's."""


@torch.no_grad()
def group_rollout(
    policy: Policy,
    sampler: Sampler,
    conditioning: Conditioning,
    noise: SeededNoise,
    plan: GroupPlan,
    *,
    guidance_scale: float,
    camera_scale: float = 1.0,
    storage_dtype: torch.dtype = torch.float32,
    reduction: ActionReduction = "mean",
    nodes_per_call: int | None = None,
    keep_mean: bool = False,
    tail_share: float = 1.0,
    split_noise: float = 1.0,
    split_density: SplitDensity = "drawn",
) -> GroupTrajectory:
    r"""Sample every prompt's group along the branches of a plan.

    .. math::
        x_{t-1}^{n b} \sim \mathcal{N}(\mu_\theta(x_t^n), \sigma_t^2 I) \ (t \in W),\qquad
        x_{t-1}^n = x_t^n - (s_t - s_{t-1})\, v_\theta(x_t^n) \ (t \notin W)

    with :math:`W` the stochastic steps and :math:`b` the branches of node :math:`n` there; the
    second is Euler's step, to which a sampler with ``ode="dpm2m"`` adds its correction.

    Source:
        arXiv:2505.05470 (Flow-GRPO and its Fast form), 2505.07818 (DanceGRPO), 2507.21802
        (MixGRPO), 2509.06040 (BranchGRPO): they differ in the plan and the kernel. Ours: what
        members share is computed and stored once; a state and its action are rounded to the
        storage dtype and scored after, while steps of the ODE, which nobody scores, are not
        rounded.

    Args:
        policy: The network.
        sampler: Grid and transition kernel; a :class:`FlowSampler`, or any other whose noise
            all steps draw.
        conditioning: Text and cameras of the prompts that ``noise`` names.
        noise: Initial noise, and step noise of every member.
        plan: Places where groups divide, and steps that draw noise.
        guidance_scale: Strength of the prompt [1].
        camera_scale: Strength of the camera features [1].
        storage_dtype: Dtype of stored latents.
        reduction: Reduction of the log-density over channels, height and width: "mean"
            [nats/element] or "sum" [nats].
        nodes_per_call: Nodes of every prompt that go through the network together; None is
            all. Other cuts may round differently.
        keep_mean: Whether decisions keep the means that their actions were drawn around.
        tail_share: Share of the steps after the last stochastic one that is taken, see
            :func:`compressed_tail` [1]; less than 1 with a flow's sampler alone.
        split_noise: Factor on the kernel's standard deviation where a group divides [1];
            positive. BranchGRPO's released script has 4.
        split_density: Density of such an action: that of the noise that was drawn, or that of the
            kernel, as in BranchGRPO's released trainer.

    Returns:
        Decisions at the stochastic steps and final latents, without gradient; ``num_steps``
        network calls less those that the tail leaves out, the one at step t on ``plan.nodes[t]``
        rows per prompt and view.

    Raises:
        ValueError: If the plan is of another grid, a stochastic step has no spread, a step has
            no deterministic form and draws no noise, groups divide where no image shows it,
            or ``conditioning`` is not of the noise's prompts.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.diffusion.flow_sampler import FlowSampler
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> components = tiny_components(seed=0)
        >>> sigmas = torch.tensor([1.0, 0.75, 0.5, 0.0])
        >>> trajectory = group_rollout(
        ...     components.policy,
        ...     FlowSampler.create(sigmas=sigmas, kernel="sde", noise_scale=0.7),
        ...     components.build_conditioning(["a red cube"], PAPER_RIG, image_size=32),
        ...     SeededNoise(seed=0, iteration=0, objects=[0], shape=(6, 4, 8, 8)),
        ...     GroupPlan.group(2, stochastic_steps=(1,), num_steps=3, shared_noise=True),
        ...     guidance_scale=7.0,
        ... )
        >>> (decision,) = trajectory.decisions
        >>> decision.state.shape[:3], decision.action.shape[:3], trajectory.denoised.shape[:3]
        (torch.Size([1, 1, 6]), torch.Size([1, 2, 6]), torch.Size([1, 2, 6]))
    """
    check_settings(conditioning, noise, reduction=reduction)
    require_positive(split_noise=split_noise)
    require_choice("split_density", split_density, get_args(SplitDensity))
    ode = _deterministic_part(sampler, plan)
    walk = NodeStep(
        policy=policy,
        conditioning=conditioning,
        guidance_scale=guidance_scale,
        camera_scale=camera_scale,
        nodes_per_call=nodes_per_call,
    )
    latent = initial_nodes(noise, plan.paths(0), storage_dtype=storage_dtype)
    wide, memory = latent.dtype, None
    decisions = []
    tail = _tail_start(sampler, plan, tail_share)
    for step in range(tail):
        if step not in plan.stochastic_steps:
            output = walk.output(sampler, latent, step)
            transition, memory = walk.follow(ode, output, latent, step, memory)
            latent = transition.mean
            continue
        memory = None  # a prediction before the noise says nothing of the latents after it
        state = latent.to(storage_dtype)
        output = walk.output(sampler, state, step)
        transition = walk.transition(sampler, output, state, step)
        factor = split_noise if plan.widths[step] > 1 else 1.0
        decision = draw_decision(
            sampler,
            state,
            transition,
            noise.members(plan.paths(step + 1), "group", step),
            step=step,
            depth=plan.depth(step),
            reduction=reduction,
            keep_mean=keep_mean,
            noise_factor=factor,
            std_factor=factor if split_density == "drawn" else 1.0,
        )
        decisions.append(decision)
        latent = decision.action.transpose(0, 1).to(wide)
    if isinstance(sampler, FlowSampler) and tail < plan.num_steps:
        image = walk.finish(compressed_tail(sampler, start=tail, share=tail_share), latent)
    else:
        image = transition.denoised if sampler.last_action_is_image_independent else latent
    return GroupTrajectory(
        decisions=tuple(decisions),
        denoised=image.transpose(0, 1),
        branching=plan.branching,
    )


def _tail_start(sampler: Sampler, plan: GroupPlan, share: float) -> int:
    """Find the step from which the ODE's steps are fewer; the grid's end where none are."""
    if share == 1.0:
        return plan.num_steps
    if not isinstance(sampler, FlowSampler):
        name = type(sampler).__name__
        msg = f"`tail_share` must be 1.0 where the sampler is no flow's; got {share!r} with {name}."
        raise ValueError(msg)  # noqa: TRY004 - the share is what does not fit
    return max(plan.stochastic_steps, default=-1) + 1


def _deterministic_part(sampler: Sampler, plan: GroupPlan) -> Sampler:
    """Check a plan against the sampler, and return what the steps without noise follow."""
    if plan.num_steps != sampler.num_steps:
        msg = (
            f"`plan` must be of the sampler's {sampler.num_steps} steps; got one of "
            f"{plan.num_steps}."
        )
        raise ValueError(msg)
    require_density("plan.stochastic_steps", plan.stochastic_steps, sampler)
    unseen = sampler.last_action_is_image_independent
    if unseen and plan.widths[-1] > 1:
        msg = (
            f"`plan` must not divide groups at the last step, {plan.num_steps - 1}: this "
            "sampler's image is the clean prediction before it, equal for all branches."
        )
        raise ValueError(msg)
    acting = range(plan.num_steps - unseen)
    every = all(step in plan.stochastic_steps for step in acting)
    return sampler if every else without_noise(sampler)
