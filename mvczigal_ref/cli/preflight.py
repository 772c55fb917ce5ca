"""What a run will take, and whether this machine can train, as a person asks for it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvczigal_ref.cli.launch import join
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.preflight.attempts import Verdict
from mvczigal_ref.preflight.check import check
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.preflight.plan_record import Plan
from mvczigal_ref.system.scorers import check_judges

__all__ = ["check_tables", "plan_tables", "run_check", "run_plan"]

_GIB = 2**30


_PARTS = {
    "unet": "frozen UNet and camera encoder",
    "trained": "trained weights",
    "text_encoders": "text encoders",
    "vae": "autoencoder",
    "scorers": "scorers",
    "features": "camera features",
    "optimizer": "optimiser",
    "rollouts": "stored rollouts",
    "gradients": "gradients",
    "sampling": "a sampling call",
    "decoding": "decoding",
    "scoring": "images and scoring",
    "replay": "a replay with its backward pass",
    "saved_checkpointed": "  its graph, with checkpointing",
    "saved_plain": "  its graph, without",
}


_CALLS = {
    "rollout": "sampling",
    "value": "replay without gradient",
    "replay": "replay with gradient",
    "recompute": "recomputation",
    "backward": "backward",
}


def run_plan(config: TrainConfig, *, processes: int, file: Path | None) -> None:
    """Print what an iteration of a run takes.

    Args:
        config: The run.
        processes: Of the run, each with a GPU of its own.
        file: Where all numbers go as JSON too, if anywhere.

    Raises:
        ConfigError: If the run's geometry is impossible; names the nearest that is not.
    """
    console = Console()
    found = plan(config, world_size=processes)
    for table in plan_tables(found):
        console.print(table)
    console.print(f"sizes: {found.source}", markup=False, highlight=False, soft_wrap=True)
    if file is not None:
        peaks = {"peak": found.memory.peak, "stages": dict(found.memory.stages)}
        atomic_write(file, to_json(json.loads(json.dumps(asdict(found))) | {"peaks": peaks}))


def run_check(config: TrainConfig) -> None:
    """Try whether this machine trains a run as it should, and print what was found.

    Args:
        config: The run.

    Raises:
        ConfigError: If there is no such device, the run is of another kind, or its scorers could
            not judge it.
        CheckpointError: If weights cannot be read.
        SystemExit: If something does not hold.
    """
    check_judges(config)
    verdict = check(config, device=join(config.run.device).device)
    console = Console()
    console.print(check_tables(verdict))
    if not verdict.passed:
        raise SystemExit(1)


def plan_tables(found: Plan) -> tuple[Table, ...]:
    """Lay out a plan.

    Args:
        found: Of any run.

    Returns:
        Counts, network calls and memory, for a console.
    """
    return _counts(found), _work(found), _memory(found)


def check_tables(verdict: Verdict) -> Table:
    """Lay out a verdict.

    Args:
        verdict: Of any run.

    Returns:
        A row a finding, for a console.
    """
    held = "all of it holds" if verdict.passed else "training would go wrong here"
    table = Table("what must hold", "", "found", caption=f"{held}; {verdict.seconds:.0f} s")
    for finding in verdict.findings:
        mark = "[green]yes[/]" if finding.passed else "[red]NO[/]"
        table.add_row(escape(finding.name), mark, escape(finding.told))
    return table


def _counts(found: Plan) -> Table:
    table = Table("one iteration", "", title="counts")
    for label, value in {
        "objects": f"{found.objects} over {found.processes} processes",
        "objects a process": found.objects_per_process,
        "views an object": found.views,
        "latent": " x ".join(map(str, found.latent)),
        "images a process": found.images,
        "parameter changes": found.optimizer_steps,
        **{f"calls of {name}": calls for name, calls in found.scorer_calls.items()},
        **{
            f"{name.replace('_', ' ')} [parameters]": f"{value:,}"
            for name, value in asdict(found.parameters).items()
        },
    }.items():
        table.add_row(escape(label), escape(str(value)))
    return table


def _work(found: Plan) -> Table:
    table = Table("a process", title="network calls")
    for heading in ("calls", "TFLOP"):
        table.add_column(heading, justify="right")
    flops: Mapping[str, int] = asdict(found.flops)
    for name, label in _CALLS.items():
        table.add_row(label, f"{getattr(found.calls, name):,}", f"{flops[name] / 1e12:,.2f}")
    table.add_row("autoencoder", "", f"{found.flops.decode / 1e12:,.2f}")
    table.add_row("all", f"{found.calls.total:,}", f"{found.flops.total / 1e12:,.2f}")
    return table


def _memory(found: Plan) -> Table:
    table = Table("a process", title="memory", caption="without what torch's libraries take")
    table.add_column("GiB", justify="right")
    for name, label in _PARTS.items():
        table.add_row(label, f"{getattr(found.memory, name) / _GIB:.2f}")
    table.add_section()
    for stage, peak in found.memory.stages.items():
        table.add_row(f"peak in {stage}", f"{peak / _GIB:.2f}")
    return table
