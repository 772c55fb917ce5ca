"""Parts of the pipelines of SDXL and Stable Diffusion 1.5, and their prompts' features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from mvczigal_ref.models.text import require_texts
from mvczigal_ref.models.tokenizer_files import text_length
from mvczigal_ref.shapes import PromptEmbedding

__all__ = ["SD15", "SDXL", "UNET_FAMILIES", "UnetFamily", "encode_clip_prompts"]

Parts = Sequence[Any]
"""Tokenizers or text encoders, in the order of the pipeline's folders."""


@torch.no_grad()
def encode_clip_prompts(
    tokenizers: Parts, text_encoders: Parts, prompts: Sequence[str]
) -> tuple[PromptEmbedding, Float[Tensor, "object pooled"]]:
    """Encode prompts with one CLIP or two.

    Of one, the token features are the last hidden states, normalised, and there are no pooled
    features. Of two, they are the penultimate hidden states of both side by side, without the
    final normalisation; the pooled features are the second's projection.

    Source:
        Rombach et al., arXiv:2112.10752, as Stable Diffusion 1.5 is run by diffusers; Podell et
        al., SDXL, arXiv:2307.01952, section 2.1. No deviation.

    Args:
        tokenizers: CLIP's, one or two.
        text_encoders: CLIP, and for SDXL a second one with a projection.
        prompts: One text per object; longer ones are cut.

    Returns:
        Token features and pooled features [1], of width 0 with one CLIP; without gradient.

    Raises:
        ValueError: If ``prompts`` is empty or a bare string.
    """
    require_texts(prompts)
    outputs = []
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
        ids = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=text_length(tokenizer, encoder),
            truncation=True,
            return_tensors="pt",
        ).input_ids
        outputs.append(encoder(ids.to(encoder.device), output_hidden_states=True))
    if len(outputs) == 1:
        hidden: Tensor = outputs[0].last_hidden_state
        return hidden, hidden.new_zeros(len(prompts), 0)
    text = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return text, outputs[-1].text_embeds


@dataclass(frozen=True, kw_only=True, slots=True)
class UnetFamily:
    """The classes of a pipeline's parts."""

    pipeline: str
    """Name of diffusers' pipeline that runs the same folder."""

    text_encoders: tuple[Any, ...]
    """Classes of the text encoders, one per CLIP tokenizer."""

    encode: Callable[..., tuple[Tensor, Tensor]] = encode_clip_prompts
    """Function from prompts to token features and pooled features."""


SDXL = UnetFamily(
    pipeline="StableDiffusionXLPipeline",
    text_encoders=(CLIPTextModel, CLIPTextModelWithProjection),
)


SD15 = UnetFamily(pipeline="StableDiffusionPipeline", text_encoders=(CLIPTextModel,))


UNET_FAMILIES = {family.pipeline: family for family in (SDXL, SD15)}
"""Families by the name in a pipeline's index."""
