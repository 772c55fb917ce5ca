"""Parts of the pipelines of FLUX.1 and of Stable Diffusion 3, in diffusers' layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5Tokenizer,
)

from mvczigal_ref.models.fitting_parts import require_fitting_flux, require_fitting_sd3
from mvczigal_ref.models.flow.flux import FluxPolicy
from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.models.flow.sd3 import Sd3Policy
from mvczigal_ref.models.flow.text import encode_flux_prompts, encode_sd3_prompts

__all__ = ["FLUX", "SD3", "FlowFamily", "family_of", "numbered"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowFamily:
    """The classes of a pipeline's parts."""

    pipeline: str
    """Name of diffusers' pipeline that runs the same folder."""

    transformer: Any
    """Class of the transformer in diffusers."""

    policy: type[FlowPolicy]
    """Class of this package around the transformer."""

    encode: Callable[..., tuple[Tensor, Tensor]]
    """Function from prompts to token features and pooled features."""

    require_fitting: Callable[[Mapping[str, Path]], None]
    """Function that refuses folders of parts that do not fit each other."""

    tokenizers: tuple[Any, ...]
    """Classes of the tokenizers, in the order of the folders."""

    text_encoders: tuple[Any, ...]
    """Classes of the text encoders, one per tokenizer."""

    text_length: int
    """Usual length of T5's sequences [tokens]."""

    ends_at_trained_level: bool
    """Whether a grid's last step starts at the lowest noise level of training, and not at
    1 / steps."""


FLUX = FlowFamily(
    pipeline="FluxPipeline",
    transformer=FluxTransformer2DModel,
    policy=FluxPolicy,
    encode=encode_flux_prompts,
    require_fitting=require_fitting_flux,
    tokenizers=(CLIPTokenizer, T5Tokenizer),
    text_encoders=(CLIPTextModel, T5EncoderModel),
    text_length=512,
    ends_at_trained_level=False,
)


SD3 = FlowFamily(
    pipeline="StableDiffusion3Pipeline",
    transformer=SD3Transformer2DModel,
    policy=Sd3Policy,
    encode=encode_sd3_prompts,
    require_fitting=require_fitting_sd3,
    tokenizers=(CLIPTokenizer, CLIPTokenizer, T5Tokenizer),
    text_encoders=(CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel),
    text_length=256,
    ends_at_trained_level=True,
)


def family_of(policy: FlowPolicy) -> FlowFamily:
    """Find the family of a policy.

    Args:
        policy: A policy of one of the two families.

    Returns:
        The family.

    Raises:
        ValueError: If ``policy`` is of neither family.
    """
    for family in (FLUX, SD3):
        if isinstance(policy, family.policy):
            return family
    msg = f"`policy` must be a FluxPolicy or an Sd3Policy; got {type(policy).__name__}."
    raise ValueError(msg)


def numbered(name: str, parts: Sequence[Any]) -> dict[str, Any]:
    """Name parts as diffusers names their folders.

    Args:
        name: Name of the first; the names of the others end in their number.
        parts: The parts in order.

    Returns:
        Parts by name.

    Examples:
        >>> list(numbered("tokenizer", "ab"))
        ['tokenizer', 'tokenizer_2']
    """
    return {f"{name}_{n}" if n > 1 else name: part for n, part in enumerate(parts, start=1)}
