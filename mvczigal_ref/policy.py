"""A network as the rest of the package sees it, and one step's Gaussian from its output.

Sampling and replay both call :func:`step_transition`, so on equal slices they
compute the same bits.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.diffusion import gaussian
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.gaussian import Reduction
from mvczigal_ref.diffusion.sampler import Sampler, Transition
from mvczigal_ref.shapes import Latent, PromptEmbedding

__all__ = [
    "CameraFeatures",
    "Conditioning",
    "Policy",
    "StepLatent",
    "action_log_prob",
    "network_output",
    "step_transition",
]

CameraFeatures = tuple[Float[Tensor, "view _channels _height _width"], ...]
"""The camera encoder's output, one tensor per level, each level of its own size [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """Inputs of a policy beside the latents, each stored once.

    Text is stored once per object and cameras once per view; the network expands
    both to rows. The negative prompt may be stored once for all objects.
    """

    prompt_embeds: PromptEmbedding
    """Token features of each prompt [1]."""

    pooled_prompt_embeds: Float[Tensor, "object pooled"]
    """One feature vector per prompt [1]."""

    time_ids: Float[Tensor, "object 6"]
    """Original height and width, crop top and left, target height and width [px]."""

    camera_features: CameraFeatures
    """One tensor per level of the camera encoder [1]."""

    num_views: int
    """Views of one object; the length of every camera feature."""

    negative_prompt_embeds: Float[Tensor, "negative token width"] | None = None
    """Token features to guide away from: one for all objects, or one each [1]."""

    negative_pooled_prompt_embeds: Float[Tensor, "negative pooled"] | None = None
    """Pooled features to guide away from: one for all objects, or one each [1]."""

    def __post_init__(self) -> None:
        """Refuse parts that disagree about objects or views."""
        if self.num_views < 1:
            msg = f"`num_views` must be at least 1; got {self.num_views}."
            raise ValueError(msg)
        for level, feature in enumerate(self.camera_features):
            if feature.shape[0] != self.num_views:
                msg = (
                    f"`camera_features` must hold one map per view; level {level} holds "
                    f"{feature.shape[0]} for `num_views` {self.num_views}. Encode the rig whose "
                    "views are sampled."
                )
                raise ValueError(msg)
        if (self.negative_prompt_embeds is None) != (self.negative_pooled_prompt_embeds is None):
            msg = (
                "`negative_prompt_embeds` and `negative_pooled_prompt_embeds` must be given "
                "together; got one of them. Encode the negative prompt once for both."
            )
            raise ValueError(msg)
        sizes = {"pooled_prompt_embeds": self.pooled_prompt_embeds, "time_ids": self.time_ids}
        for name, value in sizes.items():
            if value.shape[0] != self.num_objects:
                msg = (
                    f"`{name}` must hold one row per object; got {value.shape[0]} rows for "
                    f"{self.num_objects} objects in `prompt_embeds`."
                )
                raise ValueError(msg)
        for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
            negative = getattr(self, name)
            if negative is not None and negative.shape[0] not in (1, self.num_objects):
                msg = (
                    f"`{name}` must hold one row for all objects or one each; got "
                    f"{negative.shape[0]} for {self.num_objects} objects."
                )
                raise ValueError(msg)

    @property
    def num_objects(self) -> int:
        """Prompts in this record."""
        return self.prompt_embeds.shape[0]

    def objects(self, index: slice) -> "Conditioning":
        """Narrow to some objects; cameras and a shared negative prompt stay whole.

        Args:
            index: Objects, as a slice of the object axis.

        Returns:
            A record of views onto the same memory.

        Examples:
            >>> text, pooled, ids = torch.zeros(3, 4, 8), torch.zeros(3, 8), torch.zeros(3, 6)
            >>> whole = Conditioning(
            ...     prompt_embeds=text, pooled_prompt_embeds=pooled, time_ids=ids,
            ...     camera_features=(torch.zeros(2, 5, 4, 4),), num_views=2,
            ... )
            >>> whole.objects(slice(1, 3)).num_objects
            2
        """
        negative, pooled = self.negative_prompt_embeds, self.negative_pooled_prompt_embeds
        if negative is not None and pooled is not None and negative.shape[0] > 1:
            negative, pooled = negative[index], pooled[index]
        return replace(
            self,
            prompt_embeds=self.prompt_embeds[index],
            pooled_prompt_embeds=self.pooled_prompt_embeds[index],
            time_ids=self.time_ids[index],
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=pooled,
        )

    def repeat(self, times: int) -> "Conditioning":
        """Repeat the objects as a whole, for several steps in one network call.

        Args:
            times: Copies, one after the other; at least 1.

        Returns:
            ``times * num_objects`` objects; cameras and a shared negative prompt stay whole.

        Raises:
            ValueError: If ``times`` is below 1.

        Examples:
            >>> text, pooled, ids = torch.zeros(3, 4, 8), torch.zeros(3, 8), torch.zeros(3, 6)
            >>> whole = Conditioning(
            ...     prompt_embeds=text, pooled_prompt_embeds=pooled, time_ids=ids,
            ...     camera_features=(torch.zeros(2, 5, 4, 4),), num_views=2,
            ... )
            >>> whole.repeat(4).num_objects
            12
        """
        if times < 1:
            msg = f"`times` must be at least 1; got {times}."
            raise ValueError(msg)
        negative, pooled = self.negative_prompt_embeds, self.negative_pooled_prompt_embeds
        if negative is not None and pooled is not None and negative.shape[0] > 1:
            negative, pooled = negative.repeat(times, 1, 1), pooled.repeat(times, 1)
        return replace(
            self,
            prompt_embeds=self.prompt_embeds.repeat(times, 1, 1),
            pooled_prompt_embeds=self.pooled_prompt_embeds.repeat(times, 1),
            time_ids=self.time_ids.repeat(times, 1),
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=pooled,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Conditioning":
        """Move, and where asked cast, every tensor.

        Args:
            device: Device to move to; None stays.
            dtype: Floating type to cast to; unchanged when None.

        Returns:
            A record that shares the tensors which already fit.
        """
        negative, pooled = self.negative_prompt_embeds, self.negative_pooled_prompt_embeds
        return replace(
            self,
            prompt_embeds=self.prompt_embeds.to(device, dtype),
            pooled_prompt_embeds=self.pooled_prompt_embeds.to(device, dtype),
            time_ids=self.time_ids.to(device, dtype),
            camera_features=tuple(feature.to(device, dtype) for feature in self.camera_features),
            negative_prompt_embeds=None if negative is None else negative.to(device, dtype),
            negative_pooled_prompt_embeds=None if pooled is None else pooled.to(device, dtype),
        )


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
        conditioning: Text and cameras of the objects, once each.
        guidance_scale: Strength of the prompt [1].
        camera_scale: Strength of the camera features [1].

    Returns:
        The guided prediction, fp32 or wider.

    Raises:
        ValueError: As the network, such as when ``conditioning`` holds other objects.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
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


def action_log_prob(
    sampler: Sampler, action: StepLatent, transition: Transition, *, reduction: Reduction
) -> Float[Tensor, "..."]:
    """Score actions by the density that the sampler gives them.

    Args:
        sampler: The transition kernel.
        action: Latents that were drawn [1]. Gradient flows.
        transition: Gaussians that they were drawn from. Gradient flows.
        reduction: "mean", "sum" or "none" over channels, height and width.

    Returns:
        Log-densities [nats or nats/element], or a flow's stand-in for them, see
        :meth:`FlowSampler.score`.

    Examples:
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
        >>> sampler = LcmSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
        >>> latent = torch.zeros(1, 2, 3, 4, 8, 8)
        >>> transition = step_transition(sampler, latent, latent, torch.tensor([2]))
        >>> action_log_prob(sampler, latent, transition, reduction="mean").shape
        torch.Size([1, 2, 3])
    """
    if isinstance(sampler, FlowSampler):
        return sampler.score(action, transition, reduction=reduction)
    return gaussian.log_prob(action, mean=transition.mean, std=transition.std, reduction=reduction)


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
        Mean and denoised latents, one per step, object and view; one standard deviation per
        step. In the dtype of ``output``.

    Examples:
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
        >>> sampler = LcmSampler.create(num_steps=4, alpha_bar=torch.linspace(0.9, 0.1, 1000))
        >>> latent_t = torch.zeros(1, 2, 3, 4, 8, 8)
        >>> transition = step_transition(sampler, latent_t, latent_t, torch.tensor([2]))
        >>> transition.mean.shape, transition.std.shape
        (torch.Size([1, 2, 3, 4, 8, 8]), torch.Size([1, 1, 1]))
    """
    return sampler.transition(output, latent_t.to(output.dtype), steps[:, None, None])
