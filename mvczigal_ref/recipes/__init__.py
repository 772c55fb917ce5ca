"""Named runs: each is a function that returns a full configuration."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.loading import nearest_name
from mvczigal_ref.config.plugins import load_plugin, plugin_names
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.recipes import (
    baselines,
    dance,
    flow,
    mv_grpo,
    other_flow,
    sd3,
    sdxl,
    single_view,
    tiny,
    tiny_family,
    tiny_flow,
)

__all__ = ["RECIPES", "recipe", "recipe_function", "recipe_names"]

_FAMILIES = (
    tiny, tiny_flow, tiny_family, baselines, sdxl, flow, mv_grpo, dance, sd3, single_view,
    other_flow,
)  # fmt: skip

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
    config = recipe_function(name)()
    return config if name in RECIPES else replace(config, recipe=name)


def recipe_names() -> list[str]:
    """Name every recipe, those of plug-ins last.

    Returns:
        Names; a plug-in cannot replace a recipe of the package.

    Examples:
        >>> "tiny" in recipe_names()
        True
    """
    return [*RECIPES, *(name for name in plugin_names("recipes") if name not in RECIPES)]


def recipe_function(name: str) -> Callable[[], TrainConfig]:
    """Give the function of a recipe; of plug-ins only this one is loaded.

    Args:
        name: Name of a recipe.

    Returns:
        The function, whose docstring says what the recipe is.

    Raises:
        ConfigError: If there is no such recipe; names the nearest one.

    Examples:
        >>> recipe_function("tiny")().recipe
        'tiny'
    """
    if name in RECIPES:
        return RECIPES[name]
    names = recipe_names()
    if name not in names:
        shown = quoted(name)[1:].rstrip("'\"")
        remedy = f"did you mean `{nearest_name(shown, names)}`? `mvczigal recipes` lists them."
        if Path(name).is_dir():
            remedy = "it is a folder: `evaluate --run` scores a run, `train --from` begins with it."
        msg = f"unknown recipe: `{shown}`; {remedy}"
        raise ConfigError(msg)
    function = load_plugin("recipes", name)

    def build() -> TrainConfig:
        config = function()
        if not isinstance(config, TrainConfig):
            kind = type(config).__name__
            raise ConfigError(f"the recipe {name!r} must give a TrainConfig; got a {kind}.")
        return config

    build.__doc__, build.__module__ = function.__doc__, function.__module__
    return build
