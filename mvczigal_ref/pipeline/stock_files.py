"""Files beside a saved pipeline by which stock diffusers loads it."""

from pathlib import Path

import torch
from diffusers import T2IAdapter
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save

from mvczigal_ref.files import atomic_write
from mvczigal_ref.models.loading import stored

__all__ = ["CUSTOM_PIPELINE", "write_stock_files"]

# diffusers refuses a file in which it finds two pipelines; a module's name is none.
CUSTOM_PIPELINE = '''"""Custom pipeline of stock diffusers; mvczigal_ref holds its code."""

from mvczigal_ref.pipeline import stock


class TextToMultiviewPipeline(stock.StockPipeline):
    """SDXL with row attention and cameras, from this folder."""
'''
"""Content of ``pipeline.py``, which diffusers runs for ``custom_pipeline``."""


def write_stock_files(
    camera_encoder: T2IAdapter, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write the custom pipeline, and the camera encoder where diffusers looks for it.

    Row attention stays in the adapter's file, as a plain UNet has no place for it.

    Args:
        camera_encoder: The camera encoder, whose settings the folder holds already.
        folder: Folder of the saved pipeline.
        dtype: Floating type of the stored tensors; as they are when None.
    """
    values = save(stored(camera_encoder.state_dict(), dtype), metadata={"format": "pt"})
    atomic_write(folder / "camera_encoder" / SAFETENSORS_WEIGHTS_NAME, values)
    atomic_write(folder / "pipeline.py", CUSTOM_PIPELINE)
