"""Conversion of a published checkpoint into safetensors, without running its pickle."""

from pathlib import Path

from safetensors import SafetensorError

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.file_kinds import require_conversion
from mvczigal_ref.models.weight_files import write_safetensors
from mvczigal_ref.reward.foreign_tensors import read_pickle

__all__ = ["convert_checkpoint"]


def convert_checkpoint(source: str | Path, target: str | Path | None = None) -> Path:
    """Write the tensors of a ``.pt`` or ``.pth`` file as safetensors, once.

    Names, values and dtypes stay as they are. The file is written whole or not at all.

    Args:
        source: File that ``torch.save`` wrote, under any name.
        target: File to write; beside the source with the suffix ``.safetensors`` when None.

    Returns:
        The file that was written.

    Raises:
        ConfigError: If the source is absent or safetensors already, or the target exists.
        CheckpointError: If the source is no file of tensors.
        OSError: If the disk does not take the target.

    Examples:
        >>> import tempfile, torch
        >>> from mvczigal_ref.reward.foreign_tensors import read_tensors
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"state_dict": {"weight": torch.ones(2)}}, folder / "model.pt")
        >>> written = convert_checkpoint(folder / "model.pt")
        >>> written.name, read_tensors(written)
        ('model.safetensors', {'weight': tensor([1., 1.])})
    """
    source = Path(source)
    target = Path(target) if target is not None else source.with_suffix(".safetensors")
    kind = require_conversion(source, target)
    tensors = read_pickle(source, kind)
    try:
        write_safetensors(target, tensors, metadata={"format": "pt", "source": source.name})
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        msg = f"`source` must hold tensors that safetensors can; got {str(source)!r}: {error}"
        raise CheckpointError(msg) from error
    return target
