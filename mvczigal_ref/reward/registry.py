"""Scorers by the name that a configuration gives, and what is wrong with a name."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mvczigal_ref.config import GuardConfig, RewardConfig, scorer_weights
from mvczigal_ref.config.loading import nearest_name
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reward.builders import JOINT, PER_VIEW, ScorerOptions, remote
from mvczigal_ref.reward.mixture import Mixture, Scorer
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer

__all__ = [
    "JOINT",
    "PER_VIEW",
    "VIEW_MEAN",
    "ScorerOptions",
    "check_scorers",
    "joint_view_scorer",
    "mixture",
    "per_view_scorer",
    "require_device",
    "scorer_options",
]

VIEW_MEAN = "per_view"
"""In place of a joint scorer: the mean of the per-view reward."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def scorer_options(
    name: str, reward: RewardConfig, *, device: torch.device, num_views: int
) -> ScorerOptions:
    """Find out how a scorer is to be built.

    Args:
        name: Such as ``hyperscore.overall``; what is set for ``hyperscore`` is its own too.
        reward: The settings.
        device: Of the run; the scorers' own setting goes before it.
        num_views: Views of an object.

    Returns:
        What is set for this scorer.

    Raises:
        ConfigError: If ``reward.device`` names no device.

    Examples:
        >>> reward = RewardConfig(weights={"hyperscore": "folder"}, dtype="bf16")
        >>> found = scorer_options(
        ...     "hyperscore.texture", reward, device=torch.device("cpu"), num_views=6
        ... )
        >>> found.weights, found.dtype
        ('folder', torch.bfloat16)
    """
    family = name.partition(".")[0]

    def told(table: Mapping[str, str]) -> str | None:
        return table.get(name, table.get(family))

    return ScorerOptions(
        weights=told(reward.weights),
        tokenizer=told(reward.tokenizers),
        url=told(reward.url),
        device=device if reward.device == "auto" else _device(reward.device),
        dtype=_DTYPES[reward.dtype],
        images_per_chunk=reward.images_per_chunk,
        num_views=num_views,
        timeout=reward.timeout,
        wait=reward.wait,
        api_key_env=reward.api_key_env,
    )


def require_device(name: str) -> None:
    """Refuse a device of scorers that this machine does not have.

    Args:
        name: Torch device.

    Raises:
        ConfigError: If it names no device, or nothing can be computed there.

    Examples:
        >>> require_device("cpu")
    """
    try:
        torch.empty(1, device=_device(name))
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # of torch
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"cannot compute on `reward.device` = {name!r}: {reason}") from error


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, ValueError) as error:
        msg = f"`reward.device` must be a torch device, such as cuda:1, or auto; got {name!r}."
        raise ConfigError(msg) from error


def per_view_scorer(name: str, options: ScorerOptions | None = None) -> PerViewScorer:
    """Build the per-view scorer of a name.

    Args:
        name: Such as ``world.per_view``; any name where ``options`` has a service's URL.
        options: How; published weights on the CPU if None.

    Returns:
        A new scorer.

    Raises:
        ConfigError: If no per-view scorer has that name; names the nearest.
        CheckpointError: If its weights are absent or damaged.
        ScorerUnavailableError: If its service does not answer.

    Examples:
        >>> type(per_view_scorer("world.per_view")).__name__
        'WorldPerView'
    """
    built: PerViewScorer = _build("per_view", name, options or ScorerOptions())
    return built


def joint_view_scorer(name: str, options: ScorerOptions | None = None) -> JointViewScorer:
    """Build the joint-view scorer of a name.

    Args:
        name: Such as ``world.joint``; any name where ``options`` has a service's URL.
        options: How; published weights on the CPU if None.

    Returns:
        A new scorer.

    Raises:
        ConfigError: If no joint-view scorer has that name; names the nearest.
        CheckpointError: If its weights are absent or damaged.
        ScorerUnavailableError: If its service does not answer.

    Examples:
        >>> type(joint_view_scorer("world.joint")).__name__
        'WorldJointView'
    """
    built: JointViewScorer = _build("joint", name, options or ScorerOptions())
    return built


def mixture(scorers: str | Mapping[str, float], build: Callable[[str], Scorer]) -> Mixture:
    """Build what a setting names: one scorer, or several by weight.

    Args:
        scorers: ``reward.per_view`` or ``reward.joint``.
        build: Makes the scorer of a name.

    Returns:
        Their weighted sum.

    Examples:
        >>> mixture("world.joint", joint_view_scorer).weights
        {'world.joint': 1.0}
    """
    weights = scorer_weights(scorers)
    return Mixture(scorers={name: build(name) for name in weights}, weights=weights)


def check_scorers(reward: RewardConfig, guard: GuardConfig | None = None) -> None:
    """Refuse what can be seen to be wrong before anything is loaded.

    Args:
        reward: Scorers that are trained on.
        guard: Scorers that are watched.

    Raises:
        ConfigError: If a scorer is unknown, named twice, lacks what it needs, or if weights,
            tokenizers or services are given for scorers that no setting names.

    Examples:
        >>> check_scorers(RewardConfig(per_view={"world.per_view": 1, "pikscore": 1}))
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: `reward.per_view` names the unknown scorer 'pikscore'; \
the nearest is 'pickscore'.
    """
    named: list[tuple[str, str, Sequence[str]]] = [
        ("reward.per_view", "per_view", list(scorer_weights(reward.per_view))),
        ("reward.joint", "joint", [s for s in scorer_weights(reward.joint) if s != VIEW_MEAN]),
    ]
    if guard is not None and guard.every:
        named += [("guard.per_view", "per_view", guard.per_view)]
        named += [("guard.joint", "joint", guard.joint)]
    seen: dict[str, str] = {}
    for path, kind, names in named:
        for name in names:
            if name in seen:
                msg = f"`{path}` must not name {name!r}, which `{seen[name]}` names already."
                raise ConfigError(msg)
            seen[name] = path
            options = scorer_options(name, reward, device=torch.device("cpu"), num_views=1)
            _check(path, kind, name, options)
    families = {*seen, *(name.partition(".")[0] for name in seen)}
    for setting in ("weights", "tokenizers", "url"):
        for name in getattr(reward, setting):
            if name not in families:
                msg = (
                    f"`reward.{setting}` names {name!r}, which no reward is; the nearest is "
                    f"{nearest_name(name, families)!r}."
                )
                raise ConfigError(msg)


def _check(path: str, kind: str, name: str, options: ScorerOptions) -> None:
    if _is_chat(name) and not (options.url and options.weights):
        msg = (
            f"`{path}` names {name!r}, which needs `reward.url={{{name}: http://HOST:PORT/v1}}` "
            f"and `reward.weights={{{name}: MODEL}}`, the model's name at that server."
        )
        raise ConfigError(msg)
    if options.url and not _is_chat(name):
        return  # whatever the service calls its scorer
    known = PER_VIEW if kind == "per_view" else JOINT
    if name not in known:
        raise _unknown(path, name, known)
    if name.startswith("hyperscore") and options.weights is None:
        msg = (
            f"`{path}` names {name!r}, which needs `reward.weights={{hyperscore: FILE}}`: the "
            "published model.pth is on no hub."
        )
        raise ConfigError(msg)
    for setting, place in (("weights", options.weights), ("tokenizers", options.tokenizer)):
        if place is None or _is_chat(name) or _HUB_ID.fullmatch(place):
            continue
        if not Path(place).expanduser().exists():
            msg = f"`reward.{setting}` of {name!r} must be there; {place!r} is no folder or file."
            raise ConfigError(msg)


def _build(kind: str, name: str, options: ScorerOptions) -> Any:  # noqa: ANN401 - either protocol
    _check(f"reward.{kind}", kind, name, options)
    if options.url and not _is_chat(name):
        return remote(kind, name, options)
    return (PER_VIEW if kind == "per_view" else JOINT)[name](options)


def _unknown(path: str, name: str, known: Mapping[str, object]) -> ConfigError:
    other = "joint" if path.endswith("per_view") else "per_view"
    if name in (JOINT if other == "joint" else PER_VIEW):
        return ConfigError(
            f"`{path}` names {name!r}, which judges otherwise: name it in "
            f"`{path.rpartition('.')[0]}.{other}`, and here one of {sorted(known)}."
        )
    return ConfigError(
        f"`{path}` names the unknown scorer {name!r}; the nearest is {nearest_name(name, known)!r}."
    )


def _is_chat(name: str) -> bool:
    return name.partition(".")[0] == "chat_judge"
