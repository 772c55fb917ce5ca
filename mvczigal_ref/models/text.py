"""Prompts to features of CLIP, and to the record that a policy reads."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.models.tokenizer_files import text_length
from mvczigal_ref.policy import CameraFeatures, Conditioning
from mvczigal_ref.shapes import PromptEmbedding

__all__ = [
    "encode_clip_prompts",
    "negative_features",
    "require_texts",
    "text_conditioning",
]

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
        prompts: One text per object; longer ones are cut at the tokenizer's length, or at the
            encoder's where that is shorter.

    Returns:
        Token features and pooled features [1], of width 0 with one CLIP; without gradient.

    Raises:
        ValueError: If ``prompts`` is empty or a bare string, or a second encoder has no
            projection.
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
    pooled: Tensor | None = getattr(outputs[-1], "text_embeds", None)
    if pooled is None:
        msg = (
            "`text_encoder_2` must project its pooled features; got "
            f"{type(text_encoders[-1]).__name__}. Use CLIPTextModelWithProjection."
        )
        raise ValueError(msg)
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), pooled


def text_conditioning(
    encode: Callable[[Sequence[str]], tuple[Tensor, Tensor]],
    prompts: Sequence[str],
    *,
    negative_prompt: str | None,
    image_size: tuple[int, int],
    camera_features: CameraFeatures = (),
    num_views: int = 1,
) -> Conditioning:
    """Encode prompts, each once, into the record that a policy reads.

    Args:
        encode: Gives token features and pooled features of texts.
        prompts: One text per object.
        negative_prompt: Text that classifier-free guidance leads away from, if any.
        image_size: Height and width of the images [px]; 0 for networks that do not read them.
        camera_features: Features of the cameras [1]; none for networks without.
        num_views: Views of one object.

    Returns:
        The record.
    """
    embeds, pooled = encode(prompts)
    negative, negative_pooled = (
        (None, None) if negative_prompt is None else encode([negative_prompt])
    )
    # Original size, crop and target size: whole images at their own size.
    sizes = torch.tensor([*image_size, 0, 0, *image_size]).to(embeds)
    return Conditioning(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        time_ids=sizes.repeat(len(prompts), 1),
        camera_features=camera_features,
        num_views=num_views,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
    )


def require_texts(prompts: Sequence[str]) -> None:
    """Refuse a bare string, which would be encoded letter by letter, and an empty list.

    Args:
        prompts: Prompts to encode.

    Raises:
        ValueError: If ``prompts`` is empty or a bare string.

    Examples:
        >>> require_texts("a can")
        Traceback (most recent call last):
        ValueError: `prompts` must be a sequence of at least one text; got 'a can'. Give a list.
    """
    if isinstance(prompts, str) or not prompts:
        msg = f"`prompts` must be a sequence of at least one text; got {prompts!r}. Give a list."
        raise ValueError(msg)


def negative_features(conditioning: Conditioning, name: str, like: Tensor) -> Tensor:
    """Give the negative prompt's features, one entry per object.

    Args:
        conditioning: Conditioning of the objects.
        name: Field of the features.
        like: Features of the prompts, whose shape the result has.

    Returns:
        The features of the negative prompt, not copied.

    Raises:
        ValueError: If the conditioning has no negative prompt.
    """
    value: Tensor | None = getattr(conditioning, name)
    if value is None:
        msg = (
            f"`conditioning.{name}` must be given for a `guidance_scale` above 1 without a "
            "guidance embedding; got None. Build the conditioning with a negative prompt."
        )
        raise ValueError(msg)
    return value.expand_as(like)
