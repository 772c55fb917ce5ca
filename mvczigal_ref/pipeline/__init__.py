"""Text to multiview as a diffusers pipeline."""

from mvczigal_ref.pipeline.text_to_multiview import TextToMultiviewOutput, TextToMultiviewPipeline

__all__ = ["TextToMultiviewOutput", "TextToMultiviewPipeline"]
