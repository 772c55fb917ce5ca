"""Read settings by section from a YAML or JSON file, dropping nothing in silence."""

import difflib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mvczigal_ref.errors import ConfigError

__all__ = [
    "Table",
    "nearest_name",
    "read_settings",
    "read_value",
    "settings_difference",
    "unknown_setting",
]

_Value = TypeVar("_Value")


class Table(dict[str, _Value]):
    """A setting that is a mapping; it can be hashed, as frozen settings are, so never change it.

    Examples:
        >>> hash(Table(a=1, b=2)) == hash(Table(b=2, a=1))
        True
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys and says nothing."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    mapping: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise ConfigError(f"`{key}` is set twice in one section. Keep one of the two.")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of settings; an empty one sets nothing.

    Args:
        path: YAML file, or JSON file, which is read as YAML too.

    Returns:
        Nested dictionaries, by section.

    Raises:
        ConfigError: If the file cannot be read, holds no sections, or sets a key twice.
    """
    try:
        # JSON may be indented by tabs, which YAML refuses; no setting holds one.
        text = path.read_text("utf-8").replace("\t", " ")
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read settings from {str(path)!r}: {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{str(path)!r} must hold sections of settings; got {content!r}.")
    return content


def read_value(text: str) -> Any:  # noqa: ANN401 - whatever YAML can say
    """Read one value of the command line.

    Args:
        text: As in a YAML file, such as ``1e-3``, ``[a, b]`` or ``{a: 1, b: 2}``.

    Returns:
        The value.

    Raises:
        ConfigError: If a mapping sets a key twice.

    Examples:
        >>> read_value("{world.per_view: 1, pickscore: 0.5}")
        {'world.per_view': 1, 'pickscore': 0.5}
    """
    return yaml.load(text, Loader=_UniqueKeyLoader)


def settings_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say in which settings two runs differ.

    Args:
        there: All settings of what lies in a folder, by section.
        here: The same settings of what is asked for now.

    Returns:
        Both values of each that differs, or an empty text.

    Examples:
        >>> settings_difference({"run": {"seed": 0}}, {"run": {"seed": 3}})
        '`run.seed` is 0 there and 3 here'
    """
    return "; ".join(
        f"`{section}.{name}` is {value!r} there and {here[section][name]!r} here"
        for section, values in there.items()
        for name, value in values.items()
        if value != here[section][name]
    )


def unknown_setting(path: str, known: Iterable[str]) -> ConfigError:
    """Make the error of a setting that does not exist, naming the nearest that does.

    Args:
        path: Dotted path of the unknown setting.
        known: Dotted paths that exist.

    Returns:
        The error, to be raised by the caller.

    Examples:
        >>> print(unknown_setting("clip_rnage", ["optim.lr", "objective.clip_range"]))
        unknown setting `clip_rnage`; the nearest name is `objective.clip_range`.
    """
    nearest = nearest_name(path, known)
    return ConfigError(f"unknown setting `{path}`; the nearest name is `{nearest}`.")


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Find the dotted name that someone may have meant.

    Args:
        name: What was written.
        known: Names that exist; at least one.

    Returns:
        The likest of them.

    Examples:
        >>> nearest_name("pikscore", ["clip_score", "pickscore"])
        'pickscore'
    """

    def likeness(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    # A right name in the wrong section is near too.
    leaf = name.rpartition(".")[2]
    return max(known, key=lambda k: max(likeness(name, k), likeness(leaf, k.rpartition(".")[2])))
