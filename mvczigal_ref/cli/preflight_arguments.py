"""Arguments of `plan` and `check`; `preflight` does the work, and loads torch for it."""

from dataclasses import dataclass

from mvczigal_ref.cli.output import Printed
from mvczigal_ref.cli.policy_settings import File, RecipeName, SettingWords, recipe_config

__all__ = ["Check", "Plan", "check_recipe", "plan_recipe"]


@dataclass(frozen=True, kw_only=True)
class Plan(Printed):
    """Count what an iteration takes, before any download: calls, TFLOP, and memory by part."""

    recipe: RecipeName
    """Name of a recipe; `mvczigal recipes` lists them."""
    settings: SettingWords = ()
    """Settings to change, such as run.objects_per_slice=1."""
    config: File = None
    """YAML or JSON file of settings by section; words on the command line win over it."""
    processes: int = 1
    """Processes of the run, each with a GPU of its own."""
    memory: float | None = None
    """Memory of a GPU [GiB], where `model.gradient_checkpointing` is auto; left out, what is free
    here."""


@dataclass(frozen=True, kw_only=True)
class Check(Printed):
    """Try whether this machine trains a recipe as it should, in about a minute."""

    recipe: RecipeName
    """Name of a recipe; `mvczigal recipes` lists them."""
    settings: SettingWords = ()
    """Settings to change, such as run.device=cuda."""
    config: File = None
    """YAML or JSON file of settings by section; words on the command line win over it."""


def plan_recipe(command: Plan) -> None:
    """Print what an iteration of a recipe takes.

    Args:
        command: Recipe, settings and processes.
    """
    config = recipe_config(command.recipe, file=command.config, words=command.settings)
    from mvczigal_ref.cli.planning import run_plan

    run_plan(config, processes=command.processes, command=command, memory=command.memory)


def check_recipe(command: Check) -> None:
    """Try whether this machine trains a recipe, and print the findings.

    Args:
        command: Recipe and settings.
    """
    config = recipe_config(command.recipe, file=command.config, words=command.settings)
    from mvczigal_ref.training.prompts import run_prompts

    run_prompts(config)
    from mvczigal_ref.cli.preflight import run_check

    run_check(config, command)
