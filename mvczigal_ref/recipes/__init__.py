"""Named runs: each is a function that returns a full configuration."""

from collections.abc import Callable

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.loading import nearest_name
from mvczigal_ref.errors import ConfigError, quoted
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
        >>> recipe("tinny")
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: unknown recipe: `tinny`; did you mean `tiny`? \
`mvczigal recipes` lists them.
    """
    if name not in RECIPES:
        shown = quoted(name)[1:].rstrip("'\"")
        near = nearest_name(shown, RECIPES)
        msg = f"unknown recipe: `{shown}`; did you mean `{near}`? `mvczigal recipes` lists them."
        raise ConfigError(msg)
    return RECIPES[name]()
