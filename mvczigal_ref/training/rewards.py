"""Functions that a run was trained on: their sources, recorded and compared on a resume."""

from collections.abc import Mapping
from typing import Any

from mvczigal_ref.config import TrainConfig, scorer_weights
from mvczigal_ref.config.code_names import is_code, is_typed
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.reward.registry import is_function, source_of

__all__ = ["changed_rewards", "require_same_rewards", "reward_sources", "unhashed"]


def reward_sources(config: TrainConfig) -> dict[str, dict[str, str | None]]:
    """Hash the functions that a configuration names as scorers, watched ones too.

    Args:
        config: The run; what it names must have been typed by the user.

    Returns:
        Place and SHA-256 of each source by the scorer's name; the hash is None where the source
        cannot be read. Empty where every scorer is the package's or a service's.

    Raises:
        ConfigError: If a function was not typed, or cannot be imported.

    Examples:
        >>> reward_sources(TrainConfig())
        {}
    """
    sources: dict[str, dict[str, str | None]] = {}
    for setting, names in _named(config).items():
        for name in names:
            if is_function(name) and name not in config.reward.url:
                source = source_of(name, setting=setting)
                sources[name] = {"place": source.place, "sha256": source.sha256}
    return sources


def require_same_rewards(config: TrainConfig, state: Mapping[str, Any]) -> None:
    """Refuse to go on with other functions than a run was trained on.

    Args:
        config: The run.
        state: JSON values of the checkpoint.

    Raises:
        CheckpointError: If a source is gone or has changed since; says which and where it was.
    """
    then = state.get("rewards") or {}
    try:
        now = reward_sources(config)
    except ConfigError as error:
        places = "; ".join(
            f"{name!r} was {record['place']!r}, sha256 {record['sha256']}"
            for name, record in then.items()
        )
        if not places:
            raise
        raise CheckpointError(f"{error} When the run began, {places}.") from error
    for name, record in then.items():
        if name in now and now[name]["sha256"] != record["sha256"]:
            msg = (
                f"the reward {name!r} must be the function that the run began with, "
                f"{record['place']!r} with sha256 {record['sha256']}; {now[name]['place']!r} has "
                f"sha256 {now[name]['sha256']}. Restore it, or begin a new run with these "
                "parameters by `--from`."
            )
            raise CheckpointError(msg)


def changed_rewards(state: Mapping[str, Any]) -> list[str]:
    """Name the functions that were typed in this process and differ from a run's.

    Args:
        state: JSON values of the run's checkpoint.

    Returns:
        Names of scorers; those that were not typed run nothing, and are not compared.

    Examples:
        >>> changed_rewards({"rewards": {"my.py:score": {"place": "my.py", "sha256": "0"}}})
        []
    """
    return [
        name
        for name, record in (state.get("rewards") or {}).items()
        if (is_typed(name) or (is_function(name) and not is_code(name)))
        and source_of(name, setting="reward").sha256 != record["sha256"]
    ]


def unhashed(sources: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """Name the functions whose source cannot be read.

    Args:
        sources: From :func:`reward_sources`.

    Returns:
        Names of scorers.

    Examples:
        >>> unhashed({"fit.reward:len": {"place": "reward in builtins", "sha256": None}})
        ['fit.reward:len']
    """
    return [name for name, record in sources.items() if record["sha256"] is None]


def _named(config: TrainConfig) -> dict[str, list[str]]:
    """Give the scorers by the setting that names them."""
    reward, guard = config.reward, config.guard
    watched = {"guard.per_view": [*guard.per_view], "guard.joint": [*guard.joint]}
    return {
        "reward.per_view": list(scorer_weights(reward.per_view)),
        "reward.joint": list(scorer_weights(reward.joint)),
        **(watched if guard.every else {}),
    }
