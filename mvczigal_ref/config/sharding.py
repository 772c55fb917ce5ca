"""Rules between sharded weights and the other settings of a run."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mvczigal_ref.config.train import TrainConfig

__all__ = ["sharding_contradictions"]


def sharding_contradictions(config: "TrainConfig") -> Iterator[str]:
    """List the settings that do not go with `run.sharding` of "full".

    Args:
        config: The run.

    Yields:
        Messages, each with a setting and the remedy.
    """
    model, run = config.model, config.run
    if run.sharding == "none":
        return
    if model.compile != "none":
        yield (
            '`model.compile` must be "none" where `run.sharding` is "full"; got '
            f"{model.compile!r}. A compiled program would hold the weights that are gathered."
        )
    if model.channels_last:
        yield (
            '`model.channels_last` must be false where `run.sharding` is "full"; got True. '
            "Weights are cut in their usual layout."
        )
    if run.reduction == "ordered" and model.finetune == "full":
        yield (
            '`run.reduction` must be "auto" or "engine" where `run.sharding` and '
            '`model.finetune` are "full"; got "ordered". No process holds whole gradients to add '
            "in order: train a LoRA, or leave the weights whole."
        )
