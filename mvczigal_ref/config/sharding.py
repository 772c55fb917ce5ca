"""Rules between sharded weights and the other settings of a run."""

from collections.abc import Iterator

from mvczigal_ref.config.run import RunConfig
from mvczigal_ref.config.system import ModelConfig

__all__ = ["sharding_contradictions"]


def sharding_contradictions(model: ModelConfig, run: RunConfig) -> Iterator[str]:
    """List the settings that do not go with `run.sharding` of "full".

    Args:
        model: Settings of the network.
        run: Settings of the run.

    Yields:
        Messages, each with a setting and the remedy.
    """
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
