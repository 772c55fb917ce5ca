"""Small single-view pipelines that these tests share."""

from functools import cache

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from mvczigal_ref.models.unet.components import UnetComponents
from mvczigal_ref.models.unet.tiny import tiny_unet_components

KINDS = ("sdxl", "sd15")
PROMPTS = ["a red cube with a white nose", "a blue ball"]


def fresh_unet(kind: str, **options: int) -> UnetComponents:
    """Build the narrowest pipeline in fp64, its scaling as an autoencoder's settings may say."""
    components = tiny_unet_components(kind, seed=1, **options)
    components.latent_std.fill_(2.0)
    return components.to(dtype=torch.float64)


@cache
def small_unet(kind: str, **options: int) -> UnetComponents:
    """Build it once; tests that write build their own."""
    return fresh_unet(kind, **options)


def stock_pipeline(components: UnetComponents, scheduler) -> StableDiffusionPipeline:
    """Put the same parts into diffusers' own pipeline."""
    parts = {
        "scheduler": scheduler,
        "vae": components.vae,
        "unet": components.policy.unet,
        "tokenizer": components.tokenizers[0],
        "text_encoder": components.text_encoders[0],
    }
    if len(components.tokenizers) == 1:
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer_2=components.tokenizers[1],
        text_encoder_2=components.text_encoders[1],
    )
