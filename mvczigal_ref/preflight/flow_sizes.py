"""Sizes of a flow pipeline's networks: published ones, and those of a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from mvczigal_ref.models.flow.families import (
    FLUX,
    SD3,
    Z_IMAGE,
    FlowFamily,
    numbered,
)
from mvczigal_ref.models.weight_files import read_json

__all__ = ["PUBLISHED_FLOW", "FlowSizes", "config_class", "stored_flow_sizes"]


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


_QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728, "head_dim": 128,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}  # fmt: skip


_SD35: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
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
class FlowSizes:
    """Settings of every part of a pipeline, as diffusers and transformers store them."""

    family: FlowFamily
    """Classes of the parts."""

    transformer: Mapping[str, Any]
    """Settings of the transformer."""

    text_encoders: tuple[Mapping[str, Any], ...]
    """Settings of the text encoders, in order."""

    vae: Mapping[str, Any]
    """Settings of the autoencoder."""

    scheduler: Mapping[str, Any]
    """Settings of the scheduler."""

    longest_text: int = 512
    """Longest text of the last tokenizer [tokens]."""


PUBLISHED_FLOW: dict[str, FlowSizes] = {
    "black-forest-labs/FLUX.1-dev": FlowSizes(
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
    "black-forest-labs/FLUX.1-schnell": FlowSizes(
        family=FLUX,
        transformer={
            "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "pooled_projection_dim": 768, "guidance_embeds": False, "axes_dims_rope": (16, 56, 56),
        },
        text_encoders=(_CLIP_L, _T5_XXL),
        vae=_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        scheduler={"shift": 1.0},
    ),
    "stabilityai/stable-diffusion-3.5-medium": FlowSizes(
        family=SD3,
        transformer={
            **_SD35, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
            "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
        },
        text_encoders=(_CLIP_L, _CLIP_G, _T5_XXL),
        vae=_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        scheduler={"shift": 3.0},
    ),
    "stabilityai/stable-diffusion-3.5-large": FlowSizes(
        family=SD3,
        transformer={
            **_SD35, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
        },
        text_encoders=(_CLIP_L, _CLIP_G, _T5_XXL),
        vae=_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        scheduler={"shift": 3.0},
    ),
    "Tongyi-MAI/Z-Image-Turbo": FlowSizes(
        family=Z_IMAGE,
        transformer={
            "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30,
            "n_kv_heads": 30, "cap_feat_dim": 2560, "axes_dims": (32, 48, 48),
            "axes_lens": (1536, 512, 512),
        },
        text_encoders=(_QWEN3_4B,),
        vae=_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        scheduler={"shift": 3.0},
    ),
}  # fmt: skip
"""Sizes of the published pipelines, by the name that ``model.weights`` gives them."""


def stored_flow_sizes(folder: Path, family: FlowFamily) -> FlowSizes:
    """Read the settings of a folder's networks.

    Args:
        folder: Folder of the pipeline; no weights are read.
        family: Family that its index names.

    Returns:
        Settings of every part.
    """
    tokenizer = list(numbered("tokenizer", family.tokenizers))[-1]
    texts = read_json(folder / tokenizer / "tokenizer_config.json")
    return FlowSizes(
        family=family,
        transformer=family.transformer.load_config(folder / "transformer"),
        text_encoders=tuple(
            config_class(kind).from_pretrained(folder / part).to_dict()
            for part, kind in numbered("text_encoder", family.text_encoders).items()
        ),
        vae=AutoencoderKL.load_config(folder / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler"),
        longest_text=int(texts.get("model_max_length", 512)),
    )


def config_class(encoder: type) -> Any:  # noqa: ANN401 - transformers is untyped
    """Choose the class of a text encoder's settings.

    Args:
        encoder: Class of the encoder.

    Returns:
        Class that the encoder's own names.

    Examples:
        >>> from transformers import T5EncoderModel
        >>> config_class(T5EncoderModel).__name__
        'T5Config'
    """
    return encoder.config_class  # type: ignore[attr-defined]
