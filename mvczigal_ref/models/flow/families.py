"""Parts of the pipelines of flow transformers, in diffusers' layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import (
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Model,
    T5EncoderModel,
    T5Tokenizer,
)

from mvczigal_ref.models.fitting_parts import (
    require_fitting_flux,
    require_fitting_sd3,
    require_fitting_z_image,
)
from mvczigal_ref.models.flow.flux import FluxPolicy
from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.models.flow.sd3 import Sd3Policy
from mvczigal_ref.models.flow.text import (
    encode_flux_prompts,
    encode_sd3_prompts,
    flux_feature_sizes,
    sd3_feature_sizes,
)
from mvczigal_ref.models.flow.z_image import (
    ZImagePolicy,
    encode_z_image_prompts,
    z_image_feature_sizes,
)

__all__ = [
    "FLOW_FAMILIES",
    "FLUX",
    "SD3",
    "Z_IMAGE",
    "FlowFamily",
    "family_of",
    "numbered",
    "register_flow_family",
]


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

    tokenizers: tuple[Any, ...]
    """Classes of the tokenizers, in the order of the folders."""

    text_encoders: tuple[Any, ...]
    """Classes of the text encoders, one per tokenizer."""

    feature_sizes: Callable[[Sequence[Any], int], tuple[tuple[int, int], int]]
    """Function from text encoders and length of the text to tokens and width of the token
    features, and to the width of the pooled ones."""

    text_length: int
    """Usual length of the last text encoder's sequences [tokens]."""

    ends_at_trained_level: bool
    """Whether a grid's last step starts at the lowest noise level of training, and not at
    1 / steps."""

    require_fitting: Callable[[Mapping[str, Path]], None] | None = None
    """Function that refuses folders of parts that do not fit each other, from their settings."""


FLUX = FlowFamily(
    pipeline="FluxPipeline",
    transformer=FluxTransformer2DModel,
    policy=FluxPolicy,
    encode=encode_flux_prompts,
    require_fitting=require_fitting_flux,
    feature_sizes=flux_feature_sizes,
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
    feature_sizes=sd3_feature_sizes,
    tokenizers=(CLIPTokenizer, CLIPTokenizer, T5Tokenizer),
    text_encoders=(CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel),
    text_length=256,
    ends_at_trained_level=True,
)


Z_IMAGE = FlowFamily(
    pipeline="ZImagePipeline",
    transformer=ZImageTransformer2DModel,
    policy=ZImagePolicy,
    encode=encode_z_image_prompts,
    require_fitting=require_fitting_z_image,
    feature_sizes=z_image_feature_sizes,
    tokenizers=(Qwen2Tokenizer,),
    text_encoders=(Qwen3Model,),
    text_length=512,
    ends_at_trained_level=False,
)


FLOW_FAMILIES = [FLUX, SD3, Z_IMAGE]
"""Every family; :func:`register_flow_family` adds one."""


def register_flow_family(family: FlowFamily) -> None:
    """Add a family, so that folders which name its pipeline are loaded.

    Args:
        family: Parts of the pipeline.

    Raises:
        ValueError: If a family of that pipeline or policy is there already.
    """
    for other in FLOW_FAMILIES:
        if family.pipeline == other.pipeline or issubclass(family.policy, other.policy):
            msg = (
                f"`family` must be of a pipeline and a policy of its own; got {family.pipeline} "
                f"with {family.policy.__name__}, beside {other.pipeline} with "
                f"{other.policy.__name__}."
            )
            raise ValueError(msg)
    FLOW_FAMILIES.append(family)


def family_of(policy: FlowPolicy) -> FlowFamily:
    """Find the family of a policy.

    Args:
        policy: A policy of one of the families.

    Returns:
        The family.

    Raises:
        ValueError: If ``policy`` is of no family.
    """
    for family in FLOW_FAMILIES:
        if isinstance(policy, family.policy):
            return family
    kinds = ", ".join(family.policy.__name__ for family in FLOW_FAMILIES)
    msg = f"`policy` must be one of {kinds}; got {type(policy).__name__}."
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
