"""Train every method with several seeds at equal network calls, and compare what they gain."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.evaluation.scores import read_evaluation
from mvczigal_ref.method.caption import drift_histogram
from mvczigal_ref.reproduce.methods import MethodRow, MethodSet
from mvczigal_ref.reproduce.plans import PlannedRun
from mvczigal_ref.training.events import Events
from mvczigal_ref.training.run_folder import is_finished
from mvczigal_ref.training.tracking import read_metrics
from mvczigal_ref.training.trainer import train

__all__ = [
    "Comparison",
    "Outcome",
    "compare",
    "gain_over_seeds",
    "run_gain",
    "run_record",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Gain of one method."""

    method: MethodRow
    """The method."""

    iterations: int
    """Iterations of each run, so that the calls are equal; the mean where windows are drawn."""

    calls: int
    """Latents that the network saw in a run's training, forward passes alone; mean [latents]."""

    seconds: float
    """Mean wall time of a run's iterations [s]."""

    before: dict[str, float]
    """Mean held-out score before training, by score [reward units]."""

    gains: dict[str, Float[Tensor, "seed prompt"]]
    """Paired held-out gains, by score [reward units]."""

    drift: tuple[int, ...] = ()
    """Histogram of the change of log-density under captions, over ``DRIFT_EDGES``; empty without
    captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All methods of one paper."""

    methods: MethodSet
    """Methods that were compared."""

    outcomes: tuple[Outcome, ...]
    """Gains in the same order."""

    def paired(self, score: str) -> tuple[float, float] | None:
        """Compare the set's pair of methods, prompt by prompt and seed by seed.

        Args:
            score: One of the set's.

        Returns:
            Mean difference of the gains, second minus first, and its standard error over seeds
            and prompts; None where one of the two was not run.
        """
        gains = {outcome.method.recipe: outcome.gains[score] for outcome in self.outcomes}
        if not all(name in gains for name in self.methods.pair):
            return None
        first, second = (gains[name] for name in self.methods.pair)
        return gain_over_seeds(second - first)


def gain_over_seeds(gains: Float[Tensor, "seed prompt"]) -> tuple[float, float]:
    r"""Average gains, and give the error that counts seeds and prompts as random.

    .. math:: \mathrm{SE}^2 = \frac{\mathrm{var}_s(\bar g_{s \cdot})}{S}
        + \frac{\mathrm{var}_p(\bar g_{\cdot p})}{P}

    Args:
        gains: Paired gains [reward units]; two prompts or more.

    Returns:
        Mean and standard error; with one seed the error is over prompts alone.

    Examples:
        >>> gain_over_seeds(torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
        (2.0, 1.0)
    """
    seeds, prompts = gains.shape
    square = gains.mean(0).var() / prompts
    if seeds > 1:
        square = square + gains.mean(1).var() / seeds
    return float(gains.mean()), math.sqrt(float(square))


def run_gain(config: TrainConfig, folder: Path, *, events: Events | None = None) -> dict[str, Any]:
    """Train one run, unless it is there, and read its held-out scores.

    Args:
        config: The run.
        folder: Run folder; a stopped run goes on, and one that was evaluated otherwise is
            evaluated again.
        events: Listens to progress.

    Returns:
        As :func:`run_record`.

    Raises:
        CheckpointError: If the folder holds a run of other settings.
    """
    if not is_finished(folder, config):
        train(config, folder, world=World(), events=events)
    return run_record(folder)


def run_record(folder: Path) -> dict[str, Any]:
    """Read the scores and iterations of a finished run.

    Args:
        folder: Run folder.

    Returns:
        Tables ``before`` and ``after`` by score, ``metrics`` and ``captions`` of the iterations,
        and their network calls and wall seconds.

    Raises:
        CheckpointError: If a file of scores is missing or damaged.
    """
    metrics = read_metrics(folder / "metrics.jsonl")
    outcome: dict[str, Any] = {
        "metrics": metrics,
        "calls": sum(row["network_calls"] for row in metrics),
        "seconds": sum(
            value for row in metrics for name, value in row.items() if name.startswith("seconds/")
        ),
        "captions": read_metrics(folder / "captions.jsonl"),
    }
    for occasion in ("before", "after"):  # the last one, where a run was made longer
        files = sorted((folder / "evaluations").glob(f"{occasion}_*.safetensors"))
        if not files:
            msg = (
                f"{str(folder)!r} must hold its scores {occasion!r}; they are missing. Train again."
            )
            raise CheckpointError(msg)
        scores, _ = read_evaluation(files[-1])
        outcome[occasion] = {"per_view": scores.per_view, "joint": scores.joint}
    return outcome


def _silence(run: PlannedRun) -> AbstractContextManager[Events]:
    del run
    return nullcontext(Events())


def compare(
    methods: MethodSet,
    runs: Sequence[Sequence[PlannedRun]],
    *,
    tell: Callable[[PlannedRun], AbstractContextManager[Events]] = _silence,
) -> Comparison:
    """Run every method with every seed; finished runs are not repeated.

    Args:
        methods: Methods that are compared.
        runs: From :func:`~mvczigal_ref.reproduce.plans.planned_runs`.
        tell: Gives the listener of each run.

    Returns:
        The comparison.
    """
    outcomes = []
    for method, by_seed in zip(methods.methods, runs, strict=True):
        gains = []
        for run in by_seed:
            with tell(run) as events:
                gains.append(run_gain(run.config, run.folder, events=events))
        outcomes.append(_outcome(method, methods.scores, by_seed, gains))
    return Comparison(methods=methods, outcomes=tuple(outcomes))


def _outcome(
    method: MethodRow,
    scores: Sequence[str],
    planned: Sequence[PlannedRun],
    runs: Sequence[dict[str, Any]],
) -> Outcome:
    return Outcome(
        method=method,
        iterations=round(sum(run.config.run.iterations for run in planned) / len(planned)),
        calls=round(sum(run["calls"] for run in runs) / len(runs)),
        seconds=sum(run["seconds"] for run in runs) / len(runs),
        drift=_drift(runs),
        before={name: float(runs[0]["before"][name].double().mean()) for name in scores},
        gains={
            name: torch.stack(
                [(run["after"][name] - run["before"][name]).double().mean(0) for run in runs]
            )
            for name in scores
        },
    )


def _drift(runs: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    rows = [row for run in runs for row in run["captions"]]
    return tuple(drift_histogram(rows)) if rows else ()
