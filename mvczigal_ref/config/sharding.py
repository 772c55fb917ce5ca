"""Rules between sharded weights and the other settings of a run."""

from collections.abc import Iterator

from mvczigal_ref.config.run import RunConfig
from mvczigal_ref.config.system import ModelConfig

__all__ = ["processes_contradiction", "sharding_contradictions"]


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
    if model.channels_last is True:
        yield (
            '`model.channels_last` must be false or "auto" where `run.sharding` is "full"; got '
            "True. Weights are cut in their usual layout."
        )
    if run.reduction == "ordered" and model.finetune == "full":
        yield (
            '`run.reduction` must be "auto" or "engine" where `run.sharding` and '
            '`model.finetune` are "full"; got "ordered". No process holds whole gradients to add '
            "in order: train a LoRA, or leave the weights whole."
        )


def processes_contradiction(run: RunConfig, processes: int) -> str | None:
    """Find a setting of a sharded network that one process could not follow.

    Args:
        run: Settings of the run.
        processes: Processes of the run.

    Returns:
        Message with the setting and the remedy, or None.

    Examples:
        >>> processes_contradiction(RunConfig(), 1) is None
        True
    """
    if processes > 1 or run.sharding == "none":
        return None
    for name, off in (("compute_dtype", "stored"), ("offload_parameters", False)):
        value = getattr(run, name)
        if value != off:
            return (
                f"`run.{name}` = {value!r} acts on the parts of a network, and one process holds "
                "all of it. Start several, with `--processes`, or leave it out."
            )
    return None
