"""Single stochastic steps off a deterministic trunk, each finished by the ODE.

The image of a branch differs from its siblings' by one step's noise alone, so its reward is that
step's. A branch may be finished on several grids, coarser ones by longer strides.
"""

from collections.abc import Sequence
from functools import partial

import torch

from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.sampler import require_density
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.records import ActionReduction, BranchTrajectory
from mvczigal_ref.rollout.finish import LastStride, finishing_sampler, require_strides
from mvczigal_ref.rollout.group_plan import require_at_least, require_steps
from mvczigal_ref.rollout.nodes import (
    NodeStep,
    check_settings,
    draw_decision,
    initial_nodes,
)
from mvczigal_ref.rollout.noise import SeededNoise

__all__ = ["branched_rollout"]


@torch.no_grad()
def branched_rollout(
    policy: Policy,
    sampler: FlowSampler,
    conditioning: Conditioning,
    noise: SeededNoise,
    *,
    steps: Sequence[int],
    branches: int,
    num_trunks: int = 1,
    strides: Sequence[int] = (1,),
    fine_steps: int = 0,
    last_stride: LastStride = "short",
    guidance_scale: float,
    camera_scale: float = 1.0,
    storage_dtype: torch.dtype = torch.float32,
    reduction: ActionReduction = "mean",
    nodes_per_call: int | None = None,
    keep_mean: bool = False,
) -> BranchTrajectory:
    r"""Branch off trunks of the ODE at given steps, and finish every branch by the ODE.

    .. math::
        x_k^{trunk} = \mathrm{ODE}(x_T),\qquad
        x_{k+1}^b \sim \mathcal{N}(\mu_\theta(x_k^{trunk}), \sigma_k^2 I),\qquad
        x_0^{k b g} = \mathrm{ODE}_g(x_{k+1}^b)

    Source:
        arXiv:2508.04324 (TempFlow-GRPO): every step, 4 trunks of 6 branches, stride 1.
        arXiv:2510.01982 (Granular-GRPO): steps 0 to 7, one trunk, strides 1 and 2. One network
        call at a trunk's state serves its own step and all of its branches. A trunk's state is
        rounded to the storage dtype where it branches, for it is stored there, and goes on so.

    Args:
        policy: The network.
        sampler: Grid and noise of the branches.
        conditioning: Text and cameras of the prompts that ``noise`` names.
        noise: Initial noise of every trunk, and noise of every branch: that of the group
            rollout which divides at the same step.
        steps: Steps that branch, increasing; none where the image is read off before the action.
        branches: Branches of every trunk at each of ``steps``.
        num_trunks: Trunks of every prompt, each with its own initial noise.
        strides: Finishing strides, each a grid of :func:`finishing_sampler`.
        fine_steps: Steps of the grid itself before them.
        last_stride: End of a grid where a stride does not fit, see :func:`finishing_sampler`.
        guidance_scale: Strength of the prompt [1].
        camera_scale: Strength of the camera features [1].
        storage_dtype: Dtype of stored latents.
        reduction: Reduction of the log-density over channels, height and width: "mean"
            [nats/element] or "sum" [nats].
        nodes_per_call: Nodes of every prompt that go through the network together; None is
            all. Other cuts may round differently.
        keep_mean: Whether decisions keep the means that their actions were drawn around.

    Returns:
        One decision per branching step, and the final latents of every branch and stride, without
        gradient; ``steps[-1] + 1`` network calls for the trunks, and one per step of every
        :func:`finishing_sampler` for all branches of its step.

    Raises:
        ValueError: If a step has no spread or no image shows its noise, a number is out of its
            range, or ``conditioning`` is not of the noise's prompts.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> components = tiny_components(seed=0)
        >>> sigmas = torch.tensor([1.0, 0.75, 0.5, 0.0])
        >>> record = branched_rollout(
        ...     components.policy,
        ...     FlowSampler.create(sigmas=sigmas, kernel="sde", noise_scale=0.7),
        ...     components.build_conditioning(["a red cube"], PAPER_RIG, image_size=32),
        ...     SeededNoise(seed=0, iteration=0, objects=[0], shape=(6, 4, 8, 8)),
        ...     steps=(1,),
        ...     branches=2,
        ...     strides=(1, 2),
        ...     guidance_scale=7.0,
        ... )
        >>> record.denoised.shape
        torch.Size([1, 2, 1, 2, 6, 4, 8, 8])
    """
    check_settings(conditioning, noise, reduction=reduction)
    require_at_least(1, branches=branches, num_trunks=num_trunks)
    require_steps("steps", steps, num_steps=sampler.num_steps)
    if not steps:
        msg = "`steps` must hold a step that branches; got none."
        raise ValueError(msg)
    require_strides(strides, fine_steps)
    require_density("steps", steps, sampler)
    last = sampler.num_steps - 1
    if sampler.last_action_is_image_independent and steps[-1] == last:
        msg = (
            f"`steps` must not hold the last step, {last}: this sampler's image is the clean "
            "prediction before it, equal for all branches."
        )
        raise ValueError(msg)
    walk = NodeStep(
        policy=policy,
        conditioning=conditioning,
        guidance_scale=guidance_scale,
        camera_scale=camera_scale,
        nodes_per_call=nodes_per_call,
    )
    ode = sampler.deterministic()
    trunks = [(trunk,) for trunk in range(num_trunks)]
    latent = initial_nodes(noise, trunks, storage_dtype=storage_dtype)
    wide, memory = latent.dtype, None
    decisions, finished = [], []
    for step in range(steps[-1] + 1):
        state = latent.to(storage_dtype) if step in steps else latent
        output = walk.output(sampler, state, step)
        followed, memory = walk.follow(ode, output, state, step, memory)
        latent = followed.mean
        if step not in steps:
            continue
        # The names that a group's members have which divides at this step.
        paths = [(*trunk, *(0,) * step, branch) for trunk in trunks for branch in range(branches)]
        decision = draw_decision(
            sampler,
            state,
            walk.transition(sampler, output, state, step),
            noise.members(paths, "group", step),
            step=step,
            depth=0,
            reduction=reduction,
            keep_mean=keep_mean,
        )
        action = decision.action.transpose(0, 1).to(wide)
        images = [action] * len(strides)
        if step < last:
            finish = partial(
                finishing_sampler, sampler, start=step + 1, fine_steps=fine_steps,
                last_stride=last_stride,
            )  # fmt: skip
            images = [walk.finish(finish(stride=stride), action) for stride in strides]
        decisions.append(decision)
        finished.append(torch.stack(images).transpose(1, 2))
    return BranchTrajectory(
        decisions=tuple(decisions), denoised=torch.stack(finished), num_trunks=num_trunks
    )
