"""All that needs a GPU, in one command of at most nine minutes.

    python -m bench gpu_day [--minutes 9] [--out runs/gpu_day]

Steps go in order of worth, each in a process of its own that is ended at its limit; a failure ends
no other step. The folder gets `gpu_day.json`, `gpu_day.md` and each step's output, all rewritten
after every step, so that a machine that is taken away leaves what was measured. Exit status: 0 if
every step that ran passed, 1 if not, 2 without a CUDA device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from mvczigal_ref.files import atomic_write, to_json

__all__ = ["STEPS", "Outcome", "Step", "main", "run_steps", "table"]

ROOT = Path(__file__).parents[1]
TAIL = 2000  # of a step's output, in the JSON [characters]
NO_DEVICE = 2

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process."""

    name: str
    command: tuple[str, ...]
    """Words after the interpreter; `{out}` stands for the folder."""
    limit: float
    """Longest duration [s]."""
    figures: Callable[[Path], Figures] = lambda folder: {}
    """Reads what the process wrote into the folder."""
    devices: int = 1
    """CUDA devices without which the step is left out."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One step's end."""

    name: str
    ended: Literal["passed", "failed", "cut", "left out"]
    seconds: float = 0.0
    """Duration [s]."""
    status: int | None = None
    """Exit status of the process; None where there was none or it was cut."""
    figures: Figures = field(default_factory=dict)
    tail: str = ""
    """End of the output, or the reason why there is none."""


def _properties(name: str) -> Callable[[Path], Figures]:
    """Read what tests recorded, from a JUnit file."""

    def read(folder: Path) -> Figures:
        tree = ElementTree.parse(folder / f"{name}.xml")
        return {p.attrib["name"]: p.attrib["value"] for p in tree.iter("property")}

    return read


def _budget(folder: Path) -> Figures:
    """Read peaks, plans and shares of the matrix rate."""
    content = json.loads((folder / "budget.json").read_text("utf-8"))
    figures: Figures = {
        f"{dtype} matrix rate TFLOP/s": f"{rate['flops'] / 1e12:.0f}"
        for dtype, rate in content["matrix_rates"].items()
    }
    for row in content["rows"]:
        point = row["point"]
        case = f"{point['dtype']} {point['options']}, objects {point['objects']}"
        if row["failed"]:
            figures[case] = row["failed"]
            continue
        sampling, training = row["sampling"], row["training"]
        peak = max(sampling["peak"], training["peak"]) / 2**30
        figures[f"{case}: peak / planned GiB"] = f"{peak:.2f} / {row['planned'] / 2**30:.2f}"
        figures[f"{case}: s/object, sampling + training"] = (
            f"{sampling['seconds']:.2f} + {training['seconds']:.2f}"
        )
        figures[f"{case}: of matrix rate, sampling + training"] = (
            f"{sampling['share']:.1%} + {training['share']:.1%}"
        )
    return figures


def _tests(name: str, file: str, *, limit: float, devices: int = 1) -> Step:
    command = (
        "-m", "pytest", "-s", "-m", "gpu", "-p", "no:cacheprovider",
        f"--junitxml={{out}}/{name}.xml", f"tests/gpu/{file}",
    )  # fmt: skip
    return Step(name=name, command=command, limit=limit, figures=_properties(name), devices=devices)


STEPS = (
    _tests("replay", "test_replay.py", limit=90),
    _tests("half precision", "test_precision.py", limit=120),
    _tests("peak memory", "test_full_width.py", limit=120),
    Step(
        name="budget",
        command=(
            "-m", "bench", "budget", "--objects", "2", "--dtypes", "bf16", "fp16", "--options",
            "checkpointing", "--repeats", "1", "--json", "{out}/budget.json",
        ),
        limit=150,
        figures=_budget,
    ),
    _tests("two devices", "test_two_devices.py", limit=120, devices=2),
    _tests("compile", "test_compile.py", limit=180),
)  # fmt: skip
"""In order of worth."""


def run_steps(
    steps: Sequence[Step], folder: Path, *, seconds: float, devices: int
) -> list[Outcome]:
    """Run steps one after the other, within a time for all of them, and write what they gave."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline, outcomes = time.monotonic() + seconds, []
    for step in steps:
        left = deadline - time.monotonic()
        if step.devices > devices:
            reason = f"needs {step.devices} CUDA devices; there are {devices}"
            outcomes.append(Outcome(name=step.name, ended="left out", tail=reason))
        elif left <= 0:
            outcomes.append(Outcome(name=step.name, ended="left out", tail="no time was left"))
        else:
            outcomes.append(_run(step, folder, limit=min(step.limit, left)))
        print(f"{step.name}: {outcomes[-1].ended} ({outcomes[-1].seconds:.0f} s)", flush=True)
        _write(folder, outcomes)
    return outcomes


def _run(step: Step, folder: Path, *, limit: float) -> Outcome:
    """Run one step; its whole process group ends with it."""
    command = [sys.executable, *(word.replace("{out}", str(folder)) for word in step.command)]
    output, started = folder / f"{step.name}.txt", time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):  # a child that lives on would hold the device
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - started
    tail = output.read_text("utf-8", errors="replace")[-TAIL:]
    try:
        figures = step.figures(folder)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        figures = {} if status is None else {"figures": f"unreadable: {error}"}
    ended: Literal["passed", "failed", "cut"] = (
        "cut" if status is None else "failed" if status else "passed"
    )
    return Outcome(
        name=step.name, ended=ended, seconds=seconds, status=status, figures=figures, tail=tail
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Lay outcomes out for people, one figure per row."""
    lines = ["| step | ended | s | figure | value |", "| --- | --- | --- | --- | --- |"]
    for outcome in outcomes:
        why = {} if outcome.ended != "left out" else {"reason": outcome.tail}
        rows = {**why, **outcome.figures} or {"": ""}
        head = f"| {outcome.name} | {outcome.ended} | {outcome.seconds:.0f} |"
        for name, value in rows.items():
            lines.append(f"{head} {name} | {value} |")
            head = "| | | |"
    return "\n".join(lines)


def _write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    content = {
        "devices": names,
        "torch": torch.__version__,
        "steps": [asdict(outcome) for outcome in outcomes],
    }
    atomic_write(folder / "gpu_day.json", to_json(content))
    atomic_write(folder / "gpu_day.md", table(outcomes) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Run every step, print the table and exit with what became of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_day"))
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu_day needs a CUDA device; there is none, so nothing was run.")
        sys.exit(NO_DEVICE)
    outcomes = run_steps(
        STEPS, options.out.resolve(), seconds=60 * options.minutes,
        devices=torch.cuda.device_count(),
    )  # fmt: skip
    print("\n" + table(outcomes))
    sys.exit(any(outcome.ended in ("failed", "cut") for outcome in outcomes))


if __name__ == "__main__":
    main()
