"""SDXL's or Stable Diffusion 1.5's UNet as a guided policy of one view."""

from diffusers import UNet2DConditionModel
from torch import Tensor

from mvczigal_ref.models.guided import GuidedBatch, GuidedUnet, RowTime, require_one_view
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.shapes import Latent

__all__ = ["SINGLE_VIEW_LORA_TARGETS", "SingleViewUnet"]

SINGLE_VIEW_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers that DDPO and diffusers' LoRA training adapt: every projection of every attention."""

_CONDITIONED = (None, "text_time")


class SingleViewUnet(GuidedUnet):
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
        super().__init__(unet)

    @property
    def reads_sizes(self) -> bool:
        """Whether the network reads sizes and a pooled text, as SDXL does."""
        return bool(self.unet.config.addition_embed_type == "text_time")

    def forward(
        self,
        latent_t: Latent,
        timestep: RowTime,
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
        require_one_view(
            conditioning, latent_t, network="single-view UNet",
            builder="UnetComponents.build_conditioning",
        )  # fmt: skip
        guidance = self.embedded_guidance(guidance_scale, latent_t)
        batch = GuidedBatch.of(
            latent_t, timestep, conditioning,
            doubled=guidance is None and guidance_scale > 1.0, dtype=self.dtype,
        )  # fmt: skip
        added = {"text_embeds": batch.pooled, "time_ids": batch.sizes}
        output: Tensor = self.unet(
            batch.sample,
            batch.timestep,
            encoder_hidden_states=batch.text,
            timestep_cond=guidance,
            added_cond_kwargs=added if self.reads_sizes else None,
            return_dict=False,
        )[0]
        return batch.guided(output, latent_t, guidance_scale)
