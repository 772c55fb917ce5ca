"""A run's whole configuration: checked as one, read from files and the command line.

An unknown key is refused with the nearest name, a bad value with its dotted path.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from mvczigal_ref.contradictions import contradictions
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.settings import (
    AdvantageConfig,
    ConstraintConfig,
    GuardConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RewardConfig,
    RunConfig,
    SamplerConfig,
    ZigzagConfig,
    scorer_weights,
    weights_folder,
)
from mvczigal_ref.settings_file import read_settings, read_value, unknown_setting
from mvczigal_ref.settings_group import ConditionConfig, FlowConfig, ForwardConfig, RolloutConfig
from mvczigal_ref.settings_types import SETTINGS, Name, Text

__all__ = [
    "AdvantageConfig",
    "ConditionConfig",
    "ConstraintConfig",
    "FlowConfig",
    "ForwardConfig",
    "GuardConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SamplerConfig",
    "TrainConfig",
    "ZigzagConfig",
    "fingerprint",
    "fingerprinted",
    "from_dict",
    "learns_from_pairs",
    "load_config",
    "scorer_weights",
    "to_dict",
    "weights_folder",
]

# What may differ between a run and its continuation: no number of training depends on it.
_NOT_IN_FINGERPRINT = (
    "recipe",
    "condition.url",
    "condition.api_key_env",
    "model.offload_frozen",
    "reward.url",
    "reward.device",
    "reward.timeout",
    "reward.wait",
    "reward.api_key_env",
    "run.iterations",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "sampler.evaluation_steps",
    "run.held_out",
    "run.evaluate_every",
    "run.evaluation_noises",
    "run.trackers",
    "run.device",
)


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class TrainConfig:
    """Everything that a training run is told."""

    recipe: Name = "custom"
    """Name of the recipe that this configuration started from."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """Network and trained weights."""
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    """Sampling grid and guidance."""
    flow: FlowConfig = dataclasses.field(default_factory=FlowConfig)
    """Noise of a flow model's steps."""
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    """What is sampled of a prompt."""
    zigzag: ZigzagConfig = dataclasses.field(default_factory=ZigzagConfig)
    """The zigzag arm."""
    condition: ConditionConfig = dataclasses.field(default_factory=ConditionConfig)
    """Captions beside the prompt."""
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    """Scorers."""
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    """What is watched on held-out prompts."""
    advantage: AdvantageConfig = dataclasses.field(default_factory=AdvantageConfig)
    """From rewards to advantages."""
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    """The loss."""
    forward: ForwardConfig = dataclasses.field(default_factory=ForwardConfig)
    """The loss on the forward process."""
    constraint: ConstraintConfig = dataclasses.field(default_factory=ConstraintConfig)
    """Multiplier and threshold."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """Optimiser."""
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """Length, slices and files."""

    @model_validator(mode="after")
    def _check_together(self) -> "TrainConfig":
        for problem in contradictions(self):
            raise ValueError(problem)
        return self


def learns_from_pairs(config: TrainConfig) -> bool:
    """Tell the two kinds of iterations apart: over pairs of trajectories, or over groups.

    Args:
        config: The configuration.

    Returns:
        Whether the objective compares the two arms of a pair; a policy gradient takes even
        pairs for groups of two.

    Examples:
        >>> learns_from_pairs(TrainConfig())
        True
    """
    return config.objective.kind in ("reward_difference", "preference")


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
) -> TrainConfig:
    """Change a configuration by a file, then by `section.name=value` words.

    Args:
        base: Where to start, usually a recipe; None is the defaults.
        file: YAML or JSON file of settings by section, or None.
        overrides: Words such as `objective.clip_range=1e-3`; a later one wins.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If a key is unknown or repeated, a value is refused, or the file is not one.

    Examples:
        >>> load_config(overrides=["optim.lr=1e-4", "run.trackers=[tensorboard]"]).optim.lr
        0.0001
    """
    values = to_dict(base if base is not None else TrainConfig())
    if file is not None:
        _update(values, read_settings(Path(file)))
    for word in overrides:
        _update(values, _parse_override(word))
    return from_dict(values)


def fingerprinted(config: TrainConfig) -> dict[str, Any]:
    """Give the settings that a run's numbers depend on.

    Length, evaluation, saving, trackers, device and the recipe's name are left out.

    Args:
        config: The configuration.

    Returns:
        Nested dictionaries, as `to_dict` gives them.
    """
    values = to_dict(config)
    for path in _NOT_IN_FINGERPRINT:
        section, _, name = path.rpartition(".")
        del (values[section] if section else values)[name]
    return values


def fingerprint(config: TrainConfig) -> str:
    """Hash the settings that a run's numbers depend on.

    Args:
        config: The configuration; one of equal fingerprint may continue its checkpoints.

    Returns:
        A SHA-256 in hexadecimal.

    Examples:
        >>> longer = load_config(overrides=["run.iterations=200"])
        >>> fingerprint(longer) == fingerprint(TrainConfig())
        True
    """
    values = json.dumps(fingerprinted(config), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()


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
        if path not in _PATHS:
            raise unknown_setting(path, _PATHS)
        if dataclasses.is_dataclass(_PATHS[path]):
            if not isinstance(value, Mapping):
                first = next(known for known in _PATHS if known.startswith(f"{path}."))
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
        values[key] = {**values[key], **change} if isinstance(change, Mapping) else change


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
