"""Prompts to features, as SDXL encodes them."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.models.tokenizer_files import text_length
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.shapes import PromptEmbedding

__all__ = ["TextComponents", "encode_prompts", "negative_features", "require_texts"]


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
    require_texts(prompts)
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
