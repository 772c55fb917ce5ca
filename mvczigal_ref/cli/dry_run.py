"""Dry run: the settings, plan and checks of a training run, and no file."""

from dataclasses import asdict
from pathlib import Path

from mvczigal_ref.cli.output import Printed, console_of, say, write_json
from mvczigal_ref.cli.planning import cost_of, plan_content, print_plan
from mvczigal_ref.cli.preflight import check_tables, checked
from mvczigal_ref.cli.recipes import changes_table
from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.config.fingerprint import setting_changes

__all__ = ["dry_run"]


def dry_run(command: Printed, config: TrainConfig, *, folder: Path, processes: int) -> None:
    """Print what a run would be, what it would take, and whether this machine trains it.

    Args:
        command: Command whose output it is.
        config: The run.
        folder: Folder that it would train into.
        processes: Processes of it.

    Raises:
        ConfigError: If training would refuse the run.
        CheckpointError: If weights cannot be read.
        SystemExit: With status 1 if something does not hold.
    """
    console = console_of(command)
    changes = setting_changes(to_dict(TrainConfig()), to_dict(config))
    say(console, f"would train into {folder}")
    console.print(changes_table(changes, before="default", after=config.recipe))
    cost = cost_of(config, processes, console)
    print_plan(cost, console)
    result = checked(config, console)
    console.print(check_tables(result))
    write_json(
        command,
        {
            "folder": str(folder),
            "config": to_dict(config),
            "plan": plan_content(cost),
            "checks": [asdict(finding) for finding in result.findings],
        },
    )
    if not result.passed:
        raise SystemExit(1)
