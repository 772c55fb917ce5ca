"""Scorers of a configuration, including those that the guard watches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mvczigal_ref.config import TrainConfig, scorer_weights
from mvczigal_ref.config.scorer_names import scorer_place, scorers_by_setting
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.registry import (
    VIEW_MEAN,
    check_scorers,
    is_function,
    joint_view_scorer,
    mixture,
    per_view_scorer,
    require_device,
    scorer_options,
)
from mvczigal_ref.system.offloaded import Offloaded
from mvczigal_ref.system.rig import rig_of
from mvczigal_ref.tiny_world.render import IMAGE_SIZE
from mvczigal_ref.tiny_world.scene import WORLD_RIG

__all__ = ["build_scorers", "check_functions", "check_judges", "no_scorers"]


def build_scorers(
    config: TrainConfig, *, device: torch.device, watched: bool = True
) -> dict[str, Any]:
    """Build every scorer of a configuration, including those that the guard watches.

    Args:
        config: Read for its sections ``reward`` and ``guard``, the cameras, and whether scorers
            wait on the CPU.
        device: Device of the run.
        watched: Whether the guard will be used.

    Returns:
        The fields of a :class:`System` that judge images, by name.

    Raises:
        ConfigError: If a scorer is unknown or lacks what it needs, or a scorer of the tiny world
            would judge images of other cameras.
        CheckpointError: If a scorer's weights are absent or damaged.
        ScorerUnavailableError: If a scorer's service does not answer.

    Examples:
        >>> list(build_scorers(TrainConfig(), device=torch.device("cpu")))
        ['per_view', 'joint', 'watched_per_view', 'watched_joint']
    """
    check_judges(config, watched=watched)
    model = config.model
    views = 1 if model.one_view else rig_of(model).num_views

    def built(name: str, build: Callable[..., Any], section: str) -> Any:  # noqa: ANN401
        options = scorer_options(
            name, config.reward, device=device, num_views=views, image_size=model.image_size
        )
        setting = f"{section}.per_view" if build is per_view_scorer else f"{section}.joint"
        if not model.offload_frozen:
            return build(name, options, setting=setting)
        scorer = build(name, replace(options, device=torch.device("cpu")), setting=setting)
        return Offloaded(scorer, options.device) if hasattr(scorer, "to") else scorer

    def per_view(name: str, section: str = "reward") -> PerViewScorer:
        scorer: PerViewScorer = built(name, per_view_scorer, section)
        return scorer

    def joint(name: str, section: str = "reward") -> JointViewScorer:
        scorer: JointViewScorer = built(name, joint_view_scorer, section)
        return scorer

    guard, looks = config.guard, watched and config.guard.every > 0
    return {
        "per_view": mixture(config.reward.per_view, per_view),
        "joint": None if config.reward.joint == VIEW_MEAN else mixture(config.reward.joint, joint),
        "watched_per_view": {name: per_view(name, "guard") for name in guard.per_view if looks},
        "watched_joint": {name: joint(name, "guard") for name in guard.joint if looks},
    }


def check_judges(config: TrainConfig, *, watched: bool = True) -> None:
    """Refuse scorers that could not judge a run's images, before anything is loaded.

    Args:
        config: Read as by :func:`build_scorers`.
        watched: Whether the guard will be used.

    Raises:
        ConfigError: As :func:`~mvczigal_ref.reward.registry.check_scorers`; if their device does
            not exist; or if a scorer of the tiny world would judge images of other cameras or of
            another size than its renders.

    Examples:
        >>> check_judges(TrainConfig())
    """
    check_scorers(config.reward, config.guard)
    if config.reward.device != "auto":
        require_device(config.reward.device)
    model, reward = config.model, config.reward
    for _, _, name in scorers_by_setting(reward, config.guard if watched else None):
        if not name.startswith("world.") or scorer_place(name, reward.url) is not None:
            continue
        if rig_of(model) != WORLD_RIG:
            msg = (
                f"the scorer {name!r} knows only the cameras of the tiny world; got another "
                "`model.rig`, `model.azimuths` or `model.elevation`. Leave them out, or choose "
                "another scorer."
            )
            raise ConfigError(msg)
        if model.image_size != IMAGE_SIZE:
            msg = (
                f"`model.image_size` must be {IMAGE_SIZE} for the scorer {name!r}, which compares "
                f"images with renders of that size; got {model.image_size}. Choose another scorer, "
                "or leave the size out."
            )
            raise ConfigError(msg)


def check_functions(config: TrainConfig, *, device: torch.device) -> None:
    """Try the user's functions among the scorers on a small batch, before anything is loaded.

    Args:
        config: Read as by :func:`build_scorers`.
        device: Device of the run.

    Raises:
        ConfigError: If one breaks the contract of :mod:`mvczigal_ref.reward.callable`.

    Examples:
        >>> check_functions(TrainConfig(), device=torch.device("cpu"))
    """
    reward, guard = config.reward, config.guard
    kinds = (
        ("reward.per_view", per_view_scorer, scorer_weights(reward.per_view)),
        ("reward.joint", joint_view_scorer, scorer_weights(reward.joint)),
        ("guard.per_view", per_view_scorer, guard.per_view),
        ("guard.joint", joint_view_scorer, guard.joint),
    )
    views = 1 if config.model.one_view else rig_of(config.model).num_views
    for setting, build, names in kinds:
        for name in filter(is_function, names):
            options = scorer_options(
                name, reward, device=device, num_views=views, image_size=config.model.image_size
            )
            if options.url is None:
                build(name, options, setting=setting)


def no_scorers() -> dict[str, Any]:
    """Give the scorers of a system that only samples: none.

    Returns:
        The fields of a :class:`System` that judge images, by name.

    Examples:
        >>> no_scorers()["joint"].scorers
        {}
    """
    empty = Mixture(scorers={}, weights={})
    return {"per_view": empty, "joint": empty}
