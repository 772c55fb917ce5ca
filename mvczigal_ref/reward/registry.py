"""Scorers by their names in a configuration, and checks of these names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

import torch

from mvczigal_ref.config import GuardConfig, RewardConfig, scorer_weights
from mvczigal_ref.config.loading import nearest_name
from mvczigal_ref.config.plugins import plugin, plugin_names
from mvczigal_ref.config.typed import is_code
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.reward.builders import JOINT, PER_VIEW, ScorerOptions, remote
from mvczigal_ref.reward.callable import callable_scorer
from mvczigal_ref.reward.mixture import Mixture, Scorer
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.source import Source, load_source, plugin_source

__all__ = [
    "JOINT",
    "PER_VIEW",
    "VIEW_MEAN",
    "ScorerBuilder",
    "ScorerOptions",
    "check_scorers",
    "is_function",
    "joint_view_scorer",
    "mixture",
    "per_view_scorer",
    "require_device",
    "scorer_options",
    "source_of",
]

VIEW_MEAN = "per_view"
"""Name that stands for the mean of the per-view reward, in place of a joint scorer."""

_Kind = Literal["per_view", "joint"]
_Built = TypeVar("_Built", PerViewScorer, JointViewScorer)
_SCORERS: Final[Mapping[str, Mapping[str, Callable[[ScorerOptions], Any]]]] = {
    "per_view": PER_VIEW,
    "joint": JOINT,
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def scorer_options(
    name: str,
    reward: RewardConfig,
    *,
    device: torch.device,
    num_views: int,
    image_size: int = 64,
) -> ScorerOptions:
    """Collect the settings of one scorer.

    Args:
        name: Name such as ``hyperscore.overall``, for which settings of ``hyperscore`` hold too.
        reward: Settings of all scorers.
        device: Device of the run; ``reward.device`` takes precedence.
        num_views: Views of an object [1].
        image_size: Edge of an image [px].

    Returns:
        Options of this scorer.

    Raises:
        ConfigError: If ``reward.device`` names no device.

    Examples:
        >>> reward = RewardConfig(weights={"hyperscore": "folder"}, dtype="bf16")
        >>> options = scorer_options(
        ...     "hyperscore.texture", reward, device=torch.device("cpu"), num_views=6
        ... )
        >>> options.weights, options.dtype
        ('folder', torch.bfloat16)
    """
    family = name.partition(".")[0]

    def entry(table: Mapping[str, str]) -> str | None:
        return table.get(name, table.get(family))

    return ScorerOptions(
        weights=entry(reward.weights),
        tokenizer=entry(reward.tokenizers),
        url=entry(reward.url),
        device=device if reward.device == "auto" else _device(reward.device),
        dtype=_DTYPES[reward.dtype],
        images_per_chunk=reward.images_per_chunk,
        num_views=num_views,
        image_size=image_size,
        timeout=reward.timeout,
        wait=reward.wait,
        api_key_env=reward.api_key_env,
        requests_at_once=reward.requests_at_once,
        cache=reward.cache,
    )


def require_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Args:
        name: Name of a torch device.

    Raises:
        ConfigError: If it names no device, or nothing can be computed there.

    Examples:
        >>> require_device("cpu")
    """
    try:
        torch.empty(1, device=_device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # from torch
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"cannot compute on `reward.device` = {quoted(name)}: {reason}"
        ) from error


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, ValueError) as error:
        msg = (
            f"`reward.device` must be a torch device, such as cuda:1, or auto; got {quoted(name)}."
        )
        raise ConfigError(msg) from error


@dataclass(frozen=True, slots=True)
class ScorerBuilder(Generic[_Built]):
    """Builder of the scorers of one kind, by name.

    Examples:
        >>> type(per_view_scorer("world.per_view")).__name__
        'WorldPerView'
        >>> type(joint_view_scorer("world.joint")).__name__
        'WorldJointView'
    """

    kind: _Kind
    """Kind of the scorers, which is also the name of their setting."""

    def __call__(
        self, name: str, options: ScorerOptions | None = None, *, setting: str | None = None
    ) -> _Built:
        """Build the scorer of a name.

        Args:
            name: Name such as ``world.per_view``, or of a function that the user has typed, such as
                ``my_rewards.py:score``; any name if ``options`` has a service's URL.
            options: Options of the scorer; published weights on the CPU if None.
            setting: Setting that names it, for messages; ``reward`` and the kind if None.

        Returns:
            A new scorer.

        Raises:
            ConfigError: If no scorer of this kind has that name; names the nearest. If a function
                breaks the contract of :mod:`mvczigal_ref.reward.callable`; says the rule.
            CheckpointError: If its weights are absent or damaged.
            ScorerUnavailableError: If its service does not answer.
        """
        options = options or ScorerOptions()
        setting = setting or f"reward.{self.kind}"
        _check(setting, self.kind, name, options)
        if options.url and not _is_chat(name):
            scorer: _Built = remote(self.kind, name, options)
        elif is_function(name):
            source = (
                load_source(name, setting=setting)
                if is_code(name)
                else plugin_source(name, options)
            )
            scorer = callable_scorer(setting, self.kind, source, options)
        else:
            scorer = _SCORERS[self.kind][name](options)
        return scorer


per_view_scorer: Final[ScorerBuilder[PerViewScorer]] = ScorerBuilder("per_view")
"""Builds the per-view scorer of a name."""

joint_view_scorer: Final[ScorerBuilder[JointViewScorer]] = ScorerBuilder("joint")
"""Builds the joint-view scorer of a name."""


def mixture(scorers: str | Mapping[str, float], build: Callable[[str], Scorer]) -> Mixture:
    """Build the scorers that a setting names: one, or several with weights.

    Args:
        scorers: Value of ``reward.per_view`` or ``reward.joint``.
        build: Builds the scorer of a name.

    Returns:
        The weighted sum of the scorers.

    Examples:
        >>> mixture("world.joint", joint_view_scorer).weights
        {'world.joint': 1.0}
    """
    weights = scorer_weights(scorers)
    return Mixture(scorers={name: build(name) for name in weights}, weights=weights)


def check_scorers(reward: RewardConfig, guard: GuardConfig | None = None) -> None:
    """Refuse wrong settings of scorers, before anything is loaded.

    Args:
        reward: Settings of the scorers that are trained on.
        guard: Settings of the scorers that are only watched.

    Raises:
        ConfigError: If a scorer is unknown, is named twice or lacks a setting, or if weights,
            tokenizers or services are given for scorers that no setting names.

    Examples:
        >>> check_scorers(RewardConfig(per_view={"world.per_view": 1, "pikscore": 1}))
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: `reward.per_view` names the unknown scorer 'pikscore'; \
the nearest is 'pickscore'. Registered are chat_judge, clip_score, hpsv2, hpsv3, image_reward, \
pickscore, world.per_view; a function is named as my_rewards.py:score.
    """
    place = None if reward.cache is None else Path(reward.cache).expanduser()
    if place is not None and place.exists() and not place.is_dir():
        raise ConfigError(f"`reward.cache` must be a folder; {quoted(reward.cache)} is a file.")
    named: list[tuple[str, _Kind, Sequence[str]]] = [
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
                msg = f"`{path}` must not name {quoted(name)}, which `{seen[name]}` names already."
                raise ConfigError(msg)
            seen[name] = path
            options = scorer_options(name, reward, device=torch.device("cpu"), num_views=1)
            _check(path, kind, name, options)
    families = {*seen, *(name.partition(".")[0] for name in seen)}
    for setting in ("weights", "tokenizers", "url"):
        for name in getattr(reward, setting):
            if name not in families:
                msg = (
                    f"`reward.{setting}` names {quoted(name)}, a scorer that is not used; the "
                    f"nearest is {nearest_name(name, families)!r}."
                )
                raise ConfigError(msg)


def _check(path: str, kind: _Kind, name: str, options: ScorerOptions) -> None:
    if _is_chat(name) and not (options.url and options.weights):
        msg = (
            f"`{path}` names {quoted(name)}, which needs "
            f"`reward.url={{{name}: http://HOST:PORT/v1}}` and `reward.weights={{{name}: MODEL}}`, "
            "the model's name at that server."
        )
        raise ConfigError(msg)
    if options.url:
        from mvczigal_ref.language.bounded_http import checked_url

        try:
            checked_url(options.url, name="url")
        except ValueError as error:
            raise ConfigError(f"`reward.url` of {quoted(name)}: {error}") from error
    if options.url and not _is_chat(name):
        return  # the service names its scorer
    if is_code(name):
        load_source(name, setting=path)
        return
    if is_function(name):
        return
    if name not in _SCORERS[kind]:
        raise _unknown(path, kind, name)
    if name.startswith("hyperscore") and options.weights is None:
        msg = (
            f"`{path}` names {quoted(name)}, which needs `reward.weights={{hyperscore: FILE}}`: "
            "the published model.pth is on no hub."
        )
        raise ConfigError(msg)
    for setting, place in (("weights", options.weights), ("tokenizers", options.tokenizer)):
        if place is None or _is_chat(name) or _HUB_ID.fullmatch(place):
            continue
        if not Path(place).expanduser().exists():
            msg = (
                f"`reward.{setting}` of {quoted(name)} must be there; {quoted(place)} is no folder "
                "or file."
            )
            raise ConfigError(msg)


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
    registered = name in PER_VIEW or name in JOINT or name == VIEW_MEAN
    return not registered and plugin("scorers", name) is not None


def source_of(name: str, *, setting: str) -> Source:
    """Find the source of a function's or a plug-in's scorer.

    Args:
        name: Name for which :func:`is_function` holds.
        setting: Setting that names it.

    Returns:
        Place and hash of its source.

    Raises:
        ConfigError: If it was not typed, or cannot be imported.
    """
    return load_source(name, setting=setting) if is_code(name) else plugin_source(name)


def _unknown(path: str, kind: _Kind, name: str) -> ConfigError:
    other = "joint" if kind == "per_view" else "per_view"
    if name in _SCORERS[other]:
        return ConfigError(
            f"`{path}` names {quoted(name)}, which is a {other} scorer: name it in "
            f"`{path.rpartition('.')[0]}.{other}`, and here one of {sorted(_SCORERS[kind])}."
        )
    names = sorted({*_SCORERS[kind], *plugin_names("scorers")})
    near = nearest_name(name, names)
    return ConfigError(
        f"`{path}` names the unknown scorer {quoted(name)}; the nearest is {near!r}. "
        f"Registered are {', '.join(names)}; a function is named as my_rewards.py:score."
    )


def _is_chat(name: str) -> bool:
    return name.partition(".")[0] == "chat_judge"
