"""Sizes of a run's pipeline: published ones, or those of a folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.published import weights_folder
from mvczigal_ref.models.weight_files import read_json

__all__ = ["pipeline_sizes"]

Family = TypeVar("Family")
Sizes = TypeVar("Sizes")


def pipeline_sizes(
    weights: str,
    published: Mapping[str, Sizes],
    families: Mapping[str, Family],
    read: Callable[[Path, Family], Sizes],
) -> tuple[Sizes, str]:
    """Choose the sizes of a pipeline's networks, before any weights are read.

    Args:
        weights: ``model.weights``: a folder, or the name of a published pipeline.
        published: Sizes by published name.
        families: Families by the name of their pipeline.
        read: Reads the settings of every part of a folder.

    Returns:
        The sizes and their source.

    Raises:
        ConfigError: If there is no such folder, or it holds another pipeline.
    """
    folder = weights_folder(weights)
    if weights in published and not folder.is_dir():
        return published[weights], f"the published {weights}"
    try:
        family = families[read_json(folder / "model_index.json")["_class_name"]]
        return read(folder, family), str(folder)
    except (OSError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        msg = (
            f"`model.weights` must be one of {list(published)}, or the folder of a pipeline of "
            f"{sorted(families)}: {reason}"
        )
        raise ConfigError(msg) from error
