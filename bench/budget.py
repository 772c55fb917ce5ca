"""What an object costs: seconds, memory, and share of the measured matrix rate.

    python -m bench budget [--objects 1 2 4 8] [--options checkpointing checkpointing+compile]

One row for each of views x steps x objects x dtype x options: a whole training iteration of one
slice of pairs on a network of the recipe's size with random weights. Seconds are the smallest of
the repeats, their spread beside them. Operations are counted from shapes, those that checkpointing
does twice too; the share is operations over seconds over the matrix rate in the same dtype, which
is measured first, in the same process. `--tiny` measures the shipped tiny network's size, on the
CPU too; there the peak is that of the process so far, and says little.
"""

import argparse
import gc
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.iterations import Trainee
from bench.matrix import MatrixRate, matrix_rate
from bench.networks import random_system
from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.errors import ReplayMismatchError
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.preflight.plan_record import Plan
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system.networks import DTYPES

PLAIN = (
    "model.gradient_checkpointing=false", "model.compile=none", "model.channels_last=false",
    "model.views_per_decode=6",
)  # fmt: skip
OPTIONS = {
    "plain": (),
    "checkpointing": ("model.gradient_checkpointing=true",),
    "compile": ("model.compile=inductor",),
    "channels_last": ("model.channels_last=true",),
    "offload": ("model.offload_frozen=true",),
    "tf32": ("model.tf32=true",),
}
"""Settings by the name that a row has for them; a row joins some by `+`."""

ASKED = ("plain", "checkpointing", "checkpointing+compile", "checkpointing+channels_last")
FRONT = -90.0  # azimuth of the first camera [deg]

TINY = ("model.weights=tiny", "model.image_size=32")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row's settings."""

    views: int
    steps: int
    objects: int
    dtype: str
    options: str

    def config(self, base: str, words: Sequence[str]) -> TrainConfig:
        """Configure one iteration of one slice; last words win."""
        chosen = [word for name in self.options.split("+") for word in OPTIONS[name]]
        angles = [FRONT + 360.0 * view / self.views for view in range(self.views)]
        return load_config(
            recipe(base),
            overrides=[
                "model.rig=paper", "reward.per_view=world.per_view", "reward.joint=world.joint",
                "reward.weights={}", "optim.optimizer_steps_per_epoch=1",
                f"model.azimuths={angles}", *PLAIN,
                f"sampler.num_steps={self.steps}", f"model.dtype={self.dtype}",
                f"model.storage_dtype={self.dtype}", f"run.objects_per_slice={self.objects}",
                f"run.objects_per_iteration={self.objects}", *chosen, *words,
            ],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Sampling, or training, of one row."""

    seconds: float
    """Of one object: both of its arms, all of its steps [s]."""
    spread: float
    """Slowest minus fastest repeat, over the fastest [1]."""
    peak: int
    """[bytes]"""
    flops: int
    """Of one object [FLOP]."""
    share: float
    """Of the matrix rate [1]."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found; without stages, why nothing was."""

    point: Point
    first: float | None = None
    """The first iteration, compilation and all [s]."""
    planned: int | None = None
    """Peak that the plan says [bytes]."""
    sampling: Stage | None = None
    training: Stage | None = None
    failed: str = ""


def measure(
    point: Point, config: TrainConfig, device: torch.device, rate: MatrixRate, *, repeats: int
) -> Row:
    """Measure one row; what the device has no memory for, or does not repeat, is told as such."""
    try:
        found = plan(config)
        trainee = Trainee(random_system(config, device), config)
        runs = [trainee.iterate() for _ in range(repeats + 1)]
    except (torch.OutOfMemoryError, ReplayMismatchError) as error:
        return Row(point=point, failed=str(error).partition("\n")[0].partition(". ")[0])
    finally:
        trainee = None  # before the next row's networks are made
        _forget(device)
    first, *timed = runs

    def stage(name: str, flops: int) -> Stage:
        seconds = [run.seconds[name] for run in timed]
        return Stage(
            seconds=min(seconds) / point.objects,
            spread=(max(seconds) - min(seconds)) / min(seconds),
            peak=max(run.peaks[name] for run in timed),
            flops=flops // point.objects,
            share=flops / min(seconds) / rate.flops,
        )

    return Row(
        point=point,
        first=sum(first.seconds.values()),
        planned=found.memory.peak,
        sampling=stage("rollout", found.flops.rollout),
        training=stage("update", trained_flops(found)),
    )


def trained_flops(found: Plan) -> int:
    """Add up what an update computes."""
    flops = found.flops
    return flops.value + flops.replay + flops.recompute + flops.backward


def _forget(device: torch.device) -> None:
    """Give memory back, and what was compiled for other networks."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(rows: Sequence[Row]) -> str:
    """Lay rows out for people."""
    heads = (
        "views", "steps", "objects", "dtype", "options",
        "sampling s/object", "peak GiB", "of matrix rate",
        "training s/object", "peak GiB", "of matrix rate", "planned GiB",
    )  # fmt: skip
    lines = [heads, ("---",) * len(heads)]
    for row in rows:
        cells = [str(value) for value in asdict(row.point).values()]
        if row.sampling is None or row.training is None or row.planned is None:
            cells += [row.failed, *[""] * 6]
        else:
            for stage in (row.sampling, row.training):
                cells += [
                    f"{stage.seconds:.3f} (+{stage.spread:.0%})",
                    f"{stage.peak / 2**30:.2f}", f"{stage.share:.1%}",
                ]  # fmt: skip
            cells.append(f"{row.planned / 2**30:.2f}")
        lines.append(tuple(cells))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def budget(
    points: Sequence[Point],
    *,
    device: torch.device,
    base: str,
    words: Sequence[str],
    repeats: int,
    matrix: int,
    save: Callable[[dict[str, Any]], None],
) -> list[Row]:
    """Measure every row, each dtype's matrix rate before; save all of it after each, for JSON."""
    rates = {
        name: matrix_rate(device, DTYPES[name], size=matrix)
        for name in dict.fromkeys(point.dtype for point in points)
    }
    cuda = device.type == "cuda"
    named = (
        torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    )
    content = {
        "device": named,
        "torch": torch.__version__,
        "recipe": base,
        "settings": [*words],
        "matrix_rates": {name: asdict(rate) for name, rate in rates.items()},
    }
    rows: list[Row] = []
    save({**content, "rows": []})
    for point in points:
        config = point.config(base, words)
        rows.append(measure(point, config, device, rates[point.dtype], repeats=repeats))
        save({**content, "rows": [asdict(row) for row in rows]})
        print(f"{len(rows)} of {len(points)}: {_told(rows[-1])}", flush=True)
    print("\n" + table(rows))
    for name, rate in rates.items():
        print(
            f"{name} matrix rate: {rate.flops / 1e12:.2f} TFLOP/s, {rate.size} x {rate.size}, "
            f"spread {rate.spread:.1%} over {rate.repeats}; {named}"
        )
    return rows


def _told(row: Row) -> str:
    point = " ".join(f"{k}={v}" for k, v in asdict(row.point).items())
    return f"{point}: {row.failed or 'measured'}"


def grid(wanted: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Give every combination, the first name slowest."""
    return [
        Point(**dict(zip(wanted, values, strict=True)))
        for values in itertools.product(*wanted.values())
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what was asked for, print a table and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", nargs="+", type=int, default=[6])
    parser.add_argument("--steps", nargs="+", type=int, default=None, help="default 8; tiny 2")
    parser.add_argument("--objects", nargs="+", type=int, default=None, help="1 2 4 8; tiny 1 2")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default bf16; tiny fp32")
    parser.add_argument("--options", nargs="+", default=ASKED, help="joined by +")
    parser.add_argument("--recipe", default="lcm_sdxl_simple")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=Path("runs/budget.json"))
    parser.add_argument("--tiny", action="store_true", help="the shipped tiny network's size")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a row failed")
    parser.add_argument("--settings", nargs="+", default=[], help="section.name=value")
    wanted = parser.parse_args(argv)
    unknown = {name for text in wanted.options for name in text.split("+")} - OPTIONS.keys()
    if unknown:
        parser.error(f"--options must be made of {sorted(OPTIONS)}; got {sorted(unknown)}")
    device = torch.device(wanted.device)
    if device.type == "cpu" and not wanted.tiny:
        parser.error("the published size needs a CUDA device; --tiny measures the tiny one")
    points = grid(
        {
            "views": wanted.views,
            "steps": wanted.steps or ([2] if wanted.tiny else [8]),
            "dtype": wanted.dtypes or (["fp32"] if wanted.tiny else ["bf16"]),
            "options": wanted.options,
            "objects": wanted.objects or ([1, 2] if wanted.tiny else [1, 2, 4, 8]),
        }
    )
    rows = budget(
        points,
        device=device,
        base=wanted.recipe,
        words=[*(TINY if wanted.tiny else ()), *wanted.settings],
        repeats=wanted.repeats,
        matrix=128 if wanted.tiny else 8192,
        save=lambda content: atomic_write(wanted.json, to_json(content)),
    )
    print(f"written: {wanted.json}")
    if wanted.strict and any(row.failed for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
