"""Z-Image's wiring at toy size with random weights, for tests."""

from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.z_image import ZImagePolicy
from mvczigal_ref.models.tiny import tiny_components

__all__ = ["tiny_z_image_components"]

_CHAT = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"


def tiny_z_image_components(*, seed: int, max_tokens: int = 48) -> FlowComponents:
    """Build a whole Z-Image pipeline with random weights, in less than a second.

    The tokenizer spells letter by letter; the autoencoder is the tiny multi-view pipeline's.

    Args:
        seed: Seed of every random weight. The global generator is not touched.
        max_tokens: Length to which chats are padded [tokens].

    Returns:
        Components in evaluation mode, fp32, on the CPU; latents of 4 channels.

    Examples:
        >>> components = tiny_z_image_components(seed=0)
        >>> components.policy.num_tokens(8, 8)
        16
    """
    base = tiny_components(
        seed=seed, channels=(8, 8, 8), num_heads=(1, 1, 1), vae_channels=(8, 8, 16), text_width=8
    )
    tokenizer = _tokenizer(sorted(ByteLevel.alphabet()), max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        nn.init.normal_(encoder.embed_tokens.weight)  # Qwen's own, 0.02, would all look alike
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=(4, 6, 6),
            axes_lens=(128, 32, 32),
        )
        for pad in (transformer.x_pad_token, transformer.cap_pad_token):
            nn.init.normal_(pad)
    return FlowComponents(
        tokenizers=(tokenizer,),
        text_encoders=(encoder.eval().requires_grad_(requires_grad=False),),
        vae=base.vae,
        policy=ZImagePolicy(transformer).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        latent_mean=base.latent_mean,
        latent_std=base.latent_std,
        max_tokens=max_tokens,
    )


def _tokenizer(letters: Sequence[str], length: int) -> Qwen2Tokenizer:
    """Build a tokenizer of single bytes with a template for chats."""
    tokenizer = Qwen2Tokenizer(
        vocab={letter: index for index, letter in enumerate([*letters, "<|endoftext|>"])},
        merges=[],
        model_max_length=length,
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = _CHAT
    return tokenizer
