"""SDXL's or Stable Diffusion 1.5's UNet as a guided policy of one view."""

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from mvczigal_ref.diffusion.guidance import classifier_free_guidance, guidance_embedding
from mvczigal_ref.models.sharding import compute_dtype_of
from mvczigal_ref.models.text import negative_features
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.shapes import Latent

__all__ = ["SINGLE_VIEW_LORA_TARGETS", "SingleViewUnet"]

SINGLE_VIEW_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers that DDPO and diffusers' LoRA training adapt: every projection of every attention."""

_CONDITIONED = (None, "text_time")


class SingleViewUnet(nn.Module):
    """A diffusers UNet that predicts one image per prompt, guidance applied.

    Source:
        Podell et al., SDXL, arXiv:2307.01952; Rombach et al., arXiv:2112.10752.

    Args:
        unet: UNet of SDXL, conditioned on sizes and a pooled text, or of Stable Diffusion 1.5,
            which knows neither.

    Raises:
        ValueError: If ``unet`` is conditioned in another way, or takes other channels than it
            gives.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        config = unet.config
        if config.addition_embed_type not in _CONDITIONED or config.class_embed_type is not None:
            msg = (
                "`unet` must be conditioned as SDXL or Stable Diffusion 1.5 is, with an "
                f"addition_embed_type of {_CONDITIONED} and no class; got "
                f"{config.addition_embed_type!r} and {config.class_embed_type!r}."
            )
            raise ValueError(msg)
        if config.in_channels != config.out_channels:
            msg = (
                "`unet` must give as many channels as it takes; got "
                f"{config.out_channels} for {config.in_channels}. Networks for inpainting or "
                "edits take a second image: use one from text alone."
            )
            raise ValueError(msg)
        self.unet = unet

    @property
    def guidance_width(self) -> int | None:
        """Width of the guidance embedding, or None where guidance doubles the batch [1]."""
        width = self.unet.config.time_cond_proj_dim
        return None if width is None else int(width)

    @property
    def reads_sizes(self) -> bool:
        """Whether the network reads sizes and a pooled text, as SDXL does."""
        return bool(self.unet.config.addition_embed_type == "text_time")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the network computes."""
        return compute_dtype_of(self.unet, self.unet.conv_in.weight)

    @property
    def device(self) -> torch.device:
        """Device on which the network computes."""
        weight: Tensor = self.unet.conv_in.weight
        return weight.device

    def forward(
        self,
        latent_t: Latent,
        timestep: Float[Tensor, "*#row"] | Int[Tensor, "*#row"],
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Latent:
        r"""Predict for every row, guidance applied.

        With a guidance embedding the network is called once and w enters as the embedding of
        w - 1; otherwise, for w > 1, it is called on the doubled batch and

        .. math:: o = o_\emptyset + w\,(o_c - o_\emptyset).

        Source:
            Luo et al., arXiv:2310.04378 (the embedding); Ho and Salimans, arXiv:2207.12598 (the
            doubled batch).

        Args:
            latent_t: States, one per object [1]. Gradient flows through them.
            timestep: Training-time noise index, one for all rows or one each.
            conditioning: Prompts of as many objects, of one view and without cameras.
            guidance_scale: w [1]. Without an embedding, w <= 1 is the plain conditional
                prediction.
            camera_scale: Without effect: there are no cameras.

        Returns:
            The guided prediction in the type of ``latent_t``.

        Raises:
            ValueError: If rows and objects disagree, the conditioning has cameras, or guidance
                needs a negative prompt that is not there.
        """
        rows = conditioning.num_objects
        if conditioning.num_views != 1 or conditioning.camera_features:
            msg = (
                "`conditioning` must have one view and no cameras for a single-view UNet; got "
                f"{conditioning.num_views} views and {len(conditioning.camera_features)} levels "
                "of camera features. Build it with UnetComponents.build_conditioning."
            )
            raise ValueError(msg)
        if latent_t.shape[0] != rows:
            msg = (
                f"`latent_t` must hold one row per object, {rows}; got {latent_t.shape[0]}. Repeat "
                "or narrow `conditioning` with `.repeat` or `.objects`."
            )
            raise ValueError(msg)
        text, pooled = conditioning.prompt_embeds, conditioning.pooled_prompt_embeds
        sizes, sample = conditioning.time_ids, latent_t.to(self.dtype)
        width, guidance = self.guidance_width, None
        doubled = width is None and guidance_scale > 1.0
        if width is not None:
            scale = torch.full((1,), guidance_scale, device=sample.device)
            guidance = guidance_embedding(scale, width=width, dtype=torch.float32).to(self.dtype)
        if doubled:
            text = torch.cat(
                [negative_features(conditioning, "negative_prompt_embeds", text), text]
            )
            pooled = torch.cat(
                [negative_features(conditioning, "negative_pooled_prompt_embeds", pooled), pooled]
            )
            sizes, sample = torch.cat([sizes, sizes]), torch.cat([sample, sample])
            if timestep.ndim and timestep.shape[0] > 1:
                timestep = torch.cat([timestep, timestep])
        added = {"text_embeds": pooled.to(self.dtype), "time_ids": sizes}
        output: Tensor = self.unet(
            sample,
            timestep.expand(sample.shape[0]),
            encoder_hidden_states=text.to(self.dtype),
            timestep_cond=guidance,
            added_cond_kwargs=added if self.reads_sizes else None,
            return_dict=False,
        )[0]
        if doubled:
            # The difference of two halves must not be rounded to half precision.
            wide = torch.promote_types(output.dtype, torch.float32)
            negative, positive = output.to(wide).chunk(2)
            output = classifier_free_guidance(negative, positive, guidance_scale=guidance_scale)
        return output.to(latent_t.dtype)
