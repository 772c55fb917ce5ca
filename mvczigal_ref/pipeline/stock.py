"""Pipeline as stock diffusers loads it, from the parts of a folder."""

from pathlib import Path

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.loading import load_strict
from mvczigal_ref.models.published import ADAPTER_FILE
from mvczigal_ref.models.row_attention import is_row_attention
from mvczigal_ref.models.weight_files import read_safetensors
from mvczigal_ref.pipeline.text_to_multiview import TextToMultiviewPipeline

__all__ = ["StockPipeline"]


class StockPipeline(TextToMultiviewPipeline):
    """Pipeline whose UNet diffusers has loaded without its row attention, which is read here.

    Base of the class in a saved folder's ``pipeline.py``; see
    :meth:`~mvczigal_ref.pipeline.parts.MultiviewPipelineParts.save_pretrained`.
    """

    def _complete(self) -> None:
        """Install row attention, and read its values from beside the UNet's folder.

        Raises:
            CheckpointError: If the adapter's file is absent, or does not fit.
        """
        super()._complete()
        path = Path(str(self.unet.config.get("_name_or_path", ""))).parent / ADAPTER_FILE
        if not path.is_file():
            msg = (
                f"the folder of `unet` must lie beside row attention, {str(path)!r}, which is "
                "absent. Download or save the whole pipeline, or load it by "
                "TextToMultiviewPipeline.from_pretrained."
            )
            raise CheckpointError(msg)
        parameters = dict(self.unet.named_parameters())
        rows = {name: value for name, value in parameters.items() if is_row_attention(name)}
        values = {n: v for n, v in read_safetensors(path).items() if is_row_attention(n)}
        load_strict(rows, values, source=str(path))
