"""Plan of a run as a person reads it; one that is stored needs no library of models."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvczigal_ref.cli.output import Printed, console_of, say, write_json
from mvczigal_ref.cli.progress import Steps
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.scorer_names import is_function
from mvczigal_ref.preflight.plan_record import Plan
from mvczigal_ref.preflight.stored_plans import stored_plan

__all__ = ["cost_of", "plan_content", "plan_tables", "print_plan", "run_plan"]

_GIB = 2**30
_PARTS = {
    "network": "frozen network and camera encoder",
    "trained": "trained weights",
    "text_encoders": "text encoders",
    "vae": "autoencoder",
    "scorers": "scorers",
    "features": "camera features",
    "optimizer": "optimiser",
    "copies": "copies of the trained weights",
    "gathered": "gathered for a call, of cut weights",
    "rollouts": "stored rollouts",
    "gradients": "gradients",
    "sampling": "a sampling call",
    "images": "decoded images of a slice",
    "decoding": "decoding",
    "scoring": "images and scoring",
    "beside_decoding": "  while the next slice is decoded",
    "beside_sampling": "  while another slice is sampled",
    "replay": "a replay with its backward pass",
    "saved_checkpointed": "  its graph, with checkpointing",
    "saved_plain": "  its graph, without",
    "host": "host: offloaded parts and samples",
    "loading": "host: while networks are loaded",
}
_CALLS = {
    "rollout": "sampling",
    "value": "replay without gradient",
    "replay": "replay with gradient",
    "reference": "reference policy",
    "old": "policy that sampled",
    "recompute": "recomputation",
    "backward": "backward",
}


def run_plan(
    config: TrainConfig, *, processes: int, command: Printed, memory: float | None = None
) -> None:
    """Print the cost of one iteration of a run.

    Args:
        config: The run.
        processes: Processes of the run, each with a GPU of its own.
        command: Command whose output it is.
        memory: Memory of a GPU, for what is chosen by it [GiB]; None is what is free here.

    Raises:
        ConfigError: If the run's geometry is impossible; names the nearest that is possible.
    """
    console = console_of(command)
    held = None if memory is None else int(memory * _GIB)
    cost = cost_of(config, processes, console, memory=held)
    print_plan(cost, console)
    write_json(command, plan_content(cost))


def cost_of(
    config: TrainConfig, processes: int, console: Console, *, memory: int | None = None
) -> Plan:
    """Read the plan of a run where it is stored, or measure the shapes of an iteration.

    Args:
        config: The run.
        processes: Processes of the run.
        console: Place for the progress of measuring, which takes seconds.
        memory: Memory of a GPU [bytes]; None is what is free here.

    Returns:
        Plan of the run.

    Raises:
        ConfigError: If the run's geometry is impossible; names the nearest that is possible.
    """
    stored = stored_plan(config, processes=processes)
    if stored is not None:
        return stored
    from mvczigal_ref.preflight.plan import plan

    with Steps(console, "measuring the shapes of an iteration", 1) as steps:
        return plan(
            config, world_size=processes, memory=memory,
            progress=lambda done, total: steps.reach(done / total),
        )  # fmt: skip


def print_plan(cost: Plan, console: Console) -> None:
    """Print a plan's tables and notes.

    Args:
        cost: Plan of any run.
        console: Place for them.
    """
    for table in plan_tables(cost):
        console.print(table)
    notes = [f"sizes: {cost.source}"]
    if cost.conditions > 1:
        notes.append(
            f"captions: {cost.conditions - 1} per prompt, all taken to differ, which is the most "
            "that an iteration can cost; equal ones of a prompt cost nothing"
        )
    notes += _choices(cost)
    code = [name for name in cost.scorer_calls if is_function(name)]
    if code:
        notes.append(f"not counted: what {', '.join(code)} takes, functions that nothing measures")
    for note in notes:
        say(console, note)


def _choices(cost: Plan) -> list[str]:
    """Say what is chosen by arithmetic and by memory, as the run would choose it."""
    layers = [
        f"{stage} {' and '.join(f'{form} in {count}' for form, count in forms.items() if count)}"
        for stage, forms in cost.lora_forms.items()
    ]
    chosen = [f"LoRA on {cost.device}, layers of the largest call: {', '.join(layers)}"]
    if cost.blocks is None:
        return chosen if layers else []
    again = f"computed again in the backward pass: {cost.recomputed_blocks} of {cost.blocks} blocks"
    return [*(chosen if layers else []), again]


def plan_content(cost: Plan) -> dict[str, Any]:
    """Give every number of a plan as JSON values.

    Args:
        cost: Plan of any run.

    Returns:
        Fields of the plan, and the peaks of memory.
    """
    peaks = {"peak": cost.memory.peak, "stages": dict(cost.memory.stages)}
    content: dict[str, Any] = json.loads(json.dumps(asdict(cost)))
    return content | {"peaks": peaks}


def plan_tables(cost: Plan) -> tuple[Table, ...]:
    """Lay out a plan.

    Args:
        cost: Plan of any run.

    Returns:
        Counts, network calls and memory, for a console.
    """
    return _counts(cost), _work(cost), _memory(cost)


def _counts(cost: Plan) -> Table:
    table = Table("one iteration", "", title="counts")
    for label, value in {
        "objects": f"{cost.objects} over {cost.processes} processes",
        "objects per process": cost.objects_per_process,
        "views per object": cost.views,
        "samples per object": cost.samples,
        "texts per object": cost.conditions,
        "latent": " x ".join(map(str, cost.latent)),
        "images per process": cost.images,
        "parameter changes": cost.optimizer_steps,
        **{f"calls of {name}": calls for name, calls in cost.scorer_calls.items()},
        **{
            f"{name.replace('_', ' ')} [parameters]": f"{value:,}"
            for name, value in asdict(cost.parameters).items()
        },
    }.items():
        table.add_row(escape(label), escape(str(value)))
    return table


def _work(cost: Plan) -> Table:
    table = Table("per process", title="network calls")
    for heading in ("calls", "TFLOP"):
        table.add_column(heading, justify="right")
    flops: Mapping[str, int] = asdict(cost.flops)
    for name, label in _CALLS.items():
        table.add_row(label, f"{getattr(cost.calls, name):,}", f"{flops[name] / 1e12:,.2f}")
    table.add_row("autoencoder", "", f"{cost.flops.decode / 1e12:,.2f}")
    table.add_row("all", f"{cost.calls.total:,}", f"{cost.flops.total / 1e12:,.2f}")
    return table


def _memory(cost: Plan) -> Table:
    table = Table("per process", title="memory", caption="without what torch's libraries take")
    table.add_column("GiB", justify="right")
    for name, label in _PARTS.items():
        table.add_row(label, f"{getattr(cost.memory, name) / _GIB:.2f}")
    table.add_section()
    for stage, peak in cost.memory.stages.items():
        table.add_row(f"peak in {stage}", f"{peak / _GIB:.2f}")
    return table
