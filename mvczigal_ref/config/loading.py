"""Configurations from files, dictionaries and the command line; nothing is dropped in silence.

An unknown key is refused with the nearest name, a bad value with its dotted path.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mvczigal_ref.config.code_names import note_typed, typed_in
from mvczigal_ref.config.reads import unread
from mvczigal_ref.config.train import TrainConfig
from mvczigal_ref.config.types import Name, Text
from mvczigal_ref.errors import ConfigError, one_line, quoted
from mvczigal_ref.text_files import read_text

__all__ = [
    "from_dict",
    "load_config",
    "nearest_name",
    "read_settings",
    "read_value",
    "sampling_config",
    "to_dict",
    "unknown_setting",
]


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Give the configuration as plain JSON values.

    Args:
        config: The configuration.

    Returns:
        Nested dictionaries; `from_dict` inverts it exactly.

    Examples:
        >>> to_dict(TrainConfig())["optim"]["betas"]
        [0.9, 0.999]
    """
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Make a configuration of nested dictionaries; what they leave out keeps its default.

    Args:
        values: Settings by section, as in a YAML or JSON file.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If a key is unknown or a value is refused.

    Examples:
        >>> from_dict({"sampler": {"num_steps": 8}}).sampler.num_steps
        8
    """
    _refuse_unknown(values)
    try:
        return TypeAdapter(TrainConfig).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(" ".join(map(_explain, error.errors()))) from error


def load_config(
    base: TrainConfig | None = None,
    *,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    training: bool = True,
) -> TrainConfig:
    """Change a configuration by a file, then by `section.name=value` words.

    A changed setting that the chosen method would not read is refused. What a run wrote as its
    config.json, all sections together, is taken as it is.

    Args:
        base: Configuration to start from, usually a recipe; None is the defaults.
        file: YAML or JSON file of settings by section, or None.
        overrides: Words such as `objective.clip_range=1e-3`; a later one wins. Code that they name
            as a scorer may be imported; what ``base`` or ``file`` name may not.
        training: Whether all of it is for a run; where some of it is for something else, such as
            sampling, no setting is refused as unread.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If a key is unknown or repeated, a value is refused or cannot act, or the
            file is not one.

    Examples:
        >>> load_config(overrides=["optim.lr=1e-4", "run.trackers=[tensorboard]"]).optim.lr
        0.0001
    """
    base = base if base is not None else TrainConfig()
    values = to_dict(base)
    if file is not None:
        settings = read_settings(Path(file))
        whole = values.keys() <= settings.keys()
        _update(values, settings)
        if whole:
            base = from_dict(values)
    for word in overrides:
        change = _parse_override(word)
        note_typed(typed_in(change))
        _update(values, change)
    config = from_dict(values)
    for problem in unread(config, base) if training else ():
        raise ConfigError(problem)
    return config


def sampling_config(base: TrainConfig, words: Sequence[str]) -> TrainConfig:
    """Change settings of sampling; one step will do, though it leaves training nothing to learn.

    Args:
        base: Settings before.
        words: Settings as `section.name=value`.

    Returns:
        Settings to sample by.

    Raises:
        ConfigError: As :func:`load_config`.

    Examples:
        >>> sampling_config(TrainConfig(), ["sampler.num_steps=1"]).sampler.num_steps
        1
    """
    try:
        return load_config(base, overrides=words, training=False)
    except ConfigError as refusal:
        every = [*words, "objective.train_last_action=true"]  # which sampling does not read
        with suppress(ConfigError):
            return load_config(base, overrides=every, training=False)
        raise refusal from refusal.__cause__


def _settable(kind: type, prefix: str = "") -> dict[str, Any]:
    """Every dotted path and its type; sections are paths too."""
    paths: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        paths[prefix + field.name] = field.type
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            paths.update(_settable(field.type, f"{prefix}{field.name}."))
    return paths


_PATHS = _settable(TrainConfig)


def _refuse_unknown(values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if path in _PATHS and "." in str(key):
            section, _, name = path.partition(".")
            msg = f"`{path}` must be written by section, as in `{section}: {{{name}: ...}}`."
            raise ConfigError(msg)
        if path not in _PATHS:
            raise unknown_setting(path, _PATHS)
        if dataclasses.is_dataclass(_PATHS[path]):
            if not isinstance(value, Mapping):
                first = next(member for member in _PATHS if member.startswith(f"{path}."))
                raise ConfigError(
                    f"`{path}` must be a section of settings; got {quoted(value)}. "
                    f"Set one of its members, such as `{first}`."
                )
            _refuse_unknown(value, f"{path}.")


def _explain(error: ErrorDetails) -> str:
    path = ".".join(
        str(part) for part in error["loc"] if isinstance(part, str) and part.isidentifier()
    )
    message = str(error["msg"]).removeprefix("Value error, ")
    if not path:
        return message
    return f"`{path}`: {message[0].lower()}{message[1:]}; got {quoted(error['input'])}."


def _update(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    _refuse_unknown(changes)
    for key, change in changes.items():
        is_section = isinstance(change, Mapping) and isinstance(values[key], dict)
        values[key] = {**values[key], **change} if is_section else change


def _parse_override(word: str) -> dict[str, Any]:
    path, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"an override must read `section.name=value`; got {quoted(word)}.")
    if path not in _PATHS:
        raise unknown_setting(path, _PATHS)
    try:
        # A name that looks like a number, a date or a truth value stays a name.
        value = text if _PATHS[path] in (Name, Text) else read_value(text)
    except ConfigError as error:
        raise ConfigError(f"`{path}` cannot be read from {quoted(text)}: {error}") from error
    section, _, name = path.rpartition(".")
    return {section: {name: value}} if section else {name: value}


_MOST_TEXT = 2**18  # of a file or value of settings [characters]
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
        text = read_text(path, most=_MOST_TEXT)
    except OSError as error:
        raise ConfigError(f"cannot read settings from {name}: {error.strerror}.") from error
    try:
        # JSON may be indented by tabs, which YAML refuses; no setting holds one.
        content = read_value(text.replace("\t", " "))
    except ConfigError as error:
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
    except (
        yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError
    ) as error:  # fmt: skip
        reason = quoted(one_line(error))[1:-1]
        raise ConfigError(f"it is not YAML as it should be: {reason}.") from error


def unknown_setting(path: str, paths: Iterable[str]) -> ConfigError:
    """Make the error of a setting that does not exist, naming the nearest that does.

    Args:
        path: Dotted path of the unknown setting.
        paths: Dotted paths that exist.

    Returns:
        The error, to be raised by the caller.

    Examples:
        >>> print(unknown_setting("clip_rnage", ["optim.lr", "objective.clip_range"]))
        unknown setting `clip_rnage`; the nearest name is `objective.clip_range`.
    """
    shown = _shown(path)
    return ConfigError(
        f"unknown setting `{shown}`; the nearest name is `{nearest_name(shown, paths)}`."
    )


def nearest_name(name: str, names: Iterable[str]) -> str:
    """Find the dotted name that someone may have meant.

    Args:
        name: Name as it was written.
        names: Names that exist; at least one.

    Returns:
        The likest of them.

    Examples:
        >>> nearest_name("pikscore", ["clip_score", "pickscore"])
        'pickscore'
    """

    def likeness(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()

    # A right name in the wrong section is near too.
    leaf = name.rpartition(".")[2]
    return max(names, key=lambda k: max(likeness(name, k), likeness(leaf, k.rpartition(".")[2])))


def _shown(name: str) -> str:
    """Give a name for a message, cut where it is long."""
    return quoted(name)[1:].rstrip("'\"")
