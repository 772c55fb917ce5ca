"""All that needs a GPU, in one command of at most nine minutes.

    python -m bench gpu_day [--minutes 9] [--out runs/gpu_day]

Steps go in order of worth, each in a process of its own that is ended at its limit; a failure ends
no other step. The folder gets `gpu_day.json`, `gpu_day.md` and each step's output, rewritten after
every step; a step writes each figure once it is measured, so that a cut step's are kept. SIGTERM
and Ctrl-C end the running step too. Exit status: 0 if every step that ran passed, 1 if not, 2
without a CUDA device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from mvczigal_ref.files import atomic_write, to_json

__all__ = ["FIGURES", "STEPS", "Outcome", "Step", "main", "run_steps", "table"]

ROOT = Path(__file__).parents[1]
TAIL = 2000  # of a step's output, in the JSON [characters]
NO_DEVICE = 2
FIGURES = "MVCZIGAL_GPU_FIGURES"
"""Environment variable: the file to which tests append their figures, a JSON object per line."""

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
    ended: Literal["passed", "failed", "cut", "left out", "not reached"]
    seconds: float = 0.0
    """Duration [s]."""
    status: int | None = None
    """Exit status of the process; None where there was none or it was cut."""
    figures: Figures = field(default_factory=dict)
    tail: str = ""
    """End of the output, or the reason why there is none."""


def _properties(name: str) -> Callable[[Path], Figures]:
    """Read what tests recorded, but for a last line that is not whole."""

    def read(folder: Path) -> Figures:
        text = (folder / f"{name}.jsonl").read_text("utf-8")
        figures: Figures = {}
        for line in text.split("\n")[:-1]:
            figures |= json.loads(line)
        return figures

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
    command = ("-m", "pytest", "-s", "-m", "gpu", "-p", "no:cacheprovider", f"tests/gpu/{file}")
    return Step(name=name, command=command, limit=limit, figures=_properties(name), devices=devices)


STEPS = (
    _tests("replay", "test_replay.py", limit=60),
    _tests("half precision", "test_precision.py", limit=100),
    _tests("peak memory", "test_full_width.py", limit=100),
    Step(
        name="budget",
        command=(
            "-m", "bench", "budget", "--objects", "2", "--dtypes", "bf16", "fp16", "--options",
            "checkpointing", "--repeats", "1", "--strict", "--json", "{out}/budget.json",
        ),
        limit=100,
        figures=_budget,
    ),
    _tests("two devices", "test_two_devices.py", limit=60, devices=2),
    _tests("compile", "test_compile.py", limit=120),
)  # fmt: skip
"""In order of worth; the limits add up to the nine minutes, so that every step is reached."""


def run_steps(
    steps: Sequence[Step], folder: Path, *, seconds: float, devices: int
) -> list[Outcome]:
    """Run steps one after the other, within a time for all of them, and write what they gave."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    outcomes = {step.name: Outcome(name=step.name, ended="not reached") for step in steps}
    _write(folder, [*outcomes.values()])
    for step in steps:
        left = deadline - time.monotonic()
        if step.devices > devices:
            reason = f"needs {step.devices} CUDA devices; there are {devices}"
            outcomes[step.name] = Outcome(name=step.name, ended="left out", tail=reason)
        elif left <= 0:
            reason = "no time was left"
            outcomes[step.name] = Outcome(name=step.name, ended="not reached", tail=reason)
        else:
            started, status = time.monotonic(), None
            try:
                status = _run(step, folder, limit=min(step.limit, left))
            finally:  # one that a signal ends is written too
                outcome = _outcome(step, folder, time.monotonic() - started, status)
                outcomes[step.name] = outcome
                _write(folder, [*outcomes.values()])
        outcome = outcomes[step.name]
        print(f"{step.name}: {outcome.ended} ({outcome.seconds:.0f} s)", flush=True)
    _write(folder, [*outcomes.values()])
    return [*outcomes.values()]


def _run(step: Step, folder: Path, *, limit: float) -> int | None:
    """Give one step's exit status, or None if it was cut; its whole process group ends with it."""
    command = [sys.executable, *(word.replace("{out}", str(folder)) for word in step.command)]
    record = folder / f"{step.name}.jsonl"
    for path in (record, record.with_suffix(".json")):  # of an earlier run
        path.unlink(missing_ok=True)
    with (folder / f"{step.name}.txt").open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, FIGURES: str(record)},
        )  # fmt: skip
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # a child that lives on would hold the device
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _outcome(step: Step, folder: Path, seconds: float, status: int | None) -> Outcome:
    """Read what a step wrote, whether or not it was cut."""
    tail = (folder / f"{step.name}.txt").read_text("utf-8", errors="replace")[-TAIL:]
    try:
        figures = step.figures(folder)
    except (OSError, ValueError, LookupError) as error:
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
        skipped = outcome.ended in ("left out", "not reached") and outcome.tail
        why = {"reason": outcome.tail} if skipped else {}
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


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, so that the running step ends."""

    def stop(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    with _terminable():
        outcomes = run_steps(
            STEPS, options.out.resolve(), seconds=60 * options.minutes,
            devices=torch.cuda.device_count(),
        )  # fmt: skip
    print("\n" + table(outcomes))
    sys.exit(any(outcome.ended in ("failed", "cut") for outcome in outcomes))


if __name__ == "__main__":
    main()
