"""Names of code that the user has typed: no other code is ever imported for a run.

A name such as ``my_rewards.py:score`` in a settings file, a checkpoint or a downloaded folder runs
nothing; only what stands on the command line, or is handed over in Python, does.
"""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["is_code", "is_typed", "note_typed", "typed_in"]

_SETTINGS = (("reward", "per_view"), ("reward", "joint"), ("guard", "per_view"), ("guard", "joint"))
_TYPED: set[str] = set()


def is_code(name: str) -> bool:
    """Tell whether a scorer's name is that of code, in a file or a module.

    Args:
        name: Name in a setting.

    Returns:
        True of ``FILE.py:NAME`` and ``package.module:NAME``; no other scorer's name has a colon.

    Examples:
        >>> is_code("my_rewards.py:score"), is_code("world.joint")
        (True, False)
    """
    return ":" in name


def note_typed(names: Iterable[str]) -> None:
    """Remember that the user has typed some names in this process.

    Args:
        names: Names of scorers; those that are not of code change nothing.
    """
    _TYPED.update(name for name in names if is_code(name))


def is_typed(name: str) -> bool:
    """Tell whether the user has typed a name in this process.

    Args:
        name: Name of code.

    Returns:
        True if so.

    Examples:
        >>> is_typed("from_a_checkpoint.py:score")
        False
    """
    return name in _TYPED


def typed_in(changes: Mapping[str, Any]) -> list[str]:
    """Find the scorers that changed settings name.

    Args:
        changes: Settings by section, as typed.

    Returns:
        Names, of code or not.

    Examples:
        >>> typed_in({"reward": {"per_view": {"my.py:score": 1}, "joint": "per_view"}})
        ['my.py:score', 'per_view']
    """
    names: list[str] = []
    for section, setting in _SETTINGS:
        values = changes.get(section)
        value = values.get(setting) if isinstance(values, Mapping) else None
        listed = [value] if isinstance(value, str) else value
        if isinstance(listed, Mapping | list | tuple):
            names += [name for name in listed if isinstance(name, str)]
    return names
