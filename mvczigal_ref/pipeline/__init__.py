"""Text to multiview as a diffusers pipeline."""

from mvczigal_ref.pipeline.text_to_multiview import (
    NEGATIVE_PROMPT,
    TextToMultiviewOutput,
    TextToMultiviewPipeline,
)

__all__ = ["NEGATIVE_PROMPT", "TextToMultiviewOutput", "TextToMultiviewPipeline"]
