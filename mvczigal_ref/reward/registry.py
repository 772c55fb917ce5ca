"""Scorers by the name that a configuration gives."""

from collections.abc import Callable, Mapping

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.world import WorldJointView, WorldPerView

__all__ = ["joint_view_scorer", "per_view_scorer"]

_PER_VIEW: dict[str, Callable[[], PerViewScorer]] = {"world.per_view": WorldPerView}
_JOINT: dict[str, Callable[[], JointViewScorer]] = {"world.joint": WorldJointView}


def per_view_scorer(name: str) -> PerViewScorer:
    """Build the per-view scorer of a name.

    Args:
        name: Such as ``world.per_view``.

    Returns:
        A new scorer.

    Raises:
        ConfigError: If no per-view scorer has that name.

    Examples:
        >>> type(per_view_scorer("world.per_view")).__name__
        'WorldPerView'
    """
    if name not in _PER_VIEW:
        raise _unknown("reward.per_view", name, _PER_VIEW)
    return _PER_VIEW[name]()


def joint_view_scorer(name: str) -> JointViewScorer:
    """Build the joint-view scorer of a name.

    Args:
        name: Such as ``world.joint``.

    Returns:
        A new scorer.

    Raises:
        ConfigError: If no joint-view scorer has that name.

    Examples:
        >>> type(joint_view_scorer("world.joint")).__name__
        'WorldJointView'
    """
    if name not in _JOINT:
        raise _unknown("reward.joint", name, _JOINT)
    return _JOINT[name]()


def _unknown(path: str, name: str, known: Mapping[str, Callable[[], object]]) -> ConfigError:
    return ConfigError(f"`{path}` must be one of {sorted(known)}; got {name!r}.")
