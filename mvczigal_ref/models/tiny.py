"""SDXL's wiring at toy size with random weights, for tests and the tiny world."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from mvczigal_ref.models.components import Components
from mvczigal_ref.models.multiview_unet import MultiViewUNet

__all__ = ["TINY_WORDS", "tiny_components", "tiny_tokenizer"]

TINY_WORDS = (
    *("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "cyan", "pink"),
    *("ball", "cube", "cone", "can", "nose", "fin"),
    *("a", "with", "and", "of", "the"),
)
"""Words that the tiny tokenizers keep whole; others fall into pieces."""

_Encoder = TypeVar("_Encoder", CLIPTextModel, CLIPTextModelWithProjection)
START, END = "<|startoftext|>", "<|endoftext|>"
# Micro-conditioning is six numbers, each embedded at this width.
_SIZE_EMBED = 8


def tiny_components(
    *,
    seed: int,
    channels: tuple[int, int, int] = (48, 80, 80),
    num_heads: tuple[int, int, int] = (3, 5, 5),
    layers_per_block: int = 1,
    transformer_layers: tuple[int, int, int] = (1, 1, 1),
    vae_channels: tuple[int, ...] = (16, 32, 64),
    text_width: int = 32,
    num_groups: int = 8,
    time_cond_proj_dim: int | None = 32,
    words: Sequence[str] = TINY_WORDS,
) -> Components:
    """Build a whole pipeline with random weights, in less than a second.

    Both text encoders are random but not dull: every word moves the features
    clearly. The guidance embedding and the autoencoder's scaling start
    neutral; the camera features start small; row attention starts as a copy
    of each layer's own projections.

    Args:
        seed: Seed of every random weight. The global generator is not touched.
        channels: Channels of the UNet's three levels; multiples of ``num_groups`` and
            of the level's heads.
        num_heads: Attention heads per level; the first level has no attention.
        layers_per_block: Residual blocks per level.
        transformer_layers: Transformer blocks per attention, by level.
        vae_channels: Channels of the autoencoder's levels; each after the first
            halves the image.
        text_width: Width of either text encoder.
        num_groups: Groups of every group normalisation.
        time_cond_proj_dim: Width of the guidance embedding; None for
            classifier-free guidance by a doubled batch.
        words: Words that the tokenizers keep whole.

    Returns:
        Components in evaluation mode, fp32, on the CPU.

    Examples:
        >>> components = tiny_components(seed=0)
        >>> sum(p.numel() for p in components.policy.parameters())
        3348852
    """
    with _seeded(seed):
        tokenizers = tiny_tokenizer(words, pad_token=END), tiny_tokenizer(words, pad_token="!")
        encoders = (
            _text_encoder(CLIPTextModel, tokenizers[0], text_width),
            _text_encoder(CLIPTextModelWithProjection, tokenizers[1], text_width),
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
            block_out_channels=vae_channels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=num_groups,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=channels,
            layers_per_block=layers_per_block,
            transformer_layers_per_block=transformer_layers,
            # SDXL's configurations give the number of heads under this name.
            attention_head_dim=num_heads,
            cross_attention_dim=2 * text_width,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=_SIZE_EMBED,
            projection_class_embeddings_input_dim=text_width + 6 * _SIZE_EMBED,
            norm_num_groups=num_groups,
            time_cond_proj_dim=time_cond_proj_dim,
        )
        camera_encoder = T2IAdapter(
            in_channels=6,
            channels=[channels[0], channels[1], channels[2], channels[2]],
            num_res_blocks=1,
            # The first features meet the UNet after one halving of the latents.
            downscale_factor=2 ** len(vae_channels),
            adapter_type="full_adapter_xl",
        )
    with torch.no_grad():
        if time_cond_proj_dim is not None:
            unet.time_embedding.cond_proj.weight.zero_()
        for layer in camera_encoder.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                layer.bias.zero_()
    for encoder in encoders:
        encoder.requires_grad_(requires_grad=False)
    policy = MultiViewUNet(unet, camera_encoder)
    policy.eval()
    return Components(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=encoders[0].eval(),
        text_encoder_2=encoders[1].eval(),
        vae=vae.eval(),
        policy=policy,
        latent_mean=torch.zeros(4),
        latent_std=torch.ones(4),
    )


def tiny_tokenizer(
    words: Sequence[str] = TINY_WORDS, *, pad_token: str = END, length: int = 16
) -> CLIPTokenizer:
    """Build a CLIP tokenizer whose merges keep some words whole.

    Args:
        words: Lower-case words; each becomes one token.
        pad_token: Token that fills a sequence: the end of text in SDXL's first
            tokenizer, ``"!"`` in its second.
        length: Tokens per prompt, both ends counted.

    Returns:
        A tokenizer of the 256 bytes, inside and at the end of a word, and the
        merges.

    Raises:
        ValueError: If a word is empty.

    Examples:
        >>> tiny_tokenizer().tokenize("a red cube")
        ['a</w>', 'red</w>', 'cube</w>']
    """
    if not all(words):
        msg = f"`words` must be non-empty texts; got {list(words)}. Leave the empty one out."
        raise ValueError(msg)
    alphabet = sorted(ByteLevel.alphabet())
    merges = list(_merges(tuple(words)))
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens += ["".join(pair) for pair in merges]
    tokens += [START, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=length,
    )


@cache
def _merges(words: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Merge the most frequent pair, ties by spelling, until each word is one token."""
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in dict.fromkeys(words)]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in pieces):
        counts = Counter(pair for word in pieces for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]
    return tuple(merges)


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair, from the left."""
    merged: list[str] = []
    index = 0
    while index < len(word):
        width = 2 if tuple(word[index : index + 2]) == pair else 1
        merged.append("".join(word[index : index + width]))
        index += width
    return merged


def _text_encoder(kind: type[_Encoder], tokenizer: CLIPTokenizer, width: int) -> _Encoder:
    """Build a random encoder whose features are of order one and differ by word."""
    encoder = kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    for module in encoder.modules():
        # CLIP's own initial embeddings, 0.02, would vanish beside what the layers add to them.
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return encoder


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw library initialisations from a seed and restore the generator after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
