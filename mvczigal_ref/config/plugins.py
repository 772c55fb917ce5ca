"""Pieces that other installed packages register by entry points; only the named one is loaded."""

import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from pydantic import ValidationError, WrapValidator

from mvczigal_ref.errors import ConfigError, one_line, quoted

__all__ = ["GROUPS", "load_plugin", "plugin", "plugin_names", "plugins", "registered"]

GROUPS: Final[Mapping[str, str]] = {
    "scorers": "function of ScorerOptions that gives a scorer",
    "objectives": "loss of both log-ratios, the advantage gap and ObjectiveConfig",
    "group_objectives": "function of log-ratios, advantages and ObjectiveConfig that gives terms",
    "samplers": "function of steps, alpha_bar and SamplerConfig that gives a Sampler",
    "flow_samplers": "function of steps, sigmas and FlowConfig that gives a FlowSampler",
    "recipes": "function without arguments that gives a TrainConfig",
    "enhancers": "function of ConditionConfig and device that gives a ConditionEnhancer",
}
"""Meaning of an entry, by the group's name after ``mvczigal_ref.``."""

_CHOICE = re.compile(r"'([^']+)'")


def plugins(group: str) -> dict[str, EntryPoint]:
    """Find the entries of a group among the installed packages; loads none.

    Args:
        group: Name of :data:`GROUPS`.

    Returns:
        Entries by name, sorted.

    Raises:
        ConfigError: If two packages register different pieces by one name.

    Examples:
        >>> list(plugins("scorers"))
        []
    """
    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"mvczigal_ref.{group}"):
        if entries.setdefault(entry.name, entry).value != entry.value:
            msg = (
                f"the entry point {entry.name!r} of mvczigal_ref.{group} must be registered once; "
                f"got {entries[entry.name].value!r} and {entry.value!r}. Uninstall one."
            )
            raise ConfigError(msg)
    return dict(sorted(entries.items()))


def plugin_names(group: str) -> list[str]:
    """Name the entries of a group.

    Args:
        group: Name of :data:`GROUPS`.

    Returns:
        Names, sorted.

    Examples:
        >>> plugin_names("recipes")
        []
    """
    return list(plugins(group))


def plugin(group: str, name: str) -> EntryPoint | None:
    """Find one entry; loads nothing.

    Args:
        group: Name of :data:`GROUPS`.
        name: Name of the entry.

    Returns:
        The entry, or None if no package registers that name.

    Examples:
        >>> plugin("objectives", "absent") is None
        True
    """
    return plugins(group).get(name)


def load_plugin(group: str, name: str) -> Callable[..., Any]:
    """Import one entry.

    Args:
        group: Name of :data:`GROUPS`.
        name: Name of a registered entry.

    Returns:
        Piece that it registers.

    Raises:
        ConfigError: If it is not registered, cannot be imported, or cannot be called.

    Examples:
        >>> load_plugin("scorers", "absent")
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: no installed package registers 'absent' in \
mvczigal_ref.scorers.
    """
    entry = plugin(group, name)
    if entry is None:
        msg = f"no installed package registers {name!r} in mvczigal_ref.{group}."
        raise ConfigError(msg)
    begin = f"the plug-in {name!r} = {entry.value!r} of mvczigal_ref.{group}"
    try:
        piece = entry.load()
    except Exception as error:
        text = one_line(error)
        raise ConfigError(f"{begin} cannot be imported: {type(error).__name__}: {text}") from error
    if not callable(piece):
        raise ConfigError(f"{begin} must be a {GROUPS[group]}; got a {type(piece).__name__}.")
    function: Callable[..., Any] = piece
    return function


def registered(*groups: str) -> WrapValidator:
    """Widen a setting with choices to the names that plug-ins register.

    Args:
        *groups: Names of :data:`GROUPS`; a plug-in's name stands in one of them.

    Returns:
        A validator whose message lists the choices and the plug-ins, sorted.
    """

    def validate(value: Any, choice: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - as pydantic's
        try:
            return choice(value)
        except ValidationError as error:
            names = [name for group in groups for name in plugin_names(group)]
            if isinstance(value, str) and names.count(value) == 1:
                return value
            if isinstance(value, str) and value in names:
                places = " and ".join(f"mvczigal_ref.{group}" for group in groups)
                msg = f"must be registered in one of {places}, not in both"
                raise ValueError(msg) from error
            choices = _CHOICE.findall(str(error.errors()[0].get("ctx", {}).get("expected", "")))
            raise ValueError(f"must be one of {_listed([*choices, *names])}") from error

    return WrapValidator(validate)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(quoted(name)[1:-1] for name in names))
