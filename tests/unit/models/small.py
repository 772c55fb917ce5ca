"""Small networks that these tests share."""

from functools import cache
from typing import Any

import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from torch import Tensor

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.policy import Conditioning

PROMPTS = ("a red cube with a white nose", "a blue ball with a green fin", "a can")

# What all of SDXL's family share, whatever the width.
LAYOUT: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "layers_per_block": 2,
}

# The published configuration of the SDXL base UNet.
SDXL: dict[str, Any] = {
    **LAYOUT,
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@cache
def small_components(time_cond_proj_dim: int | None = 8) -> Components:
    """Build the narrowest pipeline once, in fp64; tests that write build their own."""
    return fresh_components(time_cond_proj_dim)


def fresh_components(time_cond_proj_dim: int | None = 8) -> Components:
    """Build the narrowest pipeline, in fp64, every part of it in use."""
    components = tiny_components(
        seed=1,
        channels=(8, 16, 16),
        num_heads=(1, 2, 2),
        vae_channels=(8, 8, 16),
        text_width=8,
        time_cond_proj_dim=time_cond_proj_dim,
    ).to(dtype=torch.float64)
    if time_cond_proj_dim is not None:
        weight = components.policy.unet.time_embedding.cond_proj.weight
        with torch.no_grad():
            weight.copy_(randn(*weight.shape, seed=5))
    return components


def rig(num_views: int) -> OrthographicRig:
    """Place cameras all around."""
    return OrthographicRig(
        azimuth_deg=tuple(360.0 * view / num_views for view in range(num_views)),
        elevation_deg=(0.0,) * num_views,
        distance=(1.8,) * num_views,
    )


@cache
def conditioning(
    num_objects: int = 2,
    num_views: int = 3,
    image_size: tuple[int, int] = (32, 32),
    time_cond_proj_dim: int | None = 8,
) -> Conditioning:
    """Condition the small pipeline on some prompts and cameras, in fp64."""
    return (
        small_components(time_cond_proj_dim)
        .build_conditioning(
            PROMPTS[:num_objects],
            rig(num_views),
            image_size=image_size,
            negative_prompt="of the black cone",
        )
        .to(dtype=torch.float64)
    )


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Draw fp64 normals from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def published_on_meta(time_cond_proj_dim: int | None) -> MultiViewUNet:
    """Build SDXL's own size without a byte of weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL, time_cond_proj_dim=time_cond_proj_dim)
        encoder = T2IAdapter(
            in_channels=6,
            channels=[320, 640, 1280, 1280],
            num_res_blocks=2,
            downscale_factor=16,
            adapter_type="full_adapter_xl",
        )
        return MultiViewUNet(unet, encoder)
