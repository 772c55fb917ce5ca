"""Parts of the pipelines of SDXL and Stable Diffusion 1.5."""

from dataclasses import dataclass
from typing import Any

from transformers import CLIPTextModel, CLIPTextModelWithProjection

__all__ = ["SD15", "SDXL", "UNET_FAMILIES", "UnetFamily"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnetFamily:
    """The classes of a pipeline's parts."""

    pipeline: str
    """Name of diffusers' pipeline that runs the same folder."""

    text_encoders: tuple[Any, ...]
    """Classes of the text encoders, one per CLIP tokenizer."""


SDXL = UnetFamily(
    pipeline="StableDiffusionXLPipeline",
    text_encoders=(CLIPTextModel, CLIPTextModelWithProjection),
)


SD15 = UnetFamily(pipeline="StableDiffusionPipeline", text_encoders=(CLIPTextModel,))


UNET_FAMILIES = {family.pipeline: family for family in (SDXL, SD15)}
"""Families by the name in a pipeline's index."""
