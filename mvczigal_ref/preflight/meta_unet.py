"""A single-view UNet's pipeline without a byte of weights."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.models.loading import cast_network
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.models.unet.components import UnetComponents
from mvczigal_ref.models.unet.families import UNET_FAMILIES
from mvczigal_ref.models.unet.policy import SingleViewUnet
from mvczigal_ref.preflight.pipeline_sizes import pipeline_sizes
from mvczigal_ref.preflight.unet_sizes import PUBLISHED_UNETS, stored_unet_sizes
from mvczigal_ref.system.networks import DTYPES

__all__ = ["meta_unet_components"]


def meta_unet_components(config: TrainConfig) -> tuple[UnetComponents, str]:
    """Lay out a single-view UNet's pipeline on the meta device.

    A distilled LoRA is fused into the weights and changes no size.

    Args:
        config: ``model.weights`` names a folder, whose sizes are read, or a published pipeline.

    Returns:
        Networks in the types in which they are loaded, and the source of their sizes. Their
        tokenizers are the tiny ones.

    Raises:
        ConfigError: If there is no such folder, or it holds another pipeline.

    Examples:
        >>> from mvczigal_ref.recipes import recipe
        >>> components, source = meta_unet_components(recipe("sd15_grpo"))
        >>> source, sum(p.numel() for p in components.policy.parameters())
        ('the published stable-diffusion-v1-5/stable-diffusion-v1-5', 859520964)
    """
    sizes, source = pipeline_sizes(
        config.model.weights, PUBLISHED_UNETS, UNET_FAMILIES, stored_unet_sizes
    )
    dtype = DTYPES[config.model.dtype]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(sizes.unet))
        vae = AutoencoderKL.from_config(dict(sizes.vae))
        encoders = tuple(
            kind(CLIPTextConfig(**settings)).to(dtype)
            for kind, settings in zip(sizes.family.text_encoders, sizes.text_encoders, strict=True)
        )
        channels = vae.config.latent_channels
        components = UnetComponents(
            family=sizes.family,
            tokenizers=tuple(tiny_tokenizer() for _ in encoders),
            text_encoders=encoders,
            vae=vae,
            policy=SingleViewUnet(unet).eval(),
            latent_mean=torch.zeros(channels),
            latent_std=torch.ones(channels),
        )
    cast_network(components.policy, None, dtype)
    return components, source
