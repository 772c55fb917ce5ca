"""Train a recipe, and list recipes: arguments, progress, the table at the end, how to go on."""

import inspect
import json
import shlex
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mvczigal_ref.cli.launch import REFUSED, join, launch, starts_processes
from mvczigal_ref.cli.policy_settings import (
    File,
    Folder,
    RecipeName,
    SettingWords,
    named_recipe,
    recipe_config,
    require_folder,
)
from mvczigal_ref.errors import ConfigError, ServiceUnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from mvczigal_ref.config import TrainConfig
    from mvczigal_ref.distributed import World

__all__ = ["Recipes", "Train", "show_recipes", "train", "train_run", "train_words"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe into a run folder; the same command continues a stopped run."""

    recipe: RecipeName
    """Name of a recipe; `mvczigal recipes` lists them."""
    settings: SettingWords = ()
    """Settings to change, such as optim.lr=1e-3; a later one wins."""
    config: File = None
    """YAML or JSON file of settings by section; words on the command line win over it."""
    out: Annotated[Folder, arg(help_behavior_hint="(default: runs/RECIPE-SEED)")] = None
    """Run folder: one of this run, or empty, or absent."""
    seed: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: the recipe's)")
    ] = None
    """Seed of the run, short for run.seed=INT."""
    start: Annotated[
        str | None,
        arg(name="from", metavar="RUN[@ITERATION]|LORA", help_behavior_hint="(default: anew)"),
    ] = None
    """Run, checkpoint or exported LoRA whose parameters a new run begins with, under any other
    settings."""
    processes: int = 1
    """Processes on this machine that share the work, one per GPU or CPU core; leave it out under
    a launcher."""


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the recipes; or show what one is, its source, and what it changes of the defaults."""

    recipe: Annotated[
        Positional[str | None], arg(metavar="[RECIPE]", help_behavior_hint="(default: list all)")
    ] = None
    """Name of the recipe to show."""
    yaml: bool = False
    """Print all settings of the recipe as YAML, which `--config` reads."""
    json: File = None
    """Also write the table to this file."""


def train(command: Train) -> None:
    """Train in as many processes as the command asks for.

    Args:
        command: Recipe, settings and folder.

    Raises:
        ConfigError: If a setting is refused, the folder is no run's, or slices cannot be shared
            out among the processes.
        SystemExit: Where the processes did not end well; they have printed why.
    """
    command = _with_seed(command)
    config = recipe_config(command.recipe, file=command.config, words=command.settings)
    starting = starts_processes(command.processes)
    require_folder(_folder(command, config), run=True)
    from mvczigal_ref.training.prompts import run_prompts

    with warnings.catch_warnings():  # training itself warns
        warnings.simplefilter("ignore")
        run_prompts(config)
    if not starting:
        train_run(command, config)
        return
    from mvczigal_ref.distributed import World
    from mvczigal_ref.method.slices import Share

    Share.of(config, World(rank=0, size=command.processes))
    if command.start is not None:
        from mvczigal_ref.training.origin import read_origin

        read_origin(command.start, config)  # refused before any process starts
    if status := launch(command.processes, train_words(command)):
        raise SystemExit(status)


def train_run(command: Train, config: "TrainConfig") -> None:
    """Train, or go on with what the folder holds, and write the report.

    Args:
        command: The command, with the run's folder.
        config: The run.

    Raises:
        ConfigError: If there is no such device, or the processes could not be joined.
        KeyboardInterrupt: After Ctrl-C; how to go on has been printed.
        ServiceUnavailableError: If a service is out; how to go on has been printed.
        SystemExit: In all processes but the main one, where that one raises.
    """
    from rich.console import Console

    folder = _folder(command, config)
    here = join(config.run.device)
    console = Console(quiet=not here.is_main)
    resumed = (folder / "config.json").is_file()
    _say(console, f"{'going on with' if resumed else 'training into'} {folder}")
    try:
        _run(config, folder, console, here, start=command.start)
    except REFUSED as error:
        if isinstance(error, ServiceUnavailableError):
            _say(console, _where(folder))
            _say(console, f"once the service is back, go on with: {_again(command)}")
        if here.is_main:
            raise
        # Every process raises it, and the main one prints it; a launcher would end that one as
        # soon as this one has ended.
        time.sleep(1.0)
        raise SystemExit(75 if isinstance(error, ServiceUnavailableError) else 2) from error
    except KeyboardInterrupt:
        _say(console, _where(folder))
        _say(console, f"go on with: {_again(command)}")
        raise
    finally:
        here.close()


def _run(
    config: "TrainConfig", folder: Path, console: "Console", here: "World", *, start: str | None
) -> None:
    from mvczigal_ref.cli.display import TrainingDisplay, gain_table, guard_table, guard_text
    from mvczigal_ref.report import write_report
    from mvczigal_ref.report.run_content import reward_unit, score_tables
    from mvczigal_ref.training.trainer import train

    with TrainingDisplay(console, config) as display:
        result = train(config, folder, world=here, events=display, start=start)
    if here.is_main:
        gains = {name: getattr(result, table) for name, table in score_tables(config).items()}
        console.print(gain_table(gains, unit=reward_unit(config), before="before", after="after"))
        if result.guard is not None:
            console.print(guard_table(result.guard))
            _say(console, guard_text(result.guard, returned=config.guard.action == "return"))
        _say(console, f"report: {write_report(folder)}")


def _folder(command: Train, config: "TrainConfig") -> Path:
    return command.out or Path("runs") / f"{config.recipe}-{config.run.seed}"


def _with_seed(command: Train) -> Train:
    """Turn `--seed` into the setting that it is short for."""
    if command.seed is None:
        return command
    if any(word.startswith("run.seed=") for word in command.settings):
        raise ConfigError("`--seed` is short for `run.seed`; leave one of the two out.")
    return replace(command, settings=(*command.settings, f"run.seed={command.seed}"), seed=None)


def _where(folder: Path) -> str:
    from mvczigal_ref.training.checkpoint import latest_checkpoint

    newest = latest_checkpoint(folder / "checkpoints")
    return "stopped before anything was saved" if newest is None else f"stopped; saved in {newest}"


def train_words(command: Train) -> list[str]:
    """Give the words of the command line that ask for the same.

    Args:
        command: A run.

    Returns:
        Words after the program's name.
    """
    words = ["train", command.recipe, *command.settings]
    for option, path in (("--config", command.config), ("--out", command.out)):
        words += [option, str(path)] if path is not None else []
    words += ["--seed", str(command.seed)] if command.seed is not None else []
    words += ["--from", command.start] if command.start is not None else []
    several = command.processes > 1
    return [*words, "--processes", str(command.processes)] if several else words


def _again(command: Train) -> str:
    return shlex.join(["mvczigal", *train_words(command)])


def _say(console: "Console", text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_recipes(command: Recipes) -> None:
    """Print all recipes in a line each, or one at length.

    Args:
        command: Name of a recipe, if any.

    Raises:
        ConfigError: If there is no such recipe, or YAML is asked for without one.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mvczigal_ref.files import atomic_write, to_json
    from mvczigal_ref.recipes import RECIPES

    console = Console()
    if command.recipe is not None:
        named_recipe(command.recipe)
        _show_recipe(command.recipe, command, console)
        return
    if command.yaml:
        raise ConfigError("`--yaml` prints one recipe's settings; name a recipe before it.")
    summaries = {
        name: (inspect.getdoc(function) or "").partition("\n")[0]
        for name, function in RECIPES.items()
    }
    table = Table("recipe", "summary")
    for name, summary in summaries.items():
        table.add_row(name, escape(summary))
    console.print(table)
    if command.json is not None:
        atomic_write(command.json, to_json(summaries))


def _show_recipe(name: str, command: Recipes, console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    from mvczigal_ref.config import TrainConfig, to_dict
    from mvczigal_ref.files import atomic_write, to_json
    from mvczigal_ref.recipes import RECIPES

    config, function = RECIPES[name](), RECIPES[name]
    changes = _changes(to_dict(TrainConfig()), to_dict(config))
    summary = inspect.getdoc(function) or ""
    source = inspect.getdoc(sys.modules[function.__module__]) or ""
    if command.json is not None:
        content = {"recipe": name, "summary": summary, "source": source, "changes": changes}
        atomic_write(command.json, to_json(content))
    if command.yaml:
        import yaml

        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
        return
    _say(console, f"{name}: {summary}\n\nsource: {source}\n")
    table = Table()
    for heading in ("setting", "default", "here"):
        table.add_column(heading, overflow="fold")
    for path, (default, value) in changes.items():
        table.add_row(path, *(escape(_shown(each)) for each in (default, value)))
    console.print(table)


def _changes(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare settings by section: the default and the value of each that differs, by its path."""
    return {
        f"{section}.{name}": (defaults[section][name], value)
        for section, settings in values.items()
        if isinstance(settings, dict)
        for name, value in settings.items()
        if value != defaults[section][name]
    }


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever a setting may be
    return value if isinstance(value, str) else json.dumps(value)
