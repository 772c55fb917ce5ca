"""Verdicts on the papers' claims: the work of `mvczigal reproduce claims`."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from mvczigal_ref.cli.output import console_of, say, write_json
from mvczigal_ref.cli.policy_settings import require_folder
from mvczigal_ref.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.console import Console

    from mvczigal_ref.cli.comparing_arguments import Reproduce
    from mvczigal_ref.cli.display import TrainingDisplay
    from mvczigal_ref.reproduce.claims_record import ClaimsRecord
    from mvczigal_ref.reproduce.plans import PlannedRun

__all__ = ["reproduce_claims"]

_SECONDS = {"multiview": 1.6e-3, "flow": 3e-3}  # of one thread per latent, forward


def reproduce_claims(command: "Reproduce") -> None:
    """Train what the claims need, judge them, and write numbers, tables and pictures.

    Args:
        command: Claims, seeds, settings and folder.

    Raises:
        CheckpointError: If a run folder holds a run of other settings.
        ConfigError: If a claim or a setting is refused.
        KeyboardInterrupt: After Ctrl-C; how to go on has been printed.
    """
    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.reproduce.claim_runs import arms_of, claim_runs, finished_arms
    from mvczigal_ref.reproduce.claims import ARM_SETS, CLAIMS, SEEDS
    from mvczigal_ref.reproduce.claims_record import claims_record

    letters = [claim.letter for claim in CLAIMS]
    unknown = [letter for letter in command.claim if letter not in letters]
    if unknown:
        raise ConfigError(f"`--claim` must be some of {' '.join(letters)}; got {unknown}.")
    if command.iterations is not None and command.iterations < 1:
        raise ConfigError(f"`--iterations` must be at least 1; got {command.iterations}.")
    folder, seeds = command.out or Path("runs/claims"), command.seeds or SEEDS
    arms = {row.arm for one in ARM_SETS.values() for row in one.methods}
    ours = {*arms, "calls.json", "claims.json"}
    require_folder(folder, written=lambda name: (name.rpartition("-")[0] or name) in ours)
    console = console_of(command)
    length = () if command.iterations is None else (
        f"run.iterations={command.iterations}", f"optim.decay_iterations={command.iterations}",
    )  # fmt: skip
    overrides = (*length, *command.settings)
    if not command.read_only:
        chosen = arms_of(command.claim)
        with Steps(console, "counting the network calls of every arm", len(chosen)) as steps:
            runs = claim_runs(
                folder, arms=chosen, seeds=seeds, overrides=overrides, progress=steps.advance,
                keep_counts=not command.list,
            )  # fmt: skip
        if command.list:
            _print_list(console, runs, command.claim or letters)
            return
        for run in runs:
            require_folder(run.folder, run=True)
        _train(console, runs)
    record = claims_record(finished_arms(folder, seeds=seeds, overrides=overrides))
    text = _write(folder, record)
    say(console, text)
    say(console, f"verdicts, numbers and pictures: {folder / 'claims'}.md, .json and _*.svg")
    write_json(command, _content(record))


def _train(console: "Console", runs: "Sequence[PlannedRun]") -> None:
    """Train what is missing, one bold line before each run."""
    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.reproduce.claim_runs import train_missing

    numbers = count(1)

    def tell(run: "PlannedRun") -> "TrainingDisplay":
        from mvczigal_ref.cli.display import TrainingDisplay

        of = run.config.run
        line = f"{run.method.name}, seed {of.seed}, {of.iterations} iterations"
        console.print(f"run {next(numbers)} of this command: {line}", style="bold")
        return TrainingDisplay(console, run.config)

    try:
        with Steps(console, "runs that have finished", len(runs)) as steps:
            train_missing(runs, tell=tell, done=steps.reach)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on, and repeats no finished run")
        raise


def _print_list(
    console: "Console", runs: "Sequence[PlannedRun]", letters: "Collection[str]"
) -> None:
    """Print each claim with its arms and hours, then the words of every run."""
    import shlex

    from mvczigal_ref.evaluation.durations import duration
    from mvczigal_ref.reproduce.claims import CLAIMS
    from mvczigal_ref.reproduce.claims_text import NAMES

    for claim in CLAIMS:
        if claim.letter in letters:
            mine = [run for run in runs if run.method.arm in claim.arms]
            hours = duration(sum(map(_seconds, mine)))
            say(console, f"({claim.letter}) {claim.sentence}")
            say(console, f"    holds if {claim.rule}")
            names = "; ".join(NAMES[arm] for arm in claim.arms)
            say(console, f"    {names}: {len(mine)} runs, about {hours} on one core")
    say(console, f"all {len(runs)} runs: about {duration(sum(map(_seconds, runs)))} on one core")
    for run in runs:
        words = ["train", run.method.recipe, *run.words, "--out", str(run.folder)]
        say(console, shlex.join(["mvczigal", *words]))


def _seconds(run: "PlannedRun") -> float:
    """Estimate the time of a run on one core [s]."""
    return run.calls * _SECONDS[run.config.model.network]


def _write(folder: Path, record: "ClaimsRecord") -> str:
    from mvczigal_ref.files import atomic_write
    from mvczigal_ref.reproduce.claims_figures import curves_figure, front_figure
    from mvczigal_ref.reproduce.claims_record import record_text
    from mvczigal_ref.reproduce.claims_text import claims_markdown

    text = claims_markdown(record)
    atomic_write(folder / "claims.md", text)
    atomic_write(folder / "claims.json", record_text(record))
    atomic_write(folder / "claims_front.svg", front_figure(record))
    atomic_write(folder / "claims_curves.svg", curves_figure(record))
    return text


def _content(record: "ClaimsRecord") -> list[dict[str, object]]:
    """Give the verdicts as JSON values."""
    return [{"claim": one.letter, "verdict": one.verdict} for one in record.claims]
