"""What the tests of a device try, whatever the device: the CPU runs the same at tiny shapes."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.iterations import Measured, Trainee, capped
from bench.networks import random_scorers, random_system
from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.preflight.plan_record import Plan
from mvczigal_ref.preflight.trial_pairs import PairTrial
from mvczigal_ref.recipes import recipe
from mvczigal_ref.records import PairedRollout
from mvczigal_ref.system import System
from mvczigal_ref.training.tracking import read_metrics

__all__ = [
    "CUDA",
    "PARITY",
    "TRACING",
    "Fitted",
    "assert_same_training",
    "configured",
    "iterate_within",
    "launch",
    "replay_deviation",
    "rescored",
    "sampled",
    "widen",
]

CUDA = torch.device("cuda")
ROOT = Path(__file__).parents[2]
TRACING = "ignore::UserWarning"
"""What torch says while it traces diffusers: of cached functions, and of gradients it looks for."""
PARITY = 5e-3
"""Largest difference of a log-density between half precision and fp32 [nats/element].

An error d of the mean, at spread s, moves the mean log-density of n numbers by d^2 / (2 s^2) and by
a normal of spread d / (s sqrt(n)). bf16 rounds to 2^-9 at each of some hundred layers: an output
off by 1 to 4 %. On the recipe's grid of 8 steps the mean moves by 0.4 to 2.2 times that, on one of
2 steps by 14 times; with n = 36864 and s of 0.4 to 1 the former makes about 1e-3.
"""
# Of what the recipes name, what the shipped tiny network has no use for.
TINY = (
    "model.weights=tiny", "model.image_size=32", "reward.per_view=world.per_view",
    "reward.joint=world.joint", "reward.weights={}",
)  # fmt: skip


def configured(*words: str, tiny: bool = False, name: str = "lcm_sdxl_simple") -> TrainConfig:
    """Give a published recipe's settings, or the same on the tiny network; last words win."""
    words = (*(TINY if tiny else ()), *words)
    return load_config(recipe(name), overrides=words, training=False)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Iterations under a cap, and what was planned."""

    runs: tuple[Measured, ...]
    planned: Plan

    @property
    def last(self) -> Measured:
        """The one without what happens once, as encoding prompts."""
        return self.runs[-1]

    @property
    def peak(self) -> int:
        """The most of all iterations [bytes]."""
        return max(run.peak for run in self.runs)


def iterate_within(
    config: TrainConfig, device: torch.device, *, cap: int, runs: int = 2, published: bool = True
) -> Fitted:
    """Train iterations on random networks, all scorers loaded, with no more memory than a cap."""
    with capped(device, cap):
        scorers = random_scorers(config, device) if published else None
        trainee = Trainee(random_system(config, device, scorers), config)
        found = tuple(trainee.iterate() for _ in range(runs))
    return Fitted(runs=found, planned=plan(config))


def sampled(config: TrainConfig, device: torch.device) -> tuple[PairTrial, PairedRollout]:
    """Sample one slice of pairs with a random network, as an iteration does."""
    trial = PairTrial(random_system(config, device), config, config.run.objects_per_slice)
    return trial, trial.sample(config.model.storage_dtype)


def replay_deviation(trial: PairTrial, pair: PairedRollout) -> float:
    """Give the largest log-ratio of a replay with gradient; 0 where every first ratio is 1."""
    return max(
        float((trial.replay(arm, step) - arm.log_prob[step]).abs().max())
        for arm in (pair.zigzag, pair.standard)
        for step in range(trial.system.sampler.num_steps)
    )


def rescored(trial: PairTrial, pair: PairedRollout) -> torch.Tensor:
    """Score both arms' actions with the network as it is now: arm, step, object, view."""
    return torch.stack(
        [
            torch.cat(
                [
                    trial.replay(arm, step, gradient=False)
                    for step in range(trial.system.sampler.num_steps)
                ]
            )
            for arm in (pair.zigzag, pair.standard)
        ]
    )


def widen(system: System) -> None:
    """Let a system's network compute in fp32, its parameters those it has."""
    system.policy.float()


def launch(folder: Path, *, processes: int) -> subprocess.CompletedProcess[str]:
    """Train the tiny recipe for two iterations on so many devices, as a person would start it."""
    start = [
        "-m", "accelerate.commands.launch", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        *(["--multi_gpu"] if processes > 1 else []),
    ]  # fmt: skip
    train = [
        "-m", "mvczigal_ref", "train", "tiny", "run.iterations=2", "run.objects_per_iteration=4",
        "run.objects_per_slice=1", "run.evaluation_noises=1", "run.held_out=world.held_out",
        "optim.optimizer_steps_per_epoch=1", "run.device=cuda", "--out", str(folder),
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, *start, *train],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )


def assert_same_training(one: Path, other: Path) -> None:
    """Fail unless two run folders saw the same first rewards, and ended alike but for rounding.

    Gradients are added in another order; AdamW's first steps then turn what is mostly rounding
    into a share of the learning rate.
    """
    first, second = (read_metrics(folder / "metrics.jsonl") for folder in (one, other))
    assert len(first) == len(second) == 2
    told = [name for name in first[0] if not name.startswith("seconds/")]
    exact = [name for name in told if "reward" in name or name in ("multiplier", "threshold")]
    assert len(exact) > 6
    assert {k: first[0][k] for k in exact} == {k: second[0][k] for k in exact}
    mine, theirs = (
        load_file(folder / "policy" / "adapter_model.safetensors") for folder in (one, other)
    )
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        worst = float((value - theirs[name]).abs().max() / value.abs().max().clamp(min=1e-30))
        assert worst < 1e-3, (name, worst)
