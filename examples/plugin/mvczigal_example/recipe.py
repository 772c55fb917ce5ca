"""Recipe: the tiny run, made red."""

from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.recipes import recipe

__all__ = ["example_red"]


def example_red() -> TrainConfig:
    """Train the tiny model to paint red objects, by Huber's loss.

    Returns:
        The configuration.
    """
    words = ["reward.per_view=example.redness", "objective.kind=example.huber"]
    return load_config(recipe("tiny"), overrides=words)
