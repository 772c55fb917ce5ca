"""Export a run's policy for other tools, and write its report again."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.files import require_run

if TYPE_CHECKING:
    from mvczigal_ref.models.model_card import CardFacts

__all__ = ["Export", "Report", "export_run", "print_export", "print_report"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write what a run has trained as PEFT and diffusers load it, from its newest checkpoint.

    A finished run needs no export: its folder holds all layouts in `policy`.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, finished or not."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Folder to write, which does not exist yet."""
    layout: Annotated[
        Literal["peft", "diffusers", "released"] | None,
        arg(metavar="{peft,diffusers,released}", help_behavior_hint="(default: all that fit)"),
    ] = None
    """Only this layout of a LoRA: PEFT's folder, or the one file that diffusers or the released
    trainer reads."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a run's report.html again."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, finished or not."""


def print_export(command: Export) -> None:
    """Export, and print the folder.

    Args:
        command: Run, folder and layout.
    """
    print(export_run(command))


def print_report(command: Report) -> None:
    """Write a report, and print its path.

    Args:
        command: The run.

    Raises:
        CheckpointError: If the folder is no run folder.
    """
    require_run(command.run)
    from mvczigal_ref.report import write_report

    print(write_report(command.run))


def export_run(command: Export, *, facts: "CardFacts | None" = None) -> Path:
    """Write what a run has trained, from its newest checkpoint.

    The multi-view UNet's LoRA is in the checkpoint; the base model is loaded for anything else.

    Args:
        command: Run, folder and layout.
        facts: Results and the like for the model card.

    Returns:
        The folder that was written.

    Raises:
        CheckpointError: If the folder is no run, or its checkpoint is damaged.
        ConfigError: If the target exists, or the layout does not fit what was trained.
    """
    if os.path.lexists(command.out):  # a link that leads nowhere, too
        msg = f"`--out` must not exist yet; got {str(command.out)!r}."
        raise ConfigError(msg)
    require_run(command.run)
    from mvczigal_ref.models.lora_weights import LoraWeights
    from mvczigal_ref.training.exporting import export_policy
    from mvczigal_ref.training.run_folder import load_newest

    checkpoint = load_newest(command.run)
    config = checkpoint.config
    trained: LoraWeights | Any
    if config.model.network == "multiview" and config.model.finetune == "lora":
        trained = LoraWeights(
            values=checkpoint.policy,
            rank=config.model.lora_rank,
            alpha=config.model.lora_alpha,
        )
    else:
        trained = _loaded(command.run)
    try:
        export_policy(trained, config, command.out, layout=command.layout, facts=facts)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return command.out


def _loaded(run: Path) -> Any:  # noqa: ANN401 - a LoRA or a policy
    """Build a run's policy, for what its checkpoint alone does not say."""
    import torch

    from mvczigal_ref.models.policy_files import trained_lora
    from mvczigal_ref.system.scorers import no_scorers
    from mvczigal_ref.training.run_policy import load_policy

    system, _ = load_policy(run, device=torch.device("cpu"), scorers=no_scorers())
    return trained_lora(system.policy) or system.policy
