"""Whole training iterations, measured stage by stage."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.system import System
from mvczigal_ref.training.optimizer import build_optimizer
from mvczigal_ref.training.tracking import StageTimer, peak_memory

__all__ = ["Measured", "PeakTimer", "Trainee", "capped"]

PROMPTS = ("a red cube with a white nose", "a blue ball with a green fin")


class PeakTimer(StageTimer):
    """Seconds and peak memory by stage; the CPU's is the process's so far, 0 if untold."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._where = device
        self.peaks: dict[str, int] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure the inside."""
        if self._where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._where)
        try:
            with super().__call__(stage):
                yield
        finally:
            found = peak_memory(self._where)
            self.peaks[stage] = max(found or 0, self.peaks.get(stage, 0))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One iteration."""

    seconds: dict[str, float]
    """By stage [s]."""
    peaks: dict[str, int]
    """By stage [bytes]."""
    metrics: dict[str, float]
    """Of the iteration itself."""

    @property
    def peak(self) -> int:
        """The most of all stages [bytes]."""
        return max(self.peaks.values())

    def lines(self) -> list[str]:
        """One line a stage, for people."""
        return [
            f"{stage:10} {seconds:8.2f} s  peak {self.peaks[stage] / 2**30:6.2f} GiB"
            for stage, seconds in self.seconds.items()
        ]


@dataclass
class Trainee:
    """A system that trains, iteration after iteration."""

    system: System
    config: TrainConfig
    constraint: ConstraintState = field(default_factory=ConstraintState)
    done: int = 0

    def __post_init__(self) -> None:
        """Make the optimiser of the run."""
        self.optimizer = build_optimizer(self.system.trained(), self.config.optim)

    def prompts(self) -> Sequence[str]:
        """As many as an iteration takes, of two kinds."""
        count = self.config.run.objects_per_iteration
        return [PROMPTS[index % len(PROMPTS)] for index in range(count)]

    def iterate(self) -> Measured:
        """Run one iteration and measure it."""
        device = self.system.network_device
        timer = PeakTimer(device)
        result = run_iteration(
            self.system, self.optimizer, self.constraint, self.prompts(), iteration=self.done,
            config=self.config, world=World(device=device), timer=timer,
        )  # fmt: skip
        self.constraint, self.done = result.constraint, self.done + 1
        seconds = {k.removeprefix("seconds/"): v for k, v in timer.take().items()}
        return Measured(seconds=seconds, peaks=timer.peaks, metrics=result.metrics)


@contextmanager
def capped(device: torch.device, size: int) -> Iterator[None]:
    """Let torch take no more of a CUDA device than a card of this size has [bytes]."""
    if device.type != "cuda":
        yield
        return
    # Asked for a share of "cuda" torch wants to know of which.
    place = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(place).total_memory
    torch.cuda.empty_cache()  # what is cached counts
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), place)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, place)
