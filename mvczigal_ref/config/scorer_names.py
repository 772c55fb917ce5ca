"""Names of scorers, and checks of them that need no scorer: a mistake is refused at once."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from mvczigal_ref.config.code_names import is_code
from mvczigal_ref.config.loading import nearest_name
from mvczigal_ref.config.method import RewardConfig, scorer_weights
from mvczigal_ref.config.plugins import plugin, plugin_names
from mvczigal_ref.config.run import GuardConfig
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.files import is_hub_id

__all__ = [
    "SCORER_NAMES",
    "VIEW_MEAN",
    "ScorerKind",
    "check_scorer_name",
    "check_scorer_names",
    "is_chat",
    "is_function",
    "reward_unit",
    "scorer_place",
    "scorers_by_setting",
]

ScorerKind = Literal["per_view", "joint"]
"""Judge of one view, or of all the views of an object together."""

VIEW_MEAN: Final = "per_view"
"""Name that stands for the mean of the per-view reward, in place of a joint scorer."""

SCORER_NAMES: Final[Mapping[ScorerKind, tuple[str, ...]]] = {
    "per_view": (
        "world.per_view", "clip_score", "pickscore", "hpsv2", "hpsv3", "image_reward", "chat_judge",
        "chat_judge.alignment", "chat_judge.coherence", "chat_judge.style",
    ),
    "joint": (
        "world.joint", "hyperscore", "hyperscore.alignment", "hyperscore.geometry",
        "hyperscore.texture", "hyperscore.overall", "chat_judge.joint",
    ),
}  # fmt: skip
"""Scorers of the package by kind."""


def scorers_by_setting(
    reward: RewardConfig, guard: GuardConfig | None = None
) -> list[tuple[str, ScorerKind, str]]:
    """List the scorers that settings name.

    Args:
        reward: Settings of the scorers that are trained on.
        guard: Settings of the scorers that are only watched; read where it acts.

    Returns:
        Setting, kind and name of each.

    Examples:
        >>> scorers_by_setting(RewardConfig(joint="per_view"))
        [('reward.per_view', 'per_view', 'world.per_view')]
    """
    joint = [name for name in scorer_weights(reward.joint) if name != VIEW_MEAN]
    named: list[tuple[str, ScorerKind, Sequence[str]]] = [
        ("reward.per_view", "per_view", list(scorer_weights(reward.per_view))),
        ("reward.joint", "joint", joint),
    ]
    if guard is not None and guard.every:
        named += [("guard.per_view", "per_view", guard.per_view)]
        named += [("guard.joint", "joint", guard.joint)]
    return [(setting, kind, name) for setting, kind, names in named for name in names]


def check_scorer_names(reward: RewardConfig, guard: GuardConfig | None = None) -> None:
    """Refuse wrong names of scorers; imports no code and no torch.

    Args:
        reward: Settings of the scorers that are trained on.
        guard: Settings of the scorers that are only watched.

    Raises:
        ConfigError: If a scorer is unknown, is named twice or lacks a setting, or if weights,
            tokenizers or services are given for scorers that no setting names.

    Examples:
        >>> check_scorer_names(RewardConfig(per_view={"world.per_view": 1, "pikscore": 1}))
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: `reward.per_view` names the unknown scorer 'pikscore'; \
the nearest is 'pickscore'. Registered are chat_judge, chat_judge.alignment, chat_judge.coherence, \
chat_judge.style, clip_score, hpsv2, hpsv3, image_reward, pickscore, world.per_view; a function is \
named as my_rewards.py:score.
    """
    place = None if reward.cache is None else Path(reward.cache).expanduser()
    if place is not None and place.exists() and not place.is_dir():
        raise ConfigError(f"`reward.cache` must be a folder; {reward.cache!r} is a file.")
    seen: dict[str, str] = {}
    for setting, kind, name in scorers_by_setting(reward, guard):
        if name in seen:
            msg = f"`{setting}` must not name {name!r}, which `{seen[name]}` names already."
            raise ConfigError(msg)
        seen[name] = setting
        check_scorer_name(
            setting,
            kind,
            name,
            weights=scorer_place(name, reward.weights),
            tokenizer=scorer_place(name, reward.tokenizers),
            url=scorer_place(name, reward.url),
        )
    families = {*seen, *(name.partition(".")[0] for name in seen)}
    for table in ("weights", "tokenizers", "url"):
        for name in getattr(reward, table):
            if name not in families:
                msg = (
                    f"`reward.{table}` names {name!r}, a scorer that is not used; the nearest is "
                    f"{nearest_name(name, families)!r}."
                )
                raise ConfigError(msg)


def scorer_place(name: str, table: Mapping[str, str]) -> str | None:
    """Look up a scorer's entry in a table of places.

    Args:
        name: Name such as ``hyperscore.overall``, for which an entry of ``hyperscore`` holds too.
        table: Places by name.

    Returns:
        The entry, or None.

    Examples:
        >>> scorer_place("hyperscore.overall", {"hyperscore": "model.pth"})
        'model.pth'
    """
    return table.get(name, table.get(name.partition(".")[0]))


def reward_unit(reward: RewardConfig) -> str:
    """Name the unit of a run's rewards.

    Args:
        reward: Settings of the scorers.

    Returns:
        ``dB`` for the tiny world's scorers, an empty text for others; where no scorer judges all
        views, the unit of the per-view scorer.

    Examples:
        >>> reward_unit(RewardConfig())
        'dB'
    """
    worlds = (reward.per_view == "world.per_view", reward.joint in ("world.joint", VIEW_MEAN))
    return "dB" if all(worlds) else ""


def check_scorer_name(
    setting: str,
    kind: ScorerKind,
    name: str,
    *,
    weights: str | None,
    tokenizer: str | None,
    url: str | None,
) -> None:
    """Refuse a name that is no scorer's, or that lacks what its scorer needs.

    Args:
        setting: Setting that names it, for messages.
        kind: Kind of the scorer.
        name: Scorer's name; any where a service, which names its scorer, runs it.
        weights: Folder, file or hub id of the weights, if any.
        tokenizer: Folder or hub id of the tokenizer, if any.
        url: Address of the service, if any.

    Raises:
        ConfigError: If it cannot be; names the nearest, or the setting that is missing.
    """
    if is_chat(name) and not (url and weights):
        msg = (
            f"`{setting}` names {name!r}, which needs `reward.url={{{name}: http://HOST:PORT/v1}}` "
            f"and `reward.weights={{{name}: MODEL}}`, the model's name at that server."
        )
        raise ConfigError(msg)
    if (url and not is_chat(name)) or is_function(name):
        return
    if name not in SCORER_NAMES[kind] and name not in _registered(kind):
        raise _unknown(setting, kind, name)
    if name.startswith("hyperscore") and weights is None:
        msg = (
            f"`{setting}` names {name!r}, which needs `reward.weights={{hyperscore: FILE}}`: the "
            "published model.pth is on no hub."
        )
        raise ConfigError(msg)
    for table, place in (("weights", weights), ("tokenizers", tokenizer)):
        if place is None or is_chat(name) or is_hub_id(place):
            continue
        if not Path(place).expanduser().exists():
            msg = f"`reward.{table}` of {name!r} must be there; {place!r} is no folder or file."
            raise ConfigError(msg)


def _registered(kind: ScorerKind) -> Collection[str]:
    """List the builders that a program may have added to; none before their module is used."""
    builders = sys.modules.get("mvczigal_ref.reward.builders")
    return (
        () if builders is None else {"per_view": builders.PER_VIEW, "joint": builders.JOINT}[kind]
    )


def is_function(name: str) -> bool:
    """Tell whether a scorer is the user's function or a plug-in's, and not the package's.

    Args:
        name: Name in a setting.

    Returns:
        True of names of code and of registered plug-ins.

    Examples:
        >>> is_function("my_rewards.py:score"), is_function("world.joint")
        (True, False)
    """
    if is_code(name):
        return True
    ours = name == VIEW_MEAN or any(
        name in names or name in _registered(kind) for kind, names in SCORER_NAMES.items()
    )
    return not ours and plugin("scorers", name) is not None


def is_chat(name: str) -> bool:
    """Tell whether a scorer asks a chat model.

    Args:
        name: Name in a setting.

    Returns:
        True if so.

    Examples:
        >>> is_chat("chat_judge.joint"), is_chat("pickscore")
        (True, False)
    """
    return name.partition(".")[0] == "chat_judge"


def _unknown(setting: str, kind: ScorerKind, name: str) -> ConfigError:
    other: ScorerKind = "joint" if kind == "per_view" else "per_view"
    if name in SCORER_NAMES[other]:
        return ConfigError(
            f"`{setting}` names {name!r}, which is a {other} scorer: name it in "
            f"`{setting.rpartition('.')[0]}.{other}`, and here one of {sorted(SCORER_NAMES[kind])}."
        )
    names = sorted({*SCORER_NAMES[kind], *plugin_names("scorers")})
    near = nearest_name(name, names)
    return ConfigError(
        f"`{setting}` names the unknown scorer {quoted(name)}; the nearest is {near!r}. "
        f"Registered are {', '.join(names)}; a function is named as my_rewards.py:score."
    )
