"""Small flow pipelines that these tests share."""

from functools import cache

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.models.flow.sd3 import Sd3Policy
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.flow.tiny_t5 import tiny_t5, tiny_t5_tokenizer
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.policy import Conditioning
from tests.unit.models.small import randn

PROMPTS = ["a red cube with a white nose", "a blue ball"]
TIMES = torch.tensor([900.0, 250.5], dtype=torch.float64)
SMALL = {"channels": (8, 16, 16), "num_heads": (1, 1, 1), "vae_channels": (8, 8, 16)}


def fresh_flux(*, guidance_embeds: bool = False) -> FlowComponents:
    """Build the narrowest FLUX pipeline, in fp64, every part of it in use."""
    components = tiny_flow_components(
        seed=1,
        num_heads=2,
        head_width=16,
        num_layers=1,
        num_single_layers=1,
        vae_channels=(8, 8, 16),
        text_width=8,
        guidance_embeds=guidance_embeds,
    ).to(dtype=torch.float64)
    if guidance_embeds:
        weight = components.policy.transformer.time_text_embed.guidance_embedder.linear_2.weight
        with torch.no_grad():
            weight.copy_(randn(*weight.shape, seed=5))
    return components


def fresh_sd3() -> FlowComponents:
    """Build a narrow Stable Diffusion 3.5 pipeline in fp64, second attention and all."""
    parts = [tiny_components(seed=seed, text_width=8, **SMALL) for seed in (1, 2)]
    tokenizer = tiny_t5_tokenizer(length=12)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=6,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
    return FlowComponents(
        tokenizers=(parts[0].tokenizer, parts[1].tokenizer_2, tokenizer),
        text_encoders=(
            parts[0].text_encoder_2,
            parts[1].text_encoder_2,
            tiny_t5(tokenizer, width=24, seed=4),
        ),
        vae=parts[0].vae,
        policy=Sd3Policy(transformer).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        latent_mean=torch.full((4,), 0.25),
        latent_std=torch.full((4,), 2.0),
        max_tokens=12,
    ).to(dtype=torch.float64)


@cache
def small_flux(*, guidance_embeds: bool = False) -> FlowComponents:
    """Build it once; tests that write build their own."""
    return fresh_flux(guidance_embeds=guidance_embeds)


@cache
def small_sd3() -> FlowComponents:
    """Build it once; tests that write build their own."""
    return fresh_sd3()


def conditioning(components: FlowComponents) -> Conditioning:
    """Condition on two prompts and what leads away from them."""
    return components.build_conditioning(PROMPTS, negative_prompt="a black can")


def latents(rows: int = 2, height: int = 8, width: int = 8) -> Tensor:
    """Draw some states, in fp64."""
    return randn(rows, 4, height, width, seed=7)


def predict(policy: FlowPolicy, given: Conditioning, *, guidance_scale: float = 1.0) -> Tensor:
    """Predict at the common states and times, without gradient."""
    with torch.no_grad():
        return policy(latents(), TIMES, given, guidance_scale=guidance_scale)


def flux_pipeline(components: FlowComponents) -> FluxPipeline:
    """Put the same parts into diffusers' own pipeline."""
    return FluxPipeline(
        scheduler=components.scheduler,
        vae=components.vae,
        text_encoder=components.text_encoders[0],
        tokenizer=components.tokenizers[0],
        text_encoder_2=components.text_encoders[1],
        tokenizer_2=components.tokenizers[1],
        transformer=components.policy.transformer,
    )


def sd3_pipeline(components: FlowComponents) -> StableDiffusion3Pipeline:
    """Put the same parts into diffusers' own pipeline."""
    return StableDiffusion3Pipeline(
        scheduler=components.scheduler,
        vae=components.vae,
        text_encoder=components.text_encoders[0],
        tokenizer=components.tokenizers[0],
        text_encoder_2=components.text_encoders[1],
        tokenizer_2=components.tokenizers[1],
        text_encoder_3=components.text_encoders[2],
        tokenizer_3=components.tokenizers[2],
        transformer=components.policy.transformer,
    )
