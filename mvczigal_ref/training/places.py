"""Files and folders that a configuration names, by absolute path."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.paths import setting_value
from mvczigal_ref.models.published import PUBLISHED, SHIPPED
from mvczigal_ref.training.prompt_rows import split_column

__all__ = ["absolute_paths", "in_places"]


_PATHS = ("model.weights", "run.prompts", "run.held_out", "condition.file")


def absolute_paths(config: TrainConfig) -> dict[str, str]:
    """Find the files and folders that a configuration names.

    Args:
        config: The run.

    Returns:
        Absolute path by setting, of those that name something on this disk.

    Examples:
        >>> absolute_paths(TrainConfig())
        {}
    """
    paths = {}
    for setting in _PATHS:
        value = setting_value(config, setting)
        if value is None or value in (*PUBLISHED, *SHIPPED) or value.startswith("world."):
            continue
        path, column = Path(value).expanduser(), None
        if setting.startswith("run."):
            path, column = split_column(value)
        with suppress(OSError):  # of a name too long
            if path.exists():
                paths[setting] = f"{path.absolute()}{'' if column is None else f':{column}'}"
    return paths


def in_places(config: TrainConfig, paths: Mapping[str, str] | None = None) -> TrainConfig:
    """Write paths out, so that they mean the same in any folder.

    Args:
        config: The run.
        paths: Absolute paths by setting, as a checkpoint keeps them; found anew if absent.

    Returns:
        The configuration with absolute paths.

    Examples:
        >>> in_places(TrainConfig()) == TrainConfig()
        True
    """
    for setting, path in (absolute_paths(config) if paths is None else paths).items():
        section, _, name = setting.partition(".")
        part: Any = getattr(config, section)
        config = replace(config, **{section: replace(part, **{name: path})})
    return config
