"""List recipes, show one at length, or compare two."""

import inspect
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mvczigal_ref.cli.output import Printed, console_of, say, write_json
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.published import SHIPPED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mvczigal_ref.config import TrainConfig

__all__ = ["Recipes", "changes_table", "network_of", "show_recipes"]


@dataclass(frozen=True, kw_only=True)
class Recipes(Printed):
    """List the recipes; or show what one is, its source, and what it changes of the defaults."""

    recipe: Annotated[
        Positional[str | None], arg(metavar="[RECIPE]", help_behavior_hint="(default: list all)")
    ] = None
    """Name of the recipe to show."""
    diff: Annotated[
        str | None, arg(metavar="RECIPE", help_behavior_hint="(default: the defaults)")
    ] = None
    """Other recipe to compare it with, in the defaults' place."""
    yaml: bool = False
    """Print all settings of the recipe as YAML, which `--config` reads."""


def show_recipes(command: Recipes) -> None:
    """Print all recipes in a line each, or one at length.

    Args:
        command: Name of a recipe, if any.

    Raises:
        ConfigError: If there is no such recipe, or YAML or a comparison is asked for without one.
    """
    console = console_of(command)
    if command.recipe is not None:
        _show_recipe(command.recipe, command, console)
        return
    if command.yaml or command.diff is not None:
        option = "--yaml" if command.yaml else "--diff"
        raise ConfigError(f"`{option}` is for one recipe's settings; name a recipe before it.")
    from rich.markup import escape
    from rich.table import Table

    from mvczigal_ref.config.plugins import plugins
    from mvczigal_ref.recipes import RECIPES

    rows = {name: _row(RECIPES[name]()) | {"summary": _summary(name)} for name in RECIPES}
    unread = dict.fromkeys(
        ("network", "plan", "check", "reproduce"), "-"
    )  # a plug-in that nobody named
    for name, entry in plugins("recipes").items():
        rows.setdefault(name, {**unread, "summary": f"plug-in, {entry.value}"})
    table = Table(caption="check: weights are those that it loads and that the package lacks")
    table.add_column("recipe", no_wrap=True)
    for heading in ("network", "plan", "check", "reproduce", "summary"):
        table.add_column(heading, overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *(escape(cell) for cell in row.values()))
    console.print(table)
    write_json(command, rows)


def _row(config: "TrainConfig") -> dict[str, str]:
    """Say which commands run a recipe, and what they need."""
    from mvczigal_ref.reproduce.methods import COMPARISONS

    compared = (
        name
        for name, methods in COMPARISONS.items()
        if config.recipe in [method.recipe for method in methods.methods]
    )
    return {
        "network": network_of(config),
        "plan": "yes",
        "check": "yes" if config.model.weights in SHIPPED else "weights",
        "reproduce": next(compared, "-"),
    }


def network_of(config: "TrainConfig") -> str:
    """Name the network that a run trains, and what makes a few-step one of it.

    Args:
        config: The section ``model`` is read.

    Returns:
        Name of the weights without their publisher; of parts from elsewhere, their names too.

    Examples:
        >>> from mvczigal_ref.recipes import recipe
        >>> network_of(recipe("tiny")), network_of(recipe("sdxl_tcd_grpo"))
        ('tiny', 'stable-diffusion-xl-base-1.0 + TCD-SDXL-LoRA')
    """
    places = [config.model.weights, *config.model.sources.values()]
    names = (place.rstrip("/").rpartition("/")[2] for place in places)
    return " + ".join(name.removesuffix(".safetensors") for name in names)


def _summary(name: str) -> str:
    from mvczigal_ref.recipes import RECIPES

    return (inspect.getdoc(RECIPES[name]) or "").partition("\n")[0]


def _show_recipe(name: str, command: Recipes, console: "Console") -> None:
    from mvczigal_ref.config import TrainConfig, to_dict
    from mvczigal_ref.config.fingerprint import setting_changes
    from mvczigal_ref.recipes import recipe, recipe_function

    config, function = recipe(name), recipe_function(name)
    other = TrainConfig() if command.diff is None else recipe(command.diff)
    changes = setting_changes(to_dict(other), to_dict(config))
    summary = inspect.getdoc(function) or ""
    source = inspect.getdoc(sys.modules[function.__module__]) or ""
    content = {
        "recipe": name, "summary": summary, "source": source, **_row(config),
        "against": command.diff, "changes": changes,
    }  # fmt: skip
    write_json(command, content)
    if command.yaml:
        import yaml

        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return
    runs = "; ".join(f"{key}: {value}" for key, value in _row(config).items())
    text = f"{name}: {summary}\n\nsource: {source}\n\n{runs}\n"
    say(console, text)
    console.print(changes_table(changes, before=command.diff or "default", after=name))


def changes_table(changes: dict[str, tuple[Any, Any]], *, before: str, after: str) -> "Table":
    """Lay out settings that differ, one row each.

    Args:
        changes: Both values by path, from :func:`~mvczigal_ref.config.fingerprint.setting_changes`.
        before: Heading of the first values.
        after: Heading of the second.

    Returns:
        A table for a console.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for heading in ("setting", before, after):
        table.add_column(heading, overflow="fold")
    for path, pair in changes.items():
        shown = (each if isinstance(each, str) else json.dumps(each) for each in pair)
        table.add_row(path, *map(escape, shown))
    return table
