"""Scorers by their names in a configuration, and checks of these names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import torch

from mvczigal_ref.config import GuardConfig, RewardConfig, scorer_weights
from mvczigal_ref.config.code_names import is_code
from mvczigal_ref.config.scorer_names import (
    VIEW_MEAN,
    ScorerKind,
    check_scorer_name,
    check_scorer_names,
    is_chat,
    is_function,
    scorer_place,
    scorers_by_setting,
)
from mvczigal_ref.errors import ConfigError
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

_Built = TypeVar("_Built", PerViewScorer, JointViewScorer)
_SCORERS: Final[Mapping[str, Mapping[str, Callable[[ScorerOptions], Any]]]] = {
    "per_view": PER_VIEW,
    "joint": JOINT,
}
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
    return ScorerOptions(
        weights=scorer_place(name, reward.weights),
        tokenizer=scorer_place(name, reward.tokenizers),
        url=scorer_place(name, reward.url),
        device=device if reward.device == "auto" else _device(reward.device),
        dtype=_DTYPES[reward.dtype],
        images_per_chunk=reward.images_per_chunk,
        num_views=num_views,
        image_size=image_size,
        timeout=reward.timeout,
        wait=reward.wait,
        api_key_env=reward.api_key_env,
        requests_at_once=reward.requests_at_once,
        images_per_question=reward.images_per_question,
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
        raise ConfigError(f"cannot compute on `reward.device` = {name!r}: {reason}") from error


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, ValueError) as error:
        msg = f"`reward.device` must be a torch device, such as cuda:1, or auto; got {name!r}."
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

    kind: ScorerKind
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
        if options.url and not is_chat(name):
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
    """Refuse wrong settings of scorers, before anything is loaded but the user's functions.

    Args:
        reward: Settings of the scorers that are trained on.
        guard: Settings of the scorers that are only watched.

    Raises:
        ConfigError: As :func:`~mvczigal_ref.config.scorer_names.check_scorer_names`; if an address
            is none, or a function cannot be imported.

    Examples:
        >>> check_scorers(RewardConfig(per_view="world.per_view"))
    """
    check_scorer_names(reward, guard)
    for setting, _, name in scorers_by_setting(reward, guard):
        _check_url_and_code(setting, name, scorer_place(name, reward.url))


def _check(path: str, kind: ScorerKind, name: str, options: ScorerOptions) -> None:
    check_scorer_name(
        path,
        kind,
        name,
        weights=options.weights,
        tokenizer=options.tokenizer,
        url=options.url,
    )
    _check_url_and_code(path, name, options.url)


def _check_url_and_code(path: str, name: str, url: str | None) -> None:
    if url:
        from mvczigal_ref.language.bounded_http import checked_url

        try:
            checked_url(url, name="url")
        except ValueError as error:
            raise ConfigError(f"`reward.url` of {name!r}: {error}") from error
    if is_code(name) and not url:
        load_source(name, setting=path)


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
