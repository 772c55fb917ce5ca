"""Named runs: each is a function that returns a full configuration."""

from collections.abc import Callable

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.loading import unknown_setting
from mvczigal_ref.recipes import baselines, dance, flow, mv_grpo, sd3, sdxl, tiny, tiny_flow

__all__ = ["RECIPES", "recipe"]

_FAMILIES = (tiny, tiny_flow, baselines, sdxl, flow, mv_grpo, dance, sd3)

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    name: getattr(family, name) for family in _FAMILIES for name in family.__all__
}
"""Every recipe by name."""


def recipe(name: str) -> TrainConfig:
    """Return the configuration of a recipe.

    Args:
        name: Name of a recipe, such as ``tiny``.

    Returns:
        The full configuration.

    Raises:
        ConfigError: If there is no such recipe; names the nearest one.

    Examples:
        >>> recipe("tiny").recipe
        'tiny'
    """
    if name not in RECIPES:
        raise unknown_setting(name, RECIPES)
    return RECIPES[name]()
