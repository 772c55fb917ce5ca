"""Trial of this machine, as a person asks for it."""

from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvczigal_ref.cli.launch import join
from mvczigal_ref.cli.output import Printed, console_of, write_json
from mvczigal_ref.cli.progress import Steps
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method.slices import Share
from mvczigal_ref.preflight.attempts import CheckResult
from mvczigal_ref.preflight.check import check
from mvczigal_ref.system.enhancer import build_enhancer
from mvczigal_ref.system.scorers import check_functions, check_judges
from mvczigal_ref.training.low_bit import check_optimizer
from mvczigal_ref.training.prompts import run_prompts
from mvczigal_ref.training.trackers import check_trackers

__all__ = ["check_tables", "checked", "run_check"]


def run_check(config: TrainConfig, command: Printed) -> None:
    """Try whether this machine trains a run as it should, and print the findings.

    Args:
        config: The run.
        command: Command whose output it is.

    Raises:
        ConfigError: As :func:`checked`.
        CheckpointError: If weights cannot be read.
        SystemExit: With status 1 if something does not hold.
    """
    console = console_of(command)
    result = checked(config, console)
    console.print(check_tables(result))
    findings = [asdict(finding) for finding in result.findings]
    write_json(command, {"passed": result.passed, "findings": findings})
    if not result.passed:
        raise SystemExit(1)


def checked(config: TrainConfig, console: Console) -> CheckResult:
    """Try whether this machine trains a run as it should.

    Args:
        config: The run.
        console: Place for the progress.

    Returns:
        The findings.

    Raises:
        ConfigError: If there is no such device, or training would refuse the run: its slices,
            windows, prompts, scorers, captions or trackers.
        CheckpointError: If weights cannot be read.
    """
    world = join(config.run.device)
    Share.of(config, world)
    prompts, _ = run_prompts(config)
    check_judges(config)
    check_functions(config, device=world.device)
    check_optimizer(config)
    check_trackers(config.run.trackers)
    # A language model of this process is loaded by training alone.
    if not config.objective.compares_pairs and config.condition.enhancer != "local":
        build_enhancer(config.condition, device=world.device, prompts=prompts)
    with Steps(console, "sampling, replaying and learning one slice", 1) as steps:
        return check(
            config, device=world.device, progress=lambda done, total: steps.reach(done / total)
        )


def check_tables(result: CheckResult) -> Table:
    """Lay out the findings of a check.

    Args:
        result: Findings of a run.

    Returns:
        One row per finding, for a console.
    """
    held = "all of it holds" if result.passed else "training would go wrong here"
    table = Table("what must hold", "", "finding", caption=f"{held}; {result.seconds:.0f} s")
    for finding in result.findings:
        mark = "[green]yes[/]" if finding.passed else "[red]NO[/]"
        table.add_row(escape(finding.name), mark if finding.tried else "-", escape(finding.reason))
    return table
