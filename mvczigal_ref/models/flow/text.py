"""Prompts to features, as FLUX.1 and Stable Diffusion 3 encode them."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.models.text import require_texts
from mvczigal_ref.shapes import PromptEmbedding

__all__ = [
    "encode_flux_prompts",
    "encode_sd3_prompts",
    "flux_feature_sizes",
    "sd3_feature_sizes",
]

Parts = Sequence[Any]
"""Tokenizers or text encoders, in the order of the pipeline's folders."""


@torch.no_grad()
def encode_flux_prompts(
    tokenizers: Parts, text_encoders: Parts, prompts: Sequence[str], *, max_tokens: int
) -> tuple[PromptEmbedding, Float[Tensor, "object pooled"]]:
    """Encode prompts with CLIP and T5.

    Token features are T5's last hidden states, padding included and unmasked;
    the pooled features are CLIP's at its end-of-text token.

    Source:
        FLUX.1 as diffusers runs it. No deviation.

    Args:
        tokenizers: CLIP's and T5's.
        text_encoders: CLIP and T5.
        prompts: One text per object; longer ones are cut.
        max_tokens: Length of T5's sequences [tokens].

    Returns:
        Token features and pooled features [1], without gradient.

    Raises:
        ValueError: If ``prompts`` is empty or a bare string.
    """
    require_texts(prompts)
    clip = text_encoders[0](_ids(tokenizers[0], prompts, text_encoders[0]))
    text = text_encoders[1](_ids(tokenizers[1], prompts, text_encoders[1], max_tokens))[0]
    return text, clip.pooler_output


@torch.no_grad()
def encode_sd3_prompts(
    tokenizers: Parts, text_encoders: Parts, prompts: Sequence[str], *, max_tokens: int
) -> tuple[PromptEmbedding, Float[Tensor, "object pooled"]]:
    """Encode prompts with two CLIPs and T5.

    Token features are the penultimate hidden states of both CLIPs side by
    side, filled with zeros to T5's width, and after them T5's last hidden
    states; the pooled features are both CLIPs' projections side by side.

    Source:
        Esser et al., arXiv:2403.03206, section 4, as diffusers runs it. No deviation.

    Args:
        tokenizers: Both CLIPs' and T5's.
        text_encoders: CLIP, CLIP and T5, the CLIPs with projections.
        prompts: One text per object; longer ones are cut.
        max_tokens: Length of T5's sequences [tokens].

    Returns:
        Token features and pooled features [1], without gradient.

    Raises:
        ValueError: If ``prompts`` is empty or a bare string.
    """
    require_texts(prompts)
    hidden, pooled = [], []
    for tokenizer, encoder in zip(tokenizers[:2], text_encoders[:2], strict=True):
        # The second CLIP is padded to the first one's length.
        ids = _ids(tokenizer, prompts, encoder, tokenizers[0].model_max_length)
        output = encoder(ids, output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
        pooled.append(output.text_embeds)
    clip = torch.cat(hidden, dim=-1)
    text = text_encoders[2](_ids(tokenizers[2], prompts, text_encoders[2], max_tokens))[0]
    clip = torch.nn.functional.pad(clip, (0, text.shape[-1] - clip.shape[-1]))
    return torch.cat([clip, text], dim=-2), torch.cat(pooled, dim=-1)


def flux_feature_sizes(text_encoders: Parts, max_tokens: int) -> tuple[tuple[int, int], int]:
    """Size what :func:`encode_flux_prompts` gives for one prompt.

    Args:
        text_encoders: CLIP and T5.
        max_tokens: Length of T5's sequences [tokens].

    Returns:
        Tokens and width of the token features, and width of the pooled ones [1].
    """
    clip, t5 = (encoder.config for encoder in text_encoders)
    return (max_tokens, t5.d_model), clip.hidden_size


def sd3_feature_sizes(text_encoders: Parts, max_tokens: int) -> tuple[tuple[int, int], int]:
    """Size what :func:`encode_sd3_prompts` gives for one prompt.

    Args:
        text_encoders: CLIP, CLIP and T5.
        max_tokens: Length of T5's sequences [tokens].

    Returns:
        Tokens and width of the token features, and width of the pooled ones [1].
    """
    *clips, t5 = (encoder.config for encoder in text_encoders)
    tokens = clips[0].max_position_embeddings + max_tokens
    return (tokens, t5.d_model), sum(clip.projection_dim for clip in clips)


def _ids(tokenizer: Any, prompts: Sequence[str], encoder: Any, length: int | None = None) -> Tensor:  # noqa: ANN401
    """Turn prompts into token numbers of one length, on the encoder's device."""
    ids: Tensor = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length or tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids.to(encoder.device)
