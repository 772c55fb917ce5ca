"""SDXL's UNet with row attention and a camera encoder, as one guided policy."""

from diffusers import T2IAdapter, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.models.guided import GuidedBatch, GuidedUnet, RowTime
from mvczigal_ref.models.row_attention import RowSelfAttnProcessor, install_row_attention
from mvczigal_ref.policy import CameraFeatures, Conditioning
from mvczigal_ref.shapes import Latent, PluckerMap

__all__ = ["PUBLISHED_CAMERA_ENCODER", "MultiViewUNet"]

PUBLISHED_CAMERA_ENCODER = {
    "in_channels": 6,
    "channels": [320, 640, 1280, 1280],
    "num_res_blocks": 2,
    "downscale_factor": 16,
    "adapter_type": "full_adapter_xl",
}
"""Configuration of the released camera encoder; its file does not hold one."""


class MultiViewUNet(GuidedUnet):
    """A diffusers UNet that sees all views of an object and their cameras at once.

    Source:
        Huang et al., MV-Adapter, arXiv:2412.03632; the camera features enter
        as the residuals of a T2I-Adapter for SDXL.

    Args:
        unet: SDXL-shaped network, changed in place: row attention is
            installed unless it is there already.
        camera_encoder: ``full_adapter_xl`` with 6 input channels.
        mv_scale: Weight of the row attention [1].

    Raises:
        ValueError: If ``unet`` is not conditioned on text and sizes as SDXL is.
    """

    def __init__(
        self, unet: UNet2DConditionModel, camera_encoder: T2IAdapter, *, mv_scale: float = 1.0
    ) -> None:
        if unet.config.addition_embed_type != "text_time":
            msg = (
                '`unet` must be conditioned as SDXL is, addition_embed_type="text_time"; got '
                f"{unet.config.addition_embed_type!r}. Build it from an SDXL configuration."
            )
            raise ValueError(msg)
        if not any(isinstance(p, RowSelfAttnProcessor) for p in unet.attn_processors.values()):
            install_row_attention(unet)
        super().__init__(unet)
        self.camera_encoder = camera_encoder
        self.mv_scale = mv_scale

    def encode_cameras(self, camera_image: PluckerMap) -> CameraFeatures:
        """Encode camera maps into one feature map per level.

        The features depend on the cameras alone: encode a rig once.

        Args:
            camera_image: Camera maps rescaled to [0, 1], one per view. Gradient
                flows to the camera encoder.

        Returns:
            Features for the down blocks and the middle of the UNet [1].
        """
        return tuple(self.camera_encoder(camera_image.to(self.camera_encoder.dtype)))

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

        With a guidance embedding the network is called once and w enters as
        the embedding of w - 1; otherwise, for w > 1, it is called on the
        doubled batch and

        .. math:: o = o_\emptyset + w\,(o_c - o_\emptyset).

        Source:
            Luo et al., arXiv:2310.04378 (the embedding); Ho and Salimans,
            arXiv:2207.12598 (the doubled batch).

        Args:
            latent_t: States, the views of one object adjacent [1]. Gradient
                flows through them.
            timestep: Training-time noise index, one for all rows or one each.
            conditioning: Prompts and cameras of as many objects.
            guidance_scale: w [1]. Without an embedding, w <= 1 is the plain
                conditional prediction.
            camera_scale: Weight of the camera features [1].

        Returns:
            The guided prediction in the type of ``latent_t``.

        Raises:
            ValueError: If rows, views and objects disagree, the camera
                features do not fit the latent, or guidance needs a negative
                prompt that is not there.
        """
        rows = conditioning.num_objects * conditioning.num_views
        if latent_t.shape[0] != rows:
            msg = (
                f"`latent_t` must hold one row per view and object, {rows} for "
                f"{conditioning.num_objects} objects of {conditioning.num_views} views; got "
                f"{latent_t.shape[0]}. Narrow `conditioning` with `.objects`."
            )
            raise ValueError(msg)
        guidance = self.embedded_guidance(guidance_scale, latent_t)
        batch = GuidedBatch.of(
            latent_t, timestep, conditioning,
            doubled=guidance is None and guidance_scale > 1.0, dtype=self.dtype,
        )  # fmt: skip
        output: Tensor = self.unet(
            batch.sample,
            batch.timestep,
            encoder_hidden_states=batch.text,
            timestep_cond=guidance,
            added_cond_kwargs={
                "text_embeds": _to_rows(batch.pooled, conditioning.num_views),
                "time_ids": _to_rows(batch.sizes, conditioning.num_views),
            },
            down_intrablock_additional_residuals=self._residuals(
                conditioning, batch.sample, camera_scale
            ),
            cross_attention_kwargs={
                "num_views": conditioning.num_views,
                "latent_size": (batch.sample.shape[-2], batch.sample.shape[-1]),
                "mv_scale": self.mv_scale,
            },
            return_dict=False,
        )[0]
        return batch.guided(output, latent_t, guidance_scale)

    def _residuals(
        self, conditioning: Conditioning, sample: Tensor, camera_scale: float
    ) -> list[Tensor] | None:
        """Scale the camera features once per view and lay them out by row."""
        if camera_scale == 0.0 or not conditioning.camera_features:
            return None
        levels = len(self.unet.config.block_out_channels) + 1
        if len(conditioning.camera_features) != levels:
            msg = (
                f"`camera_features` must have {levels} levels, one per down block and one for "
                f"the middle; got {len(conditioning.camera_features)}. Use encode_cameras."
            )
            raise ValueError(msg)
        height, width = sample.shape[-2:]
        half = ((height + 1) // 2, (width + 1) // 2)
        first = tuple(conditioning.camera_features[0].shape[-2:])
        # diffusers drops a residual that does not fit the middle block without a word.
        if first != half:
            msg = (
                "`camera_features` must be half the latent's size at the first level, "
                f"{half}; got {first}. Encode camera images of the latents' image size."
            )
            raise ValueError(msg)
        groups = sample.shape[0] // conditioning.num_views
        scaled = conditioning.camera_features
        if camera_scale != 1.0:
            scaled = tuple(feature * camera_scale for feature in scaled)
        return [feature.to(sample.dtype).repeat(groups, 1, 1, 1) for feature in scaled]


def _to_rows(value: Float[Tensor, "object width"], num_views: int) -> Float[Tensor, "row width"]:
    """Repeat each object's vector once per view."""
    return value.repeat_interleave(num_views, dim=0, output_size=value.shape[0] * num_views)
