"""Steps of many nodes at once: what rollouts of groups and of branches have in common.

Inside a rollout nodes come first, ``(node, prompt, view, c, h, w)``: they take the place of the
step axis of ``network_output``, all at one step, so a call knows each prompt once per node.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion import gaussian
from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.euler_ancestral import EulerAncestralSampler
from mvczigal_ref.diffusion.flow_dpm import OdeMemory
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.precision import require_choice
from mvczigal_ref.diffusion.sampler import Sampler, Transition
from mvczigal_ref.diffusion.tcd import TcdSampler
from mvczigal_ref.policy import (
    Conditioning,
    Policy,
    action_log_prob,
    network_output,
    step_transition,
)
from mvczigal_ref.records import ActionReduction, GroupDecision
from mvczigal_ref.rollout.noise import SeededNoise

__all__ = [
    "NodeLatent",
    "NodeStep",
    "check_settings",
    "draw_decision",
    "initial_nodes",
    "without_noise",
]

NodeLatent = Float[Tensor, "node prompt view c h w"]
"""Latents of some nodes of every prompt's group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeStep:
    """One network on some prompts, to step their nodes with."""

    policy: Policy
    """The network."""

    conditioning: Conditioning
    """Text and cameras of the prompts, once each."""

    guidance_scale: float
    """Strength of the prompt [1]."""

    camera_scale: float = 1.0
    """Strength of the camera features [1]."""

    nodes_per_call: int | None = None
    """Nodes that go through the network together; None is all of a step."""

    def __post_init__(self) -> None:
        """Refuse calls of no node."""
        if self.nodes_per_call is not None and self.nodes_per_call < 1:
            msg = f"`nodes_per_call` must be at least 1, or None; got {self.nodes_per_call}."
            raise ValueError(msg)

    def output(self, sampler: Sampler, latent: NodeLatent, step: int) -> NodeLatent:
        """Call the network for all nodes, ``nodes_per_call`` at a time.

        Args:
            sampler: Knows the step's timestep.
            latent: Latents that the network sees, in any floating dtype [1].
            step: Index into the grid.

        Returns:
            The guided prediction, fp32 or wider.
        """
        parts = [
            network_output(
                self.policy,
                sampler,
                part,
                _steps(part, step),
                self.conditioning,
                guidance_scale=self.guidance_scale,
                camera_scale=self.camera_scale,
            )
            for part in latent.split(self.nodes_per_call or len(latent))
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def transition(
        self, sampler: Sampler, output: NodeLatent, latent: NodeLatent, step: int
    ) -> Transition:
        """Make every node's Gaussian of the network's output.

        Args:
            sampler: The transition kernel.
            output: Prediction that :meth:`output` returned at ``latent``.
            latent: Latents that the network saw [1].
            step: Index into the grid.

        Returns:
            As :func:`~mvczigal_ref.policy.step_transition`, one entry per node.
        """
        return step_transition(sampler, output, latent, _steps(latent, step))

    def follow(
        self,
        sampler: Sampler,
        output: NodeLatent,
        latent: NodeLatent,
        step: int,
        memory: OdeMemory | None,
    ) -> tuple[Transition, OdeMemory | None]:
        """Take a step without noise, by the solver that a flow's sampler names.

        Args:
            sampler: Deterministic sampler, from :func:`without_noise`.
            output: Prediction that :meth:`output` returned at ``latent``.
            latent: Latents that the network saw [1].
            step: Index into the grid.
            memory: From the step before, if that drew no noise either.

        Returns:
            One entry per node, whose means are followed, and the memory for the step after.
        """
        if not isinstance(sampler, FlowSampler):
            return self.transition(sampler, output, latent, step), None
        steps = _steps(latent, step)[:, None, None]
        return sampler.follow(output, latent.to(output.dtype), steps, memory)

    def finish(self, sampler: Sampler, latent: NodeLatent) -> NodeLatent:
        """Follow a deterministic sampler to the end of its grid, one call per step.

        Args:
            sampler: Sampler whose means are followed.
            latent: At its first step [1].

        Returns:
            Final latents, as the sampler reads them off its last step [1].
        """
        memory = None
        for step in range(sampler.num_steps):
            output = self.output(sampler, latent, step)
            transition, memory = self.follow(sampler, output, latent, step, memory)
            latent = transition.mean
        return transition.denoised if sampler.last_action_is_image_independent else latent


def initial_nodes(
    noise: SeededNoise, paths: Sequence[tuple[int, ...]], *, storage_dtype: torch.dtype
) -> NodeLatent:
    """Draw every root's initial noise.

    Args:
        noise: Noise of the prompts.
        paths: One per root.
        storage_dtype: Dtype of the latents that will be stored.

    Returns:
        Standard normal, in fp32 or in a wider ``storage_dtype`` [1].
    """
    return noise.members(paths, "initial").to(torch.promote_types(storage_dtype, torch.float32))


def draw_decision(
    sampler: Sampler,
    state: NodeLatent,
    transition: Transition,
    noise: Float[Tensor, "member prompt view c h w"],
    *,
    step: int,
    depth: int,
    reduction: ActionReduction,
    keep_mean: bool = False,
    noise_factor: float = 1.0,
    std_factor: float = 1.0,
) -> GroupDecision:
    """Draw the members of every node, round them as the state is, and score them.

    Args:
        sampler: Knows by which density an action is scored.
        state: Latents that the network saw, in the storage dtype [1].
        transition: Every node's Gaussian.
        noise: Standard normal, a multiple of the nodes, those of one node adjacent [1].
        step: Index into the grid.
        depth: Depth of the members, see :class:`GroupDecision`.
        reduction: Reduction of the log-density over channels, height and width: "mean"
            [nats/element] or "sum" [nats].
        keep_mean: Whether the record holds the Gaussians' means.
        noise_factor: Factor on the kernel's standard deviation where actions are drawn [1].
        std_factor: Factor on it in the density that scores them [1].

    Returns:
        The record of the step.
    """
    branches = noise.shape[0] // state.shape[0]
    mean = transition.mean.repeat_interleave(branches, dim=0)
    std = transition.std.repeat_interleave(branches, dim=0)
    action = gaussian.sample(mean, _times(std, noise_factor), noise).to(state.dtype)
    drawn_from = Transition(mean=mean, std=_times(std, std_factor), denoised=mean)
    log_prob = action_log_prob(sampler, action.to(mean.dtype), drawn_from, reduction=reduction)
    return GroupDecision(
        step=step,
        depth=depth,
        state=state.transpose(0, 1),
        action=action.transpose(0, 1),
        log_prob=log_prob.transpose(0, 1),
        mean=transition.mean.transpose(0, 1) if keep_mean else None,
        std_factor=std_factor,
    )


def check_settings(
    conditioning: Conditioning, noise: SeededNoise, *, reduction: ActionReduction
) -> None:
    """Refuse noise of other prompts, and a reduction that a decision cannot hold.

    Args:
        conditioning: Text and cameras of the prompts.
        noise: Noise of the same prompts.
        reduction: Reduction of the log-density.

    Raises:
        ValueError: If prompts or views differ in number, or ``reduction`` is unknown.
    """
    require_choice("reduction", reduction, get_args(ActionReduction))
    conditioned = conditioning.num_objects, conditioning.num_views
    named = len(noise.objects), noise.shape[0]
    if conditioned != named:
        msg = (
            f"`conditioning` must be of the prompts and views of `noise`, {named}; got "
            f"{conditioned}. Narrow it with `.objects`."
        )
        raise ValueError(msg)


def without_noise(sampler: Sampler) -> Sampler:
    """Return the deterministic sampler on the same grid.

    Args:
        sampler: A flow model's, DDIM, ancestral Euler, or TCD.

    Returns:
        The flow's ODE, or the other with ``eta`` 0; its means are to be followed.

    Raises:
        ValueError: If the sampler is none of these: consistency sampling renews the noise at every
            step and has no deterministic form.
    """
    if isinstance(sampler, FlowSampler | EulerAncestralSampler | TcdSampler):
        return sampler.deterministic()
    if isinstance(sampler, DdimSampler):
        return replace(sampler, eta=0.0)
    msg = (
        f"`sampler` must have a deterministic form where a step draws no noise; got "
        f"{type(sampler).__name__}. Draw noise at all of its steps."
    )
    raise ValueError(msg)


def _times(std: Tensor, factor: float) -> Tensor:
    return std if factor == 1.0 else std * factor


def _steps(latent: NodeLatent, step: int) -> Tensor:
    """Give every node the same step, without reading a device."""
    return torch.full((latent.shape[0],), step, device=latent.device)
