"""A flow pipeline's networks without a byte of weights: sizes from a folder, or published ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextConfig, T5Config, T5EncoderModel

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.families import FLUX, SD3, FlowFamily, numbered
from mvczigal_ref.models.flow.tiny import tiny_t5_tokenizer
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.models.weight_files import read_json
from mvczigal_ref.system.networks import DTYPES, weights_folder

__all__ = ["PUBLISHED_FLOW", "meta_flow_components"]

_CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip

_CLIP_G: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip

_T5_XXL: dict[str, Any] = {
    "vocab_size": 32_128, "d_model": 4096, "d_kv": 64, "d_ff": 10_240, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip

_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """Settings of every part of a pipeline, as diffusers and transformers store them."""

    family: FlowFamily
    transformer: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    longest_text: int = 512


PUBLISHED_FLOW: dict[str, _Sizes] = {
    "black-forest-labs/FLUX.1-dev": _Sizes(
        family=FLUX,
        transformer={
            "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
        },
        text_encoders=(_CLIP_L, _T5_XXL),
        vae=_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        scheduler={"shift": 3.0, "use_dynamic_shifting": True},
    ),
    "stabilityai/stable-diffusion-3.5-medium": _Sizes(
        family=SD3,
        transformer={
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
            "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
            "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
        text_encoders=(_CLIP_L, _CLIP_G, _T5_XXL),
        vae=_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        scheduler={"shift": 3.0},
    ),
}  # fmt: skip
"""Sizes of the published pipelines, by the name that ``model.weights`` gives them."""

_TEXT_LENGTH = {FLUX.pipeline: 512, SD3.pipeline: 256}
"""T5's usual length of each pipeline [tokens]."""


def meta_flow_components(config: TrainConfig) -> tuple[FlowComponents, str]:
    """Lay out a flow pipeline on the meta device.

    Args:
        config: ``model.weights`` names a folder, whose sizes are read, or a published pipeline.

    Returns:
        Networks in the types in which they are loaded, and the source of their sizes. Their
        tokenizers are the tiny ones.

    Raises:
        ConfigError: If there is no such folder, or it holds another pipeline.

    Examples:
        >>> from mvczigal_ref.recipes import recipe
        >>> components, source = meta_flow_components(recipe("flow_grpo"))
        >>> source, sum(p.numel() for p in components.policy.parameters())
        ('the published black-forest-labs/FLUX.1-dev', 11901408320)
    """
    name, folder = config.model.weights, weights_folder(config.model.weights)
    if name in PUBLISHED_FLOW and not folder.is_dir():
        sizes, source = PUBLISHED_FLOW[name], f"the published {name}"
    else:
        sizes, source = _read(folder), str(folder)
    dtype = DTYPES[config.model.dtype]
    usual = min(_TEXT_LENGTH[sizes.family.pipeline], sizes.longest_text)
    with torch.device("meta"):
        transformer = sizes.family.transformer.from_config(dict(sizes.transformer))
        vae = AutoencoderKL.from_config(dict(sizes.vae))
        encoders = tuple(
            kind(_text_config(kind, settings))
            for kind, settings in zip(sizes.family.text_encoders, sizes.text_encoders, strict=True)
        )
        policy = sizes.family.policy(transformer).eval()
        channels = vae.config.latent_channels
        components = FlowComponents(
            tokenizers=(*(tiny_tokenizer() for _ in encoders[:-1]), tiny_t5_tokenizer()),
            text_encoders=tuple(encoder.to(dtype) for encoder in encoders),
            vae=vae,
            policy=policy.to(dtype),
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(sizes.scheduler)),
            latent_mean=torch.zeros(channels),
            latent_std=torch.ones(channels),
            max_tokens=config.flow.text_length or usual,
        )
    return components, source


def _text_config(kind: Any, settings: Mapping[str, Any]) -> Any:  # noqa: ANN401
    return (T5Config if kind is T5EncoderModel else CLIPTextConfig)(**settings)


def _read(folder: Path) -> _Sizes:
    """Read the sizes of a pipeline in diffusers' layout."""
    pipelines = {family.pipeline: family for family in (FLUX, SD3)}
    try:
        name = read_json(folder / "model_index.json")["_class_name"]
        family = pipelines[name]
        encoders = numbered("text_encoder", family.text_encoders)
        tokenizer = list(numbered("tokenizer", family.tokenizers))[-1]
        texts = read_json(folder / tokenizer / "tokenizer_config.json")
        return _Sizes(
            family=family,
            transformer=family.transformer.load_config(folder / "transformer"),
            text_encoders=tuple(
                (T5Config if kind is T5EncoderModel else CLIPTextConfig)
                .from_pretrained(folder / part)
                .to_dict()
                for part, kind in encoders.items()
            ),
            vae=AutoencoderKL.load_config(folder / "vae"),
            scheduler=FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler"),
            longest_text=int(texts.get("model_max_length", 512)),
        )
    except (OSError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        msg = (
            f"`model.weights` must be one of {list(PUBLISHED_FLOW)}, or the folder of a pipeline "
            f"of {sorted(pipelines)}: {reason}"
        )
        raise ConfigError(msg) from error
