"""Rules between activations that are computed again by a budget and the other settings."""

from collections.abc import Iterator

from mvczigal_ref.config.run import RunConfig
from mvczigal_ref.config.system import ModelConfig

__all__ = ["recomputation_contradictions"]


def recomputation_contradictions(model: ModelConfig, run: RunConfig) -> Iterator[str]:
    """List the settings that do not go with `model.gradient_checkpointing` of "auto".

    Args:
        model: Settings of the network.
        run: Settings of the run.

    Yields:
        Messages, each with a setting and the remedy.

    Examples:
        >>> list(recomputation_contradictions(ModelConfig(), RunConfig()))
        []
    """
    if model.gradient_checkpointing != "auto":
        return
    if run.sharding == "full":
        yield (
            '`model.gradient_checkpointing` must be true or false where `run.sharding` is "full"; '
            'got "auto". Processes would choose by their own memory, and gather at other times.'
        )
    if model.compile != "none":
        yield (
            "`model.gradient_checkpointing` must be true or false where `model.compile` is "
            f'{model.compile!r}; got "auto". Activations are measured block by block, which a '
            "compiled program hides."
        )
