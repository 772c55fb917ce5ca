"""Prompts to features, as SDXL encodes them."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.models.tokenizer_files import text_length
from mvczigal_ref.shapes import PromptEmbedding

__all__ = ["TextComponents", "encode_prompts"]


@runtime_checkable
class TextComponents(Protocol):
    """The four parts that turn prompts into features."""

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 - transformers' tokenizers are untyped
        """Tokenizer of the first encoder."""

    @property
    def tokenizer_2(self) -> Any:  # noqa: ANN401
        """Tokenizer of the second encoder."""

    @property
    def text_encoder(self) -> Any:  # noqa: ANN401
        """CLIP text encoder."""

    @property
    def text_encoder_2(self) -> Any:  # noqa: ANN401
        """CLIP text encoder with a projection."""


@torch.no_grad()
def encode_prompts(
    components: TextComponents, prompts: Sequence[str]
) -> tuple[PromptEmbedding, Float[Tensor, "object pooled"]]:
    """Encode prompts with both text encoders.

    Token features are the penultimate hidden states of both encoders, side by
    side, without the final normalisation; the pooled features are the second
    encoder's projection of its end-of-text token.

    Source:
        Podell et al., SDXL, arXiv:2307.01952, section 2.1.

    Args:
        components: Tokenizers and encoders.
        prompts: One text per object; longer ones are cut at the tokenizer's
            length, or at the encoder's where that is shorter.

    Returns:
        Token features and pooled features [1], without gradient.

    Raises:
        ValueError: If ``prompts`` is empty or a bare string.
    """
    if isinstance(prompts, str) or not prompts:
        msg = f"`prompts` must be a sequence of at least one text; got {prompts!r}. Give a list."
        raise ValueError(msg)
    hidden = []
    pooled: Tensor | None = None
    pairs = (
        (components.tokenizer, components.text_encoder),
        (components.tokenizer_2, components.text_encoder_2),
    )
    for tokenizer, encoder in pairs:
        ids = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=text_length(tokenizer, encoder),
            truncation=True,
            return_tensors="pt",
        ).input_ids
        output = encoder(ids.to(encoder.device), output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
        pooled = getattr(output, "text_embeds", None)
    if pooled is None:
        msg = (
            "`text_encoder_2` must project its pooled features; got "
            f"{type(components.text_encoder_2).__name__}. Use CLIPTextModelWithProjection."
        )
        raise ValueError(msg)
    return torch.cat(hidden, dim=-1), pooled
