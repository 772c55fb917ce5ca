"""FLUX.1 as a policy: latents packed into tokens, positions, embedded guidance."""

from typing import ClassVar

import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.models.flow.packing import PATCH, image_positions, pack_latents, unpack_latents
from mvczigal_ref.models.flow.policy import ATTENTION_LORA_TARGETS, FlowPolicy
from mvczigal_ref.shapes import Latent, PromptEmbedding

__all__ = ["FLUX_LORA_TARGETS", "FluxPolicy"]

FLUX_LORA_TARGETS = (
    *ATTENTION_LORA_TARGETS,
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
"""Layers that Flow-GRPO adapts with rank 64 and alpha 128: every attention, and the MLPs of the
two-stream blocks."""


class FluxPolicy(FlowPolicy):
    """FLUX.1 on unpacked latents.

    FLUX.1-dev embeds the guidance scale, 3.5 in Flow-GRPO's settings; a
    network without that embedding is guided by a doubled batch.

    Source:
        Black Forest Labs, FLUX.1, as diffusers runs it.

    Args:
        transformer: Built or loaded by diffusers.

    Raises:
        ValueError: If ``transformer`` takes no latents packed by four, or gives other channels.
    """

    lora_targets: ClassVar[tuple[str, ...]] = FLUX_LORA_TARGETS

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        super().__init__(transformer)
        if transformer.config.in_channels % PATCH**2 or transformer.config.patch_size != 1:
            msg = (
                "`transformer` must take latents packed by four and patch no further; got "
                f"{transformer.config.in_channels} channels and a patch of "
                f"{transformer.config.patch_size}."
            )
            raise ValueError(msg)
        self.patch_size = PATCH

    def velocity(
        self,
        sample: Latent,
        timestep: Float[Tensor, " row"],
        text: PromptEmbedding,
        pooled: Float[Tensor, "row pooled"],
        *,
        guidance_scale: float,
    ) -> Latent:
        """Call the transformer once, packed; see :meth:`FlowPolicy.velocity`."""
        height, width = sample.shape[-2:]
        guidance = None
        if self.embeds_guidance:
            guidance = timestep.new_full(timestep.shape, guidance_scale)
        tokens: Tensor = self.transformer(
            pack_latents(sample),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            # The network multiplies by 1000 itself.
            timestep=timestep / 1000.0,
            guidance=guidance,
            img_ids=image_positions(height, width, device=sample.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=sample.device),
            return_dict=False,
        )[0]
        return unpack_latents(tokens, height=height, width=width)
