"""Sizes of the published networks of SDXL and Stable Diffusion 1.5."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from mvczigal_ref.models.flow.families import numbered
from mvczigal_ref.models.unet.families import SD15, SDXL, UnetFamily

__all__ = [
    "PUBLISHED_UNETS",
    "SDXL_TEXT",
    "SDXL_UNET",
    "SDXL_VAE",
    "UnetSizes",
    "stored_unet_sizes",
]

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""Settings of SDXL's UNet."""


SDXL_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
"""Settings of SDXL's autoencoder."""


SDXL_TEXT: tuple[dict[str, Any], dict[str, Any]] = (
    {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "projection_dim": 768,
    },
    {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
        "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
    },
)  # fmt: skip
"""Settings of SDXL's two text encoders."""


_SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class UnetSizes:
    """Settings of every part of a pipeline, as diffusers and transformers store them."""

    family: UnetFamily
    """Classes of the parts."""

    unet: Mapping[str, Any]
    """Settings of the UNet."""

    text_encoders: tuple[Mapping[str, Any], ...]
    """Settings of the text encoders, in order."""

    vae: Mapping[str, Any]
    """Settings of the autoencoder."""


_SDXL_SIZES = UnetSizes(family=SDXL, unet=SDXL_UNET, text_encoders=SDXL_TEXT, vae=SDXL_VAE)

PUBLISHED_UNETS: dict[str, UnetSizes] = {
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL_SIZES,
    "stabilityai/sdxl-turbo": _SDXL_SIZES,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": UnetSizes(
        family=SD15,
        unet=_SD15_UNET,
        text_encoders=SDXL_TEXT[:1],
        vae=SDXL_VAE | {"sample_size": 512, "scaling_factor": 0.18215},
    ),
}
"""Sizes of the published pipelines, by the name that ``model.weights`` gives them."""


def stored_unet_sizes(folder: Path, family: UnetFamily) -> UnetSizes:
    """Read the settings of a folder's networks.

    Args:
        folder: Folder of the pipeline; no weights are read.
        family: Family that its index names.

    Returns:
        Settings of every part.
    """
    return UnetSizes(
        family=family,
        unet=UNet2DConditionModel.load_config(folder / "unet"),
        text_encoders=tuple(
            CLIPTextConfig.from_pretrained(folder / name).to_dict()
            for name in numbered("text_encoder", family.text_encoders)
        ),
        vae=AutoencoderKL.load_config(folder / "vae"),
    )
