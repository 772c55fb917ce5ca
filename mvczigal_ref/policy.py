"""A network as the rest of the package sees it, and one step's Gaussian made from it.

Sampling and replay both call :func:`step_transition`, so on equal slices they
compute the same bits.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.records import Conditioning
from mvczigal_ref.shapes import Latent

__all__ = ["Policy", "StepLatent", "network_output", "step_transition"]

StepLatent = Float[Tensor, "step object view c h w"]
"""Latents of some steps at once."""


@runtime_checkable
class Policy(Protocol):
    """Anything that predicts from noisy latents, guidance already applied."""

    def __call__(
        self,
        latent_t: Latent,
        timestep: Float[Tensor, "*#row"] | Int[Tensor, "*#row"],
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Latent:
        """Predict noise, velocity or clean latents for every row.

        Args:
            latent_t: States, the views of one object adjacent [1].
            timestep: Training-time noise index, one for all rows or one each; of a flow
                model a number between two indices.
            conditioning: Prompts and cameras, one object for every
                ``conditioning.num_views`` rows.
            guidance_scale: Strength of the prompt [1]; 1 is the plain
                conditional prediction.
            camera_scale: Strength of the camera features [1]; 0 hides the
                cameras.

        Returns:
            The guided prediction, in the type of ``latent_t``.
        """
        ...


def network_output(
    policy: Policy,
    sampler: Sampler,
    latent_t: StepLatent,
    steps: Int[Tensor, " step"],
    conditioning: Conditioning,
    *,
    guidance_scale: float,
    camera_scale: float = 1.0,
) -> StepLatent:
    """Call the network once for objects, views and steps together.

    Args:
        policy: The network.
        sampler: Knows the timestep of every step.
        latent_t: States at ``steps``, in any floating dtype; handed on in fp32 or
            wider [1]. Gradient flows.
        steps: Indices into the sampling grid; read on the device alone.
        conditioning: Of the objects, once each.
        guidance_scale: Strength of the prompt [1].
        camera_scale: Strength of the camera features [1].

    Returns:
        The guided prediction, fp32 or wider.

    Raises:
        ValueError: As the network, such as when ``conditioning`` holds other objects.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.diffusion.sampler import LcmSampler
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> components = tiny_components(seed=0)
        >>> network_output(
        ...     components.policy,
        ...     LcmSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000)),
        ...     torch.zeros(2, 1, 6, 4, 8, 8, dtype=torch.bfloat16),
        ...     torch.tensor([0, 3]),
        ...     components.build_conditioning(["a red cube"], PAPER_RIG, image_size=32),
        ...     guidance_scale=7.0,
        ... ).dtype
        torch.float32
    """
    num_steps, num_objects, num_views = latent_t.shape[:3]
    wide = latent_t.to(torch.promote_types(latent_t.dtype, torch.float32))
    timestep = sampler.timesteps[steps]
    if num_steps == 1:
        timestep = timestep[0]
    else:
        timestep = timestep.repeat_interleave(num_objects * num_views)
    output = policy(
        wide.flatten(0, 2),
        timestep,
        conditioning if num_steps == 1 else conditioning.repeat(num_steps),
        guidance_scale=guidance_scale,
        camera_scale=camera_scale,
    )
    return output.reshape(latent_t.shape)


def step_transition(
    sampler: Sampler,
    output: StepLatent,
    latent_t: StepLatent,
    steps: Int[Tensor, " step"],
) -> Transition:
    """Turn a network's output into the Gaussian of the next latents.

    Args:
        sampler: The transition kernel.
        output: From :func:`network_output` [network's unit]. Gradient flows.
        latent_t: The states it was computed at, in any floating dtype [1]. Gradient flows.
        steps: Indices into the sampling grid.

    Returns:
        Mean and denoised latents, one a step, object and view; one standard deviation a
        step. In the dtype of ``output``.

    Examples:
        >>> from mvczigal_ref.diffusion.sampler import LcmSampler
        >>> sampler = LcmSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
        >>> latent_t = torch.zeros(1, 2, 3, 4, 8, 8)
        >>> transition = step_transition(sampler, latent_t, latent_t, torch.tensor([2]))
        >>> transition.mean.shape, transition.std.shape
        (torch.Size([1, 2, 3, 4, 8, 8]), torch.Size([1, 1, 1]))
    """
    return sampler.transition(output, latent_t.to(output.dtype), steps[:, None, None])
