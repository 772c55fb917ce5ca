"""Policy of a run folder, loaded to be used."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.models.loading import load_strict
from mvczigal_ref.system import System, build_system
from mvczigal_ref.training.identity import require_same_weights
from mvczigal_ref.training.rewards import changed_rewards
from mvczigal_ref.training.run_folder import load_newest

__all__ = ["load_policy"]


def load_policy(
    folder: Path, *, device: torch.device, scorers: Mapping[str, Any] | None = None
) -> tuple[System, TrainConfig]:
    """Rebuild the trained system of a run folder.

    Args:
        folder: Written by training.
        device: Device of every network.
        scorers: As :func:`~mvczigal_ref.system.build_system` takes them; the run's if absent.

    Returns:
        The system with the newest checkpoint's parameters, or their average where the run keeps
        one, and the run's configuration.

    Raises:
        CheckpointError: If the folder is no run, its checkpoint is damaged, or its base weights
            have changed.

    Examples:
        >>> load_policy(Path("absent"), device=torch.device("cpu"))
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: 'absent' holds no checkpoint. Pass a folder that \
training wrote.
    """
    checkpoint = load_newest(folder)
    require_same_weights(checkpoint.config, checkpoint.state)
    for name in changed_rewards(checkpoint.state):
        warnings.warn(
            f"the reward {name!r} has changed since {str(folder)!r} was trained on it.",
            stacklevel=2,
        )
    system = build_system(checkpoint.config, device=device, scorers=scorers)
    load_strict(system.trained(), checkpoint.policy, source=f"the checkpoint of {str(folder)!r}")
    return system, checkpoint.config
