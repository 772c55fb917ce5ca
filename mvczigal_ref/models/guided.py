"""Guided prediction: a network's batch, doubled where guidance needs two predictions."""

from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from mvczigal_ref.diffusion.guidance import classifier_free_guidance, guidance_embedding
from mvczigal_ref.models.sharding import compute_dtype_of
from mvczigal_ref.models.text import negative_features
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.shapes import Latent

__all__ = ["GuidedBatch", "GuidedUnet", "RowTime", "require_one_view"]

RowTime = Float[Tensor, "*#row"] | Int[Tensor, "*#row"]
"""Noise level or timestep, one for all rows or one each."""


class GuidedBatch(NamedTuple):
    """Inputs of one network call; where it is doubled, the negative prompt's half is first."""

    sample: Tensor
    """States in the network's dtype [1]."""

    timestep: Tensor
    """Noise level or timestep of every row."""

    text: Tensor
    """Token features, one set per object, in the network's dtype [1]."""

    pooled: Tensor
    """Pooled features, one vector per object, in the network's dtype [1]."""

    sizes: Tensor
    """Sizes that SDXL reads, one row per object [px]."""

    doubled: bool
    """Whether both prompts are in the batch."""

    @classmethod
    def of(
        cls,
        latent_t: Latent,
        timestep: RowTime,
        conditioning: Conditioning,
        *,
        doubled: bool,
        dtype: torch.dtype,
    ) -> "GuidedBatch":
        """Lay out the inputs of a call.

        Args:
            latent_t: States [1].
            timestep: Noise level or timestep, one for all rows or one each.
            conditioning: Prompts of the states' objects.
            doubled: Whether the negative prompt is predicted too.
            dtype: The network's.

        Returns:
            The inputs.

        Raises:
            ValueError: If the negative prompt is needed and not there.
        """
        text, pooled = conditioning.prompt_embeds, conditioning.pooled_prompt_embeds
        sizes, sample = conditioning.time_ids, latent_t.to(dtype)
        if doubled:
            negative = negative_features(conditioning, "negative_prompt_embeds", text)
            text = torch.cat([negative, text])
            negative = negative_features(conditioning, "negative_pooled_prompt_embeds", pooled)
            pooled = torch.cat([negative, pooled])
            sizes, sample = torch.cat([sizes, sizes]), torch.cat([sample, sample])
            if timestep.ndim and timestep.shape[0] > 1:
                timestep = torch.cat([timestep, timestep])
        rows = timestep.expand(sample.shape[0])
        return cls(sample, rows, text.to(dtype), pooled.to(dtype), sizes, doubled)

    def guided(self, output: Tensor, latent_t: Latent, guidance_scale: float) -> Latent:
        """Mix the predictions of both halves, in fp32 or wider.

        Args:
            output: The network's output on this batch. Gradient flows.
            latent_t: The states, whose type the result has.
            guidance_scale: w [1].

        Returns:
            One prediction per state.
        """
        if self.doubled:
            # The difference of two halves must not be rounded to half precision.
            wide = torch.promote_types(output.dtype, torch.float32)
            negative, positive = output.to(torch.promote_types(wide, latent_t.dtype)).chunk(2)
            output = classifier_free_guidance(negative, positive, guidance_scale=guidance_scale)
        return output.to(latent_t.dtype)


class GuidedUnet(nn.Module):
    """A UNet of diffusers that reads the guidance scale, or whose batch guidance doubles.

    Args:
        unet: The network.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    @property
    def guidance_width(self) -> int | None:
        """Width of the guidance embedding, or None where guidance doubles the batch [1]."""
        width = self.unet.config.time_cond_proj_dim
        return None if width is None else int(width)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input, so that no batch is doubled."""
        return self.guidance_width is not None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the network computes."""
        return compute_dtype_of(self.unet, self.unet.conv_in.weight)

    @property
    def device(self) -> torch.device:
        """Device on which the network computes."""
        weight: Tensor = self.unet.conv_in.weight
        return weight.device

    def embedded_guidance(self, guidance_scale: float, like: Tensor) -> Tensor | None:
        """Embed the guidance scale for a network that reads it.

        Args:
            guidance_scale: w [1].
            like: Tensor on the device of the call, where sharded weights may not be.

        Returns:
            The embedding in the network's dtype [1]; None where guidance doubles the batch.
        """
        width = self.guidance_width
        if width is None:
            return None
        scale = torch.full((1,), guidance_scale, device=like.device)
        return guidance_embedding(scale, width=width, dtype=torch.float32).to(self.dtype)


def require_one_view(
    conditioning: Conditioning, latent_t: Latent, *, network: str, builder: str
) -> None:
    """Refuse views, cameras and rows that a network of one image per prompt does not have.

    Args:
        conditioning: Prompts.
        latent_t: States, one per prompt.
        network: Name of the network, for the message.
        builder: Function that builds a fitting conditioning, for the message.

    Raises:
        ValueError: If there are several views or cameras, or rows and objects disagree.
    """
    if conditioning.num_views != 1 or conditioning.camera_features:
        msg = (
            f"`conditioning` must have one view and no cameras for a {network}; got "
            f"{conditioning.num_views} views and {len(conditioning.camera_features)} levels "
            f"of camera features. Build it with {builder}."
        )
        raise ValueError(msg)
    rows = conditioning.num_objects
    if latent_t.shape[0] != rows:
        msg = (
            f"`latent_t` must hold one row per object, {rows}; got {latent_t.shape[0]}. Repeat "
            "or narrow `conditioning` with `.repeat` or `.objects`."
        )
        raise ValueError(msg)
