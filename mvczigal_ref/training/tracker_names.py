"""Trackers by name: whether the package of each is installed, seen without importing any."""

import importlib.util
from collections.abc import Sequence

from mvczigal_ref.errors import ConfigError

__all__ = ["require_trackers"]

_IN_EXTRA = ("tensorboard", "wandb")  # of the extra `tracking`
_PACKAGES = {"comet_ml": "comet-ml"}  # packages that are not named like their modules


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed.

    Args:
        names: As in ``run.trackers``.

    Raises:
        ConfigError: If one is not installed; names the command that installs it.

    Examples:
        >>> require_trackers([])
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            package = '-e ".[tracking]"' if name in _IN_EXTRA else _PACKAGES.get(name, name)
            msg = (
                f"tracker {name!r} is not installed. Run `pip install {package}`, or take it out "
                "of `run.trackers`."
            )
            raise ConfigError(msg)
