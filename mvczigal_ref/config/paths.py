"""Settings by their dotted paths, as messages, files and the command line name them."""

from typing import Any

__all__ = ["setting_value"]


def setting_value(config: Any, path: str) -> Any:  # noqa: ANN401 - of any setting
    """Read one setting.

    Args:
        config: A :class:`~mvczigal_ref.config.train.TrainConfig`.
        path: Dotted path, such as ``optim.lr``; that of the recipe's name has no section.

    Returns:
        Value of the setting.

    Examples:
        >>> from mvczigal_ref.config import TrainConfig
        >>> setting_value(TrainConfig(), "run.seed"), setting_value(TrainConfig(), "recipe")
        (0, 'custom')
    """
    section, _, name = path.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)
