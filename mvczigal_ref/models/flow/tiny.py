"""FLUX's wiring at toy size with random weights, for tests and the tiny world.

FLUX rather than Stable Diffusion 3, because MV-GRPO's published policy is FLUX; because an image
of 8x8 latent pixels is 16 tokens, which a CPU trains on; and because its positions are rotations,
which fit latents of any size.
"""

from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn

from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.flux import FluxPolicy
from mvczigal_ref.models.flow.tiny_t5 import tiny_t5, tiny_t5_tokenizer
from mvczigal_ref.models.tiny import TINY_WORDS, tiny_components

__all__ = ["tiny_flow_components"]


def tiny_flow_components(
    *,
    seed: int,
    num_heads: int = 4,
    head_width: int = 32,
    num_layers: int = 2,
    num_single_layers: int = 4,
    vae_channels: tuple[int, ...] = (16, 32, 64),
    text_width: int = 32,
    num_groups: int = 8,
    max_tokens: int = 16,
    guidance_embeds: bool = False,
    words: Sequence[str] = TINY_WORDS,
) -> FlowComponents:
    """Build a whole FLUX pipeline with random weights, in less than a second.

    CLIP and the autoencoder are those of the multi-view pipeline of the same
    seed; T5 is random but not dull. The embedding of the guidance scale, where
    there is one, starts neutral.

    Args:
        seed: Seed of every random weight. The global generator is not touched.
        num_heads: Attention heads of the transformer.
        head_width: Width of each head; even, at least 8. As in FLUX each coordinate turns
            about seven sixteenths of it.
        num_layers: Blocks with one stream for text and one for the image.
        num_single_layers: Blocks with one stream for both.
        vae_channels: Channels of the autoencoder's levels; each after the first
            halves the image.
        text_width: Width of either text encoder.
        num_groups: Groups of the autoencoder's group normalisation.
        max_tokens: Length of T5's sequences [tokens].
        guidance_embeds: Whether the transformer takes the guidance scale as an
            input, as FLUX.1-dev does; otherwise guidance doubles the batch.
        words: Words that the tokenizers keep whole.

    Returns:
        Components in evaluation mode, fp32, on the CPU; latents of 4 channels.

    Raises:
        ValueError: If ``head_width`` is odd or below 8.

    Examples:
        >>> components = tiny_flow_components(seed=0)
        >>> sum(p.numel() for p in components.policy.parameters())
        2288144
    """
    if head_width < 8 or head_width % 2:
        msg = f"`head_width` must be even and at least 8, to turn by position; got {head_width}."
        raise ValueError(msg)
    base = tiny_components(
        seed=seed,
        # The UNet is thrown away.
        channels=(num_groups, 2 * num_groups, 2 * num_groups),
        num_heads=(1, 1, 1),
        vae_channels=vae_channels,
        text_width=text_width,
        num_groups=num_groups,
        words=words,
    )
    tokenizer = tiny_t5_tokenizer(words, length=max_tokens)
    encoder = tiny_t5(tokenizer, width=text_width, seed=seed)
    side = head_width * 7 // 32 * 2
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            in_channels=4 * base.vae.config.latent_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=head_width,
            num_attention_heads=num_heads,
            joint_attention_dim=text_width,
            pooled_projection_dim=text_width,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(head_width - 2 * side, side, side),
        )
    if guidance_embeds:
        last = transformer.time_text_embed.guidance_embedder.linear_2
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return FlowComponents(
        tokenizers=(base.tokenizer, tokenizer),
        text_encoders=(base.text_encoder, encoder),
        vae=base.vae,
        policy=FluxPolicy(transformer).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        latent_mean=base.latent_mean,
        latent_std=base.latent_std,
        max_tokens=max_tokens,
    )
