"""Files and folders that a configuration names: by absolute path, or by their content."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig, fingerprinted
from mvczigal_ref.config.fingerprint import settings_difference
from mvczigal_ref.config.paths import setting_value
from mvczigal_ref.models.published import PUBLISHED, SHIPPED
from mvczigal_ref.training.identity import names_content
from mvczigal_ref.training.prompt_rows import split_column

__all__ = ["absolute_paths", "in_places", "run_difference"]


_PATHS = ("model.weights", "run.prompts", "run.held_out", "condition.file")
_BY_CONTENT = {"model.weights": "weights", "model.sources": "weights", "run.prompts": "prompts"}


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
                place = _without_links(path.absolute())
                paths[setting] = f"{place}{'' if column is None else f':{column}'}"
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
        place = str(_without_links(Path(path)))  # older checkpoints keep links
        config = replace(config, **{section: replace(part, **{name: place})})
    return config


def _without_links(path: Path) -> Path:
    """Follow the links of a path's folders: `..` may come after one."""
    return path.parent.resolve() / path.name


def run_difference(there: TrainConfig, here: TrainConfig, state: Mapping[str, Any]) -> str:
    """Say in which settings two runs differ, wherever base weights and prompts lie.

    What a checkpoint tells of their content is compared by
    :func:`~mvczigal_ref.training.identity.require_same_weights` and
    :func:`~mvczigal_ref.training.met_prompts.require_same_prompts`, so that a folder that was moved
    with them goes on.

    Args:
        there: Configuration of the other run, in its places.
        here: Configuration of this run, in its places.
        state: JSON values of a checkpoint of the other run; empty without one.

    Returns:
        Both values of each setting that differs, or an empty text.

    Examples:
        >>> run_difference(TrainConfig(), TrainConfig(), {})
        ''
    """
    before, after = fingerprinted(there), fingerprinted(here)
    for setting, record in _BY_CONTENT.items():
        content = state.get(record)
        if names_content(content) if record == "weights" else content is not None:
            section, _, name = setting.partition(".")
            after[section][name] = before[section][name]
    return settings_difference(before, after)
