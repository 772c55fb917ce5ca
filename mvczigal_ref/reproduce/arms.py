"""Runs of one arm, read from their folders: gains by seed and prompt, and curves by iteration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.condition.drift_bins import DRIFT_EDGES, drift_histogram
from mvczigal_ref.reproduce.comparison import run_record

__all__ = ["CURVES", "ArmRuns", "curves", "read_arm"]

_SMALL = 1e-2  # drift, the clip range of the flow recipes [nats/element]

CURVES = ("per_view", "joint", "multiplier", "threshold")
"""Metrics whose course over iterations is kept."""


@dataclass(frozen=True, kw_only=True)
class ArmRuns:
    """Finished runs of one arm."""

    seeds: tuple[int, ...]
    """Seed of each run."""

    runs: tuple[Mapping[str, Any], ...]
    """Record of each run, from :func:`~mvczigal_ref.reproduce.comparison.run_record`."""

    @cached_property
    def gains(self) -> dict[str, Float[Tensor, "seed prompt"]]:
        """Paired held-out gains by score, and ``sum`` of both [dB]."""
        gains = {
            score: torch.stack(
                [(run["after"][score] - run["before"][score]).double().mean(0) for run in self.runs]
            )
            for score in ("per_view", "joint")
        }
        return gains | {"sum": gains["per_view"] + gains["joint"]}

    def before(self, score: str) -> float:
        """Average a held-out score before training.

        Args:
            score: ``per_view`` or ``joint``.

        Returns:
            Mean over runs, noises and prompts [dB].
        """
        means = [run["before"][score].double().mean() for run in self.runs]
        return float(torch.stack(means).mean())

    def mean(self, field: str) -> float:
        """Average ``calls``, ``seconds`` or the number of iterations over the runs.

        Args:
            field: One of the first two, or ``iterations``.

        Returns:
            The mean.
        """
        values = [len(r["metrics"]) if field == "iterations" else r[field] for r in self.runs]
        return sum(values) / len(values)

    def slack(self) -> Float[Tensor, "seed 1"]:
        """Average joint reward minus threshold over the last quarter of iterations [dB]."""
        return self._by_seed(lambda rows: _mean(_last(rows), lambda row: row["slack"]))

    def zigzag(self, score: str, *, last: bool) -> Float[Tensor, "seed 1"]:
        """Average zigzag minus standard reward over the first or the last quarter of iterations.

        Args:
            score: ``per_view``, ``joint`` or ``sum``.
            last: Whether it is the last quarter.

        Returns:
            One number per run [dB].
        """
        names = ("per_view", "joint") if score == "sum" else (score,)
        return self._by_seed(
            lambda rows: _mean(
                (_last if last else _first)(rows),
                lambda row: sum(row[f"{_METRIC[name]}/gap"] for name in names),
            )
        )

    def small_drift(self) -> Float[Tensor, "seed 1"]:
        """Share of captions whose probability drift is below the clip range [1]."""
        below = next(place for place, edge in enumerate(DRIFT_EDGES) if edge > _SMALL / 1.01)
        counts = [drift_histogram(run["captions"]) for run in self.runs]
        shares = [sum(count[: below + 1]) / max(sum(count), 1) for count in counts]
        return torch.tensor(shares, dtype=torch.float64)[:, None]

    def _by_seed(
        self, value: Callable[[Sequence[Mapping[str, Any]]], float]
    ) -> Float[Tensor, "seed 1"]:
        values = [value(run["metrics"]) for run in self.runs]
        return torch.tensor(values, dtype=torch.float64)[:, None]


_METRIC = {"per_view": "per_view_reward", "joint": "joint_view_reward"}


def _first(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[: max(1, len(rows) // 4)]


def _last(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[-max(1, len(rows) // 4) :]


def _mean(rows: Sequence[Any], value: Callable[[Any], float]) -> float:
    return sum(map(value, rows)) / len(rows)


def read_arm(folders: Mapping[int, Path]) -> ArmRuns:
    """Read the finished runs of an arm.

    Args:
        folders: Folder of a finished run by its seed; at least one.

    Returns:
        The runs in the order of their seeds.
    """
    seeds = tuple(sorted(folders))
    return ArmRuns(seeds=seeds, runs=tuple(run_record(folders[seed]) for seed in seeds))


def curves(arm: ArmRuns) -> dict[str, tuple[list[float], list[float]]]:
    """Average training metrics over an arm's runs, iteration by iteration.

    Args:
        arm: Runs of one arm.

    Returns:
        Mean and standard error over runs of every metric of :data:`CURVES` that the runs have; the
        error is 0 with one run.
    """
    length = min(len(run["metrics"]) for run in arm.runs)
    courses = {}
    for name in CURVES:
        table = [[_value(row, name) for row in run["metrics"][:length]] for run in arm.runs]
        if any(value is None for row in table for value in row):
            continue
        values = torch.tensor(table, dtype=torch.float64)
        error = values.std(0) / len(table) ** 0.5 if len(table) > 1 else torch.zeros(length)
        courses[name] = ([round(v, 4) for v in values.mean(0).tolist()],
                       [round(v, 4) for v in error.tolist()])  # fmt: skip
    return courses


def _value(row: Mapping[str, Any], name: str) -> float | None:
    """Read a metric of one iteration; the reward of pairs is the mean of both arms."""
    if name not in _METRIC:
        return row.get(name)
    arms = (row.get(f"{_METRIC[name]}/{arm}") for arm in ("zigzag", "standard", "mean"))
    parts = [value for value in arms if value is not None]
    return sum(parts) / len(parts) if parts else None
