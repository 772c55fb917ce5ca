"""Fingerprint of a configuration: two runs with the same one may continue each other."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mvczigal_ref.config.loading import to_dict
from mvczigal_ref.config.reads import unread_settings
from mvczigal_ref.config.train import TrainConfig

__all__ = [
    "differing_settings",
    "fingerprint",
    "fingerprinted",
    "setting_changes",
    "settings_difference",
]


def setting_changes(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Compare settings by section.

    Args:
        before: Settings, as `to_dict` or `fingerprinted` gives them; one that is left out has its
            default.
        after: Other settings.

    Returns:
        Both values of every setting that differs, by its dotted path.

    Examples:
        >>> setting_changes({"run": {"seed": 0}}, {"run": {"seed": 3, "arms_per_call": 2}})
        {'run.arms_per_call': (1, 2), 'run.seed': (0, 3)}
    """
    sections = {k: v for k, v in to_dict(TrainConfig()).items() if isinstance(v, Mapping)}
    pairs = {
        f"{section}.{name}": (
            before.get(section, {}).get(name, default), after.get(section, {}).get(name, default)
        )
        for section, defaults in sections.items()
        for name, default in defaults.items()
    }  # fmt: skip
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def differing_settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """List the settings in which two runs differ.

    Args:
        there: Settings of the other run, as :func:`setting_changes` takes them.
        here: Those of this run.

    Returns:
        Sentence for each, with both values.

    Examples:
        >>> differing_settings({"run": {"seed": 0}}, {"run": {"seed": 3}})
        ['`run.seed` is 0 there and 3 here']
    """
    return [
        f"`{path}` is {before!r} there and {after!r} here"
        for path, (before, after) in setting_changes(there, here).items()
    ]


def settings_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say in which settings two runs differ: :func:`differing_settings` in one text.

    Args:
        there: Settings of the other run.
        here: Those of this run.

    Returns:
        Both values of each that differs, or an empty text.
    """
    return "; ".join(differing_settings(there, here))


# Settings that may differ between a run and its continuation: no number of training depends on it.
_NOT_IN_FINGERPRINT = (
    "recipe",
    "condition.url",
    "condition.api_key_env",
    "condition.requests_at_once",
    "model.offload_frozen",
    "reward.url",
    "reward.device",
    "reward.timeout",
    "reward.wait",
    "reward.api_key_env",
    "reward.requests_at_once",
    "reward.cache",
    "reward.overlap",
    "run.iterations",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "sampler.evaluation_steps",
    "run.held_out",
    "run.evaluate_every",
    "run.evaluation_noises",
    "run.trackers",
    "run.device",
    "run.offload_parameters",
)


# Settings that earlier versions did not have: left out at their default, which is what those did.
_LATER = (
    "condition.samples_per_question",
    "model.frozen_weights",
    "objective.preference_form",
    "optim.kind",
    "reward.images_per_question",
    "reward.texts_per_call",
    "rollout.ahead",
    "run.arms_per_call",
    "run.sharding",
    "run.reduction",
    "run.compute_dtype",
    "sampler.spacing",
)


def fingerprinted(config: TrainConfig) -> dict[str, Any]:
    """Give the settings that a run's numbers depend on.

    Length, evaluation, saving, trackers, device and the recipe's name are left out, and settings
    that came later where they are at their default. A setting that the method does not read has its
    default.

    Args:
        config: The configuration.

    Returns:
        Nested dictionaries, as `to_dict` gives them.
    """
    values, default = to_dict(config), to_dict(TrainConfig())
    for path in unread_settings(config):
        section, _, name = path.rpartition(".")
        values[section][name] = default[section][name]
    for path in _NOT_IN_FINGERPRINT:
        section, _, name = path.rpartition(".")
        del (values[section] if section else values)[name]
    for path in _LATER:
        section, _, name = path.rpartition(".")
        if values[section][name] == default[section][name]:
            del values[section][name]
    return values


def fingerprint(config: TrainConfig) -> str:
    """Hash the settings that a run's numbers depend on.

    Args:
        config: The configuration; one of equal fingerprint may continue its checkpoints.

    Returns:
        A SHA-256 in hexadecimal.

    Examples:
        >>> from mvczigal_ref.config import TrainConfig, load_config
        >>> longer = load_config(overrides=["run.iterations=200"])
        >>> fingerprint(longer) == fingerprint(TrainConfig())
        True
    """
    values = json.dumps(fingerprinted(config), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()
