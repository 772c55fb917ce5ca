"""The scorers of a configuration, those that the guard watches too."""

from typing import Any

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.networks import RIGS
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.registry import (
    VIEW_MEAN,
    ScorerOptions,
    check_scorers,
    joint_view_scorer,
    mixture,
    per_view_scorer,
    scorer_options,
)

__all__ = ["build_scorers", "no_scorers"]


def build_scorers(
    config: TrainConfig, *, device: torch.device, watched: bool = True
) -> dict[str, Any]:
    """Build every scorer of a configuration, those that the guard watches too.

    Args:
        config: Its sections ``reward`` and ``guard`` are read, and the cameras' number.
        device: Of the run.
        watched: Whether the guard will look.

    Returns:
        The fields of a :class:`System` that judge images, by name.

    Raises:
        ConfigError: If a scorer is unknown or lacks what it needs.
        CheckpointError: If a scorer's weights are absent or damaged.
        ScorerUnavailableError: If a scorer's service does not answer.

    Examples:
        >>> list(build_scorers(TrainConfig(), device=torch.device("cpu")))
        ['per_view', 'joint', 'watched_per_view', 'watched_joint']
    """
    check_scorers(config.reward, config.guard)
    views = 1 if config.model.network == "flow" else RIGS[config.model.rig].num_views

    def options(name: str) -> ScorerOptions:
        return scorer_options(name, config.reward, device=device, num_views=views)

    def per_view(name: str) -> PerViewScorer:
        return per_view_scorer(name, options(name))

    def joint(name: str) -> JointViewScorer:
        return joint_view_scorer(name, options(name))

    guard, looks = config.guard, watched and config.guard.every > 0
    return {
        "per_view": mixture(config.reward.per_view, per_view),
        "joint": None if config.reward.joint == VIEW_MEAN else mixture(config.reward.joint, joint),
        "watched_per_view": {name: per_view(name) for name in guard.per_view if looks},
        "watched_joint": {name: joint(name) for name in guard.joint if looks},
    }


def no_scorers() -> dict[str, Any]:
    """Give the scorers of a system that only samples: none that could be asked.

    Returns:
        The fields of a :class:`System` that judge images, by name.

    Examples:
        >>> no_scorers()["joint"].scorers
        {}
    """
    nobody = Mixture(scorers={}, weights={})
    return {"per_view": nobody, "joint": nobody}
