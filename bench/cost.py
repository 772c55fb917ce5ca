"""One training iteration at three small shapes: ATen operators, CPU seconds, peak memory.

    python -m bench.cost [--shapes S M L] [--repeats 3] [--released PATH]

The columns "released" are figures of the released trainer for the same shapes, prompts, views,
steps and optimiser steps: measured in turn with ours where PATH is a checkout of it, else published
ones (minimum of three on a 2-core machine). Seconds do not carry over between machines; operators
do.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mvczigal_ref.config import TrainConfig, from_dict
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.system import System, build_system
from mvczigal_ref.training.optimizer import build_optimizer
from mvczigal_ref.training.tracking import StageTimer, peak_memory

PROMPTS = ("a red cube with a white nose", "a blue ball with a yellow fin")


@dataclass(frozen=True)
class Shape:
    """A network's size, and what the released trainer needs for one iteration of it."""

    image: int
    channels: tuple[int, int, int]
    heads: tuple[int, int, int]
    layers: tuple[int, int, int]
    steps: int
    released_operators: int
    released_seconds: float
    released_megabytes: float


SHAPES = {
    "S": Shape(64, (16, 32, 32), (1, 2, 2), (1, 1, 2), 8, 661_601, 6.45, 577),
    "M": Shape(128, (32, 64, 128), (1, 2, 4), (1, 2, 2), 8, 834_911, 15.7, 737),
    "L": Shape(256, (32, 64, 128), (1, 2, 4), (1, 2, 2), 4, 429_079, 26.7, 1202),
}


class CountOperators(TorchDispatchMode):
    """Count every ATen operator, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def cheap_per_view(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Mean plus a tenth of the standard deviation of the pixels."""
    return images.mean((2, 3, 4)) + 0.1 * images.std((2, 3, 4))


def cheap_joint(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """The same over all views."""
    return images.mean((1, 2, 3, 4)) + 0.1 * images.std((1, 2, 3, 4))


def configuration(shape: Shape) -> TrainConfig:
    """Released-code settings; how replay is cut up is ours."""
    return from_dict(
        {
            "model": {"image_size": shape.image, "lora_rank": 4, "lora_alpha": 4.0, "rig": "paper",
                      "channels_last": True},
            "sampler": {"num_steps": shape.steps, "guidance_scale": 7.0, "snr_shift": 8.0,
                        "prediction_type": "epsilon"},
            "objective": {"clip_range": 1e-4, "train_last_action": True},
            "optim": {"lr": 1e-4, "optimizer_steps_per_epoch": 1,
                      "steps_per_microbatch": STEPS_TOGETHER[shape.image]},
            "run": {"objects_per_iteration": 2, "objects_per_slice": 2,
                    "arms_per_call": ARMS_TOGETHER[shape.image],
                    "replay_objects_per_slice": OBJECTS_REPLAYED[shape.image]},
        }
    )  # fmt: skip


STEPS_TOGETHER = {64: 8, 128: 1, 256: 1}
"""Steps replayed in one call, by image edge: as many as stay below the released peak memory."""
ARMS_TOGETHER = {64: 2, 128: 2, 256: 1}
"""Arms in one call, likewise."""
OBJECTS_REPLAYED = {64: 2, 128: 2, 256: 2}
"""Objects in one replay, likewise."""


def networks(shape: Shape) -> Components:
    """Build the random networks of a shape."""
    return tiny_components(
        seed=0, channels=shape.channels, num_heads=shape.heads, layers_per_block=2,
        transformer_layers=shape.layers, vae_channels=(8, 8, 16, 16), text_width=16,
        time_cond_proj_dim=8,
    )  # fmt: skip


def build(shape: Shape) -> tuple[System, TrainConfig]:
    """Build the random network of a shape."""
    config = configuration(shape)
    components = networks(shape)
    scorers = {"per_view": cheap_per_view, "joint": cheap_joint}
    system = build_system(
        config, device=torch.device("cpu"), components=components, scorers=scorers
    )
    # 77 token positions, as the released trainer's encoders have; their values do not matter here
    generator = torch.Generator().manual_seed(0)
    features = {
        prompt: (
            torch.randn(1, 77, 32, generator=generator),
            torch.randn(1, 16, generator=generator),
        )
        for prompt in PROMPTS
    }
    return replace(system, prompt_cache=features), config


def trainee(name: str, timer: StageTimer | None = None) -> Callable[[], None]:
    """Bind one iteration after the other of a shape."""
    system, config = build(SHAPES[name])
    optimizer = build_optimizer(system.trained(), config.optim)
    indices = itertools.count()

    def iterate() -> None:
        run_iteration(
            system, optimizer, ConstraintState(), PROMPTS, iteration=next(indices), config=config,
            world=World(), timer=timer or StageTimer(),
        )  # fmt: skip

    return iterate


def measure(name: str, repeats: int, released: Path | None = None) -> dict[str, float]:
    """Run one shape in this process: ours, or the released trainer of a checkout."""
    torch.set_num_threads(1)
    timer = StageTimer()
    if released is None:
        iterate = trainee(name, timer)
    else:
        from bench.released import released_trainee

        shape = SHAPES[name]
        iterate = released_trainee(
            released, networks(shape), image_size=shape.image, num_steps=shape.steps,
            prompts=PROMPTS,
        )  # fmt: skip
    base = _peak_megabytes()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        iterate()
        seconds.append(time.process_time() - start)
    peak = _peak_megabytes()
    stages = timer.take()
    with CountOperators() as counter:
        iterate()
    return {
        "operators": counter.count, "seconds": min(seconds), "slowest": max(seconds),
        "megabytes": peak, "base_megabytes": base,
        "update_share": stages.get("seconds/update", 0.0) / max(sum(stages.values()), 1e-9),
    }  # fmt: skip


def _peak_megabytes() -> float:
    """Measure the most memory that this process has held; NaN where the system does not tell."""
    peak = peak_memory(torch.device("cpu"))
    return math.nan if peak is None else peak / 2**20


def main() -> None:
    """Measure each shape in a process of its own and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--released", type=Path, help="checkout of the released trainer")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.repeats, options.released)))
        return
    print(
        "| shape | operators | released | ratio | CPU s (min-max of repeats) | released | ratio "
        "| peak MB | released | update's share |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.shapes:
        ours, theirs = _in_turn(name, options.repeats, options.released)
        print(
            f"| {name} | {ours['operators']:,} | {theirs['operators']:,} "
            f"| 1/{theirs['operators'] / ours['operators']:.1f} "
            f"| {ours['seconds']:.2f}-{ours['slowest']:.2f} | {theirs['seconds']:.2f} "
            f"| 1/{theirs['seconds'] / ours['seconds']:.1f} "
            f"| {ours['megabytes']:.0f} | {theirs['megabytes']:.0f} "
            f"| {ours['update_share']:.0%} |",
            flush=True,
        )


def _in_turn(
    name: str, repeats: int, released: Path | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure ours, and the released trainer if there is a checkout, each in its own process."""
    shape = SHAPES[name]
    published = {
        "operators": shape.released_operators,
        "seconds": shape.released_seconds,
        "megabytes": shape.released_megabytes,
    }
    ours = _alone(name, "--repeats", str(repeats))
    if released is None:
        return ours, published
    return ours, _alone(name, "--repeats", str(repeats), "--released", str(released))


def _alone(name: str, *words: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "bench.cost", "--one", name, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"shape {name} with {words}: {(done.stderr.splitlines() or ['no word'])[-1]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
