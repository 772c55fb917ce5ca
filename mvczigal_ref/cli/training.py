"""A training run as a person meets it: progress, the table at the end, how to go on."""

import shlex
import time
from pathlib import Path

from rich.console import Console

from mvczigal_ref.cli.arguments import REFUSED, Train
from mvczigal_ref.cli.processes import join
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ServiceUnavailableError

__all__ = ["train_run", "train_words"]


def train_run(command: Train, config: TrainConfig) -> None:
    """Train, or go on with what the folder holds, and write the report.

    Args:
        command: What was asked for; the run's folder is in it.
        config: The run.

    Raises:
        ConfigError: If there is no such device, or the processes could not be joined.
        KeyboardInterrupt: After Ctrl-C; it has been said how to go on.
        ServiceUnavailableError: If a service is out; it has been said how to go on.
        SystemExit: In all processes but the main one, where that one raises.
    """
    folder = command.out or Path("runs") / f"{config.recipe}-{config.run.seed}"
    here = join(config.run.device)
    console = Console(quiet=not here.is_main)
    known = (folder / "config.json").is_file()
    _say(console, f"{'going on with' if known else 'training into'} {folder}")
    try:
        _run(config, folder, console, here)
    except REFUSED as error:
        if isinstance(error, ServiceUnavailableError):
            _say(console, _where(folder))
            _say(console, f"once the service is back, go on with: {_again(command)}")
        if here.is_main:
            raise
        # Every process raises it, and the main one says so; a launcher would end that one as
        # soon as this one has ended.
        time.sleep(1.0)
        raise SystemExit(75 if isinstance(error, ServiceUnavailableError) else 2) from error
    except KeyboardInterrupt:
        _say(console, _where(folder))
        _say(console, f"go on with: {_again(command)}")
        raise
    finally:
        here.close()


def _run(config: TrainConfig, folder: Path, console: Console, here: World) -> None:
    from mvczigal_ref.cli.display import TrainingDisplay, gain_table, guard_table, guard_text
    from mvczigal_ref.report import write_report
    from mvczigal_ref.report.run_folder import reward_unit, score_tables
    from mvczigal_ref.training.trainer import train

    with TrainingDisplay(console, config) as display:
        result = train(config, folder, world=here, events=display)
    if here.is_main:
        gains = {name: getattr(result, table) for name, table in score_tables(config).items()}
        console.print(gain_table(gains, unit=reward_unit(config), before="before", after="after"))
        if result.guard is not None:
            console.print(guard_table(result.guard))
            _say(console, guard_text(result.guard, returned=config.guard.action == "return"))
        _say(console, f"report: {write_report(folder)}")


def _where(folder: Path) -> str:
    from mvczigal_ref.training.checkpoint import latest_checkpoint

    found = latest_checkpoint(folder / "checkpoints")
    return "stopped before anything was saved" if found is None else f"stopped; saved in {found}"


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
    several = command.processes > 1
    return [*words, "--processes", str(command.processes)] if several else words


def _again(command: Train) -> str:
    return shlex.join(["mvczigal", *train_words(command)])


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
