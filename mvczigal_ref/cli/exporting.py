"""What a run has trained, as files of other tools, as a person asks for it."""

from pathlib import Path
from typing import Any

import torch

from mvczigal_ref.cli.arguments import Export
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.lora_weights import LoraWeights
from mvczigal_ref.models.policy_files import trained_lora
from mvczigal_ref.system.scorers import no_scorers
from mvczigal_ref.training.run_folder import load_newest, load_policy
from mvczigal_ref.training.trainer import export_policy

__all__ = ["export_run"]


def export_run(command: Export) -> Path:
    """Write what a run has trained, from its newest checkpoint.

    The multi-view UNet's LoRA is in the checkpoint; the base model is loaded for anything else.

    Args:
        command: What was asked for.

    Returns:
        The folder that was written.

    Raises:
        CheckpointError: If the folder is no run, or its checkpoint is damaged.
        ConfigError: If the target exists, or the layout does not fit what was trained.
    """
    if command.out.exists():
        msg = f"`--out` must not exist yet; got {str(command.out)!r}."
        raise ConfigError(msg)
    checkpoint = load_newest(command.run)
    config = checkpoint.config
    trained: LoraWeights | Any
    if config.model.network == "multiview" and config.model.finetune == "lora":
        trained = LoraWeights(
            values=checkpoint.kept,
            rank=config.model.lora_rank,
            alpha=config.model.lora_alpha,
        )
    else:
        system, _ = load_policy(command.run, device=torch.device("cpu"), scorers=no_scorers())
        trained = trained_lora(system.policy) or system.policy
    try:
        export_policy(trained, config, command.out, layout=command.layout)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return command.out
