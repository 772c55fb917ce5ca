"""Translation of CLIP checkpoints between OpenAI's names and transformers'.

OpenCLIP and most scorers built on CLIP use OpenAI's names; transformers has others, separates
queries, keys and values, and stores projections transposed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_openai", "to_openai"]

# Beginnings of names: transformers' (CLIPModel), then OpenAI's.
_BEGINNINGS = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
)
# Parts of names after a layer's number.
_LAYER_PARTS = (
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)
_JOINT = ".attn.in_proj_"
_APART = tuple(f".self_attn.{letter}_proj." for letter in "qkv")
_TRANSPOSED = ("visual.proj", "text_projection")


def to_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of transformers' ``CLIPModel`` to OpenAI's names.

    Args:
        state: Tensors by transformers' name, on any device, the meta device too. Names
            that are not in the tables stay.

    Returns:
        Tensors by OpenAI's name; copies where queries, keys and values are joined.

    Examples:
        >>> state = {"text_projection.weight": torch.zeros(2, 3)}
        >>> {name: tuple(value.shape) for name, value in to_openai(state).items()}
        {'text_projection': (3, 2)}
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        query, key, val = _APART
        if key in name or val in name:
            continue
        if query in name:
            parts = [state[name.replace(query, part)] for part in _APART]
            renamed[_renamed(name, 0).replace(query, _JOINT)] = torch.cat(parts)
            continue
        new = _renamed(name, 0)
        renamed[new] = value.T if new in _TRANSPOSED else value
    return renamed


def from_openai(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from OpenAI's names to those of transformers' ``CLIPModel``.

    Args:
        tensors: Tensors by OpenAI's name. Names that are not in the tables stay.

    Returns:
        Tensors by transformers' name; the inverse of :func:`to_openai`.

    Examples:
        >>> list(from_openai({"transformer.resblocks.0.attn.in_proj_bias": torch.zeros(6)}))[1]
        'text_model.encoder.layers.0.self_attn.k_proj.bias'
    """
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = _renamed(name, 1)
        if _JOINT in name:
            for part, chunk in zip(_APART, value.chunk(3), strict=True):
                renamed[new.replace(_JOINT, part)] = chunk
        else:
            renamed[new] = value.T.contiguous() if name in _TRANSPOSED else value
    return renamed


def _renamed(name: str, column: int) -> str:
    """Translate a name from this column of the tables into the other."""
    for row in _BEGINNINGS:
        if name.startswith(row[column]):
            name = row[1 - column] + name.removeprefix(row[column])
            break
    for row in _LAYER_PARTS:
        name = name.replace(row[column], row[1 - column])
    return name
