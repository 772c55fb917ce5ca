"""SDXL's and Stable Diffusion 1.5's wiring at toy size with random weights, for tests."""

from typing import Literal

import torch
from diffusers import UNet2DConditionModel

from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.models.unet.components import UnetComponents
from mvczigal_ref.models.unet.families import SD15, SDXL
from mvczigal_ref.models.unet.policy import SingleViewUnet

__all__ = ["tiny_unet_components"]

_SIZE_EMBED = 8  # width at which each of SDXL's six sizes is embedded


def tiny_unet_components(
    family: Literal["sdxl", "sd15"],
    *,
    seed: int,
    channels: tuple[int, int] = (8, 16),
    text_width: int = 8,
    time_cond_proj_dim: int | None = None,
) -> UnetComponents:
    """Build a whole single-view pipeline with random weights, in less than a second.

    Text encoders and autoencoder are those of the tiny multi-view pipeline of the same seed.

    Args:
        family: "sdxl", conditioned on two text encoders and sizes; or "sd15", on one.
        seed: Seed of every random weight. The global generator is not touched.
        channels: Channels of the UNet's two levels; multiples of 8.
        text_width: Width of each text encoder.
        time_cond_proj_dim: Width of the guidance embedding, as LCM-SDXL has one; None for
            classifier-free guidance by a doubled batch.

    Returns:
        Components in evaluation mode, fp32, on the CPU; latents of 4 channels.

    Examples:
        >>> components = tiny_unet_components("sd15", seed=0)
        >>> sum(p.numel() for p in components.policy.parameters())
        63772
    """
    base = tiny_components(
        seed=seed, channels=(8, 8, 8), num_heads=(1, 1, 1), vae_channels=(8, 8, 16),
        text_width=text_width,
    )  # fmt: skip
    sdxl = family == "sdxl"
    sizes = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SIZE_EMBED,
        "projection_class_embeddings_input_dim": text_width + 6 * _SIZE_EMBED,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=channels,
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=text_width * (2 if sdxl else 1),
            use_linear_projection=sdxl,
            norm_num_groups=8,
            time_cond_proj_dim=time_cond_proj_dim,
            **(sizes if sdxl else {}),
        )
    count = 2 if sdxl else 1
    return UnetComponents(
        family=SDXL if sdxl else SD15,
        tokenizers=(base.tokenizer, base.tokenizer_2)[:count],
        text_encoders=(base.text_encoder, base.text_encoder_2)[:count],
        vae=base.vae,
        policy=SingleViewUnet(unet).eval(),
        latent_mean=base.latent_mean,
        latent_std=base.latent_std,
    )
