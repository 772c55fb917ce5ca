"""Train a recipe: arguments, progress, the table at the end, how to go on."""

import json
import shlex
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from mvczigal_ref.cli.launch import REFUSED, join, launch, starts_processes
from mvczigal_ref.cli.output import Printed, console_of, say, write_json
from mvczigal_ref.cli.policy_settings import (
    File,
    Folder,
    RecipeName,
    SettingWords,
    recipe_config,
    require_folder,
)
from mvczigal_ref.errors import ConfigError, NonFiniteError, ServiceUnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from mvczigal_ref.config import TrainConfig
    from mvczigal_ref.distributed import World

__all__ = ["Train", "train", "train_run", "train_words"]


@dataclass(frozen=True, kw_only=True)
class Train(Printed):
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
    dry_run: bool = False
    """Print settings, plan and checks, and train nothing; no file is written."""


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
    if command.start is not None:
        from mvczigal_ref.models.single_files import require_start

        require_start(Path(command.start).expanduser())
    _refuse_early(config)
    if command.dry_run:
        from mvczigal_ref.cli.dry_run import dry_run

        dry_run(command, config, folder=_folder(command, config), processes=command.processes)
        return
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


def _refuse_early(config: "TrainConfig") -> None:
    """Refuse what needs no model to be seen: prompts, trackers and scorers."""
    from mvczigal_ref.training.prompts import run_prompts

    with warnings.catch_warnings():  # training itself warns
        warnings.simplefilter("ignore")
        run_prompts(config)
    from mvczigal_ref.config.scorer_names import check_scorer_names
    from mvczigal_ref.training.tracker_names import require_trackers

    check_scorer_names(config.reward, config.guard)
    require_trackers(config.run.trackers)
    # Names are right: what follows imports torch.
    from mvczigal_ref.reward.registry import check_scorers

    check_scorers(config.reward, config.guard)
    if config.run.trackers:
        from mvczigal_ref.training.trackers import check_trackers

        check_trackers(config.run.trackers)


def train_run(command: Train, config: "TrainConfig") -> None:
    """Train, or go on with what the folder holds, and write the report.

    Args:
        command: The command, with the run's folder.
        config: The run.

    Raises:
        ConfigError: If there is no such device, the processes could not be joined, or a number is
            not finite, with the way on.
        KeyboardInterrupt: After Ctrl-C; how to go on has been printed.
        ServiceUnavailableError: If a service is out; how to go on has been printed.
        SystemExit: In all processes but the main one, where that one raises; and after a stop
            since the output's reader has gone, with how to go on on standard error.
    """
    folder = _folder(command, config)
    from mvczigal_ref.cli.patient_console import PatientConsole, end_unread, place_of_stop

    here = join(config.run.device)
    console = PatientConsole(quiet=console_of(command, shown=here.is_main).quiet)
    say(console, _beginning(folder, config))
    try:
        _run(command, config, console, here)
    except REFUSED as error:
        if isinstance(error, ServiceUnavailableError):
            say(console, place_of_stop(folder))
            say(console, f"once the service is back, go on with: {_again(command)}")
        if here.is_main and isinstance(error, NonFiniteError):
            raise ConfigError(f"{error} {_way_on(folder)}") from error
        if here.is_main:
            raise
        # Every process raises it, and the main one prints it; a launcher would end that one as
        # soon as this one has ended.
        time.sleep(1.0)
        raise SystemExit(75 if isinstance(error, ServiceUnavailableError) else 2) from error
    except KeyboardInterrupt:
        if console.reader_gone:
            end_unread(folder, f"Go on with: {_again(command)}")
        say(console, place_of_stop(folder))
        say(console, f"go on with: {_again(command)}")
        raise
    finally:
        here.close()


def _run(command: Train, config: "TrainConfig", console: "Console", here: "World") -> None:
    """Train; then tell what came of it, and write the report whether or not that can be told."""
    from mvczigal_ref.cli.display import TrainingDisplay, gain_table, guard_table, guard_text
    from mvczigal_ref.config.scorer_names import reward_unit
    from mvczigal_ref.report import write_report
    from mvczigal_ref.report.run_content import score_tables
    from mvczigal_ref.training.trainer import train

    folder = _folder(command, config)
    with TrainingDisplay(console, config) as display:
        result = train(config, folder, world=here, events=display, start=command.start)
    if not here.is_main:
        return
    try:
        gains = {name: getattr(result, table) for name, table in score_tables(config).items()}
        console.print(
            gain_table(gains, unit=reward_unit(config.reward), before="before", after="after")
        )
        if result.guard is not None:
            console.print(guard_table(result.guard))
            say(console, guard_text(result.guard, returned=config.guard.action == "return"))
        if command.json is not None:
            summary = json.loads((folder / "summary.json").read_text("utf-8"))
            write_json(command, {"folder": str(folder), **summary})
    finally:
        report = write_report(folder)
    say(console, f"report: {report}")


def _folder(command: Train, config: "TrainConfig") -> Path:
    return command.out or Path("runs") / f"{config.recipe}-{config.run.seed}"


def _with_seed(command: Train) -> Train:
    """Turn `--seed` into the setting that it is short for."""
    if command.seed is None:
        return command
    if any(word.startswith("run.seed=") for word in command.settings):
        raise ConfigError("`--seed` is short for `run.seed`; leave one of the two out.")
    return replace(command, settings=(*command.settings, f"run.seed={command.seed}"), seed=None)


def _beginning(folder: Path, config: "TrainConfig") -> str:
    """Say whether a run begins, or from where it goes on and by which settings."""
    from mvczigal_ref.training.checkpoint_folder import checkpoint_iteration, latest_checkpoint

    newest, total = latest_checkpoint(folder / "checkpoints"), config.run.iterations
    if newest is not None:
        finished = checkpoint_iteration(newest) or 0
        if finished >= total:
            return f"{folder} has finished its {total} iterations; only what is missing is made"
        return f"resumes {folder} at iteration {finished} of {total} with its own settings"
    if (folder / "config.json").is_file():
        return f"resumes {folder}, which has no checkpoint yet, at iteration 0 of {total}"
    return f"training into {folder}"


def _way_on(folder: Path) -> str:
    """Say how to leave a number that is not finite, which the same command would meet again."""
    from mvczigal_ref.training.checkpoint_folder import checkpoint_iteration, latest_checkpoint

    newest = latest_checkpoint(folder / "checkpoints")
    if newest is None:
        return (
            "Change the setting that leads there, such as a lower `optim.lr`, and another `--out`."
        )
    place = shlex.quote(f"{folder}@{checkpoint_iteration(newest)}")
    return (
        f"`--from {place}`, or an earlier checkpoint, with another `--out` begins a new run with "
        "its parameters under other settings, such as a lower `optim.lr`."
    )


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
    words += ["--json", str(command.json)] if command.json is not None else []
    words += ["--quiet"] * command.quiet
    several = command.processes > 1
    return [*words, "--processes", str(command.processes)] if several else words


def _again(command: Train) -> str:
    return shlex.join(["mvczigal", *train_words(command)])
