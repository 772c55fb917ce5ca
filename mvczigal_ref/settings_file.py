"""Read settings by section from a YAML or JSON file, dropping nothing in silence."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.files import read_text

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


_MOST_TEXT = 2**18  # of a file or value of settings [bytes]
_MOST_DEPTH = 8  # a table in a section in a file is 3
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*")
_NUMBER = re.compile(
    r"(?:[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.?(?:inf|nan))\Z",
    re.IGNORECASE,
)


class _SettingsLoader(yaml.SafeLoader):
    """YAML with numbers as people write them, each key once, no dates, and no room for bombs."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        """Read one value, not below so many others, and not by another one's name."""
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("YAML's aliases, `*name`, are not read; write the value out.")
        if self.depth >= _MOST_DEPTH:
            raise ConfigError(f"settings must not be nested deeper than {_MOST_DEPTH} levels.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _unique_mapping(loader: _SettingsLoader, node: yaml.MappingNode) -> dict[str, Any]:
    # YAML's own loader keeps the last of two equal keys and says nothing.
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise ConfigError(f"a setting's name must be text; got {quoted(key)}.")
        if key in mapping:
            raise ConfigError(f"`{_shown(key)}` is set twice in one section. Keep one of the two.")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _number(loader: _SettingsLoader, node: yaml.ScalarNode) -> int | float:
    text = node.value.replace("_", "").lower()
    if _DECIMAL.fullmatch(text):
        return int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_SettingsLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag.endswith((":bool", ":null"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_SettingsLoader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789inIN"))
_SettingsLoader.add_constructor("tag:yaml.org,2002:float", _number)
_SettingsLoader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of settings; an empty one sets nothing.

    Args:
        path: YAML file, or JSON file, which is read as YAML too.

    Returns:
        Nested dictionaries, by section.

    Raises:
        ConfigError: If the file cannot be read, holds no sections, or sets a key twice.
    """
    name = repr(str(path))
    try:
        # JSON may be indented by tabs, which YAML refuses; no setting holds one.
        content = read_value(read_text(path, most=_MOST_TEXT).replace("\t", " "))
    except (OSError, ConfigError) as error:
        raise ConfigError(f"cannot read settings from {name}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{name} must hold sections of settings; got {quoted(content)}.")
    return content


def read_value(text: str) -> Any:  # noqa: ANN401 - whatever YAML can say
    """Read one value of the command line; the one place that reads YAML.

    Numbers may read ``1e-3``, ``3e4`` or ``1_000``, and always count in tens. Dates are texts.

    Args:
        text: As in a YAML file, such as ``1e-3``, ``[a, b]`` or ``{a: 1, b: 2}``.

    Returns:
        The value.

    Raises:
        ConfigError: If it is no YAML, too long or too deep, refers to itself, or a mapping sets
            a key twice.

    Examples:
        >>> read_value("{world.per_view: 1, pickscore: 5e-1}")
        {'world.per_view': 1, 'pickscore': 0.5}
    """
    if len(text) > _MOST_TEXT:
        raise ConfigError(f"settings must hold at most {_MOST_TEXT} characters; got {len(text)}.")
    try:
        return yaml.load(text, Loader=_SettingsLoader)
    except ConfigError:
        raise
    # Values that do not fit the tag that is written before them raise whatever they like.
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        reason = quoted(" ".join(str(error).split()))[1:-1]
        raise ConfigError(f"it is not YAML as it should be: {reason}.") from error


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
    shown = _shown(path)
    return ConfigError(
        f"unknown setting `{shown}`; the nearest name is `{nearest_name(shown, known)}`."
    )


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


def _shown(name: str) -> str:
    """Give a name for a message, cut where it is long."""
    return quoted(name)[1:].rstrip("'\"")
