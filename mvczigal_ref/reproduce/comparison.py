"""Train every method with several seeds at equal network calls, and compare what they gain."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from mvczigal_ref.caption_log import drift_histogram
from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reproduce.calls import network_calls
from mvczigal_ref.reproduce.methods import Method, MethodSet
from mvczigal_ref.run_folder import find_checkpoint, is_finished
from mvczigal_ref.tracking import read_metrics
from mvczigal_ref.trainer import Events, train

__all__ = ["Comparison", "Outcome", "compare", "gain_over_seeds", "run_gain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one method gained."""

    method: Method
    """The method."""

    iterations: int
    """Of each run, so that the calls are equal."""

    calls: int
    """Latents that the network saw in a run's training, forward passes alone; mean [latents]."""

    seconds: float
    """Mean wall time of a run's iterations [s]."""

    before: dict[str, float]
    """Mean held-out score before training, by score [reward units]."""

    gains: dict[str, Float[Tensor, "seed prompt"]]
    """Paired held-out gains, by score [reward units]."""

    drift: tuple[int, ...] = ()
    """How often captions moved log-densities by how much, over ``DRIFT_EDGES``; none without
    captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All methods of one paper."""

    methods: MethodSet
    """What was compared."""

    outcomes: tuple[Outcome, ...]
    """In the same order."""

    def paired(self, score: str) -> tuple[float, float] | None:
        """Compare the set's pair of methods, prompt by prompt and seed by seed.

        Args:
            score: One of the set's.

        Returns:
            Mean difference of the gains, second minus first, and its standard error over seeds
            and prompts; None where one of the two was not run.
        """
        found = {outcome.method.recipe: outcome.gains[score] for outcome in self.outcomes}
        if not all(name in found for name in self.methods.pair):
            return None
        first, second = (found[name] for name in self.methods.pair)
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
        events: Told of progress.

    Returns:
        Tables ``before`` and ``after`` by score, and of its iterations the network calls, the
        wall seconds, and what was written down of captions.

    Raises:
        CheckpointError: If the folder holds a run of other settings.
    """
    if not is_finished(folder, config):
        train(config, folder, world=World(), events=events)
    metrics = read_metrics(folder / "metrics.jsonl")
    found: dict[str, Any] = {
        "calls": sum(row["network_calls"] for row in metrics),
        "seconds": sum(
            value for row in metrics for name, value in row.items() if name.startswith("seconds/")
        ),
        "captions": read_metrics(folder / "captions.jsonl"),
    }
    for occasion in ("before", "after"):  # the last one, where a run was made longer
        found[occasion] = load_file(max((folder / "evaluations").glob(f"{occasion}_*.safetensors")))
    return found


def _silence(recipe: str, seed: int, iterations: int) -> AbstractContextManager[Events]:
    del recipe, seed, iterations
    return nullcontext(Events())


def compare(
    methods: MethodSet,
    folder: Path,
    *,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    budget: int | None = None,
    tell: Callable[[str, int, int], AbstractContextManager[Events]] = _silence,
) -> Comparison:
    """Run every method with every seed, each for as many iterations as its calls allow.

    Args:
        methods: What is compared.
        folder: Holds a run folder a method and seed; finished runs are not repeated.
        seeds: Of the runs; at least one.
        overrides: Settings of all methods, as ``section.name=value``, after the set's own.
        budget: Latents that the network may see in training; None is what the first method
            takes for its own number of iterations.
        tell: Asked for the listener of each run, by recipe, seed and iterations.

    Returns:
        The comparison.

    Raises:
        CheckpointError: If a run folder holds a run of other settings.
        ConfigError: If a setting is refused.
    """
    runs = [
        [(_of_seed(config, seed), folder / f"{method.recipe}-{seed}") for seed in seeds]
        for method, config in _planned(methods, overrides, budget)
    ]
    for own, place in chain.from_iterable(runs):  # before any long work starts
        find_checkpoint(place, own)
    outcomes = []
    for method, mine in zip(methods.methods, runs, strict=True):
        found = []
        for own, place in mine:
            with tell(method.recipe, own.run.seed, own.run.iterations) as events:
                found.append(run_gain(own, place, events=events))
        outcomes.append(_outcome(method, methods.scores, mine[0][0], found))
    return Comparison(methods=methods, outcomes=tuple(outcomes))


def _planned(
    methods: MethodSet, overrides: Sequence[str], budget: int | None
) -> Iterator[tuple[Method, TrainConfig]]:
    """Give each method as many iterations as its calls allow."""
    for method in methods.methods:
        base = load_config(recipe(method.recipe), overrides=[*methods.settings, *overrides])
        calls = network_calls(base)
        if budget is None:
            budget = sum(calls)
        yield method, _of_length(base, max(1, round(budget * len(calls) / sum(calls))))


def _of_seed(config: TrainConfig, seed: int) -> TrainConfig:
    return replace(config, run=replace(config.run, seed=seed))


def _of_length(config: TrainConfig, iterations: int) -> TrainConfig:
    """Change a run's length; a learning rate that fell to 0 at its end still does."""
    optim, run = config.optim, config.run
    if optim.decay_iterations == run.iterations:
        optim = replace(optim, decay_iterations=iterations)
    return replace(config, optim=optim, run=replace(run, iterations=iterations))


def _outcome(
    method: Method,
    scores: Sequence[str],
    config: TrainConfig,
    runs: Sequence[dict[str, Any]],
) -> Outcome:
    return Outcome(
        method=method,
        iterations=config.run.iterations,
        calls=round(sum(found["calls"] for found in runs) / len(runs)),
        seconds=sum(found["seconds"] for found in runs) / len(runs),
        drift=_drift(runs),
        before={name: float(runs[0]["before"][name].double().mean()) for name in scores},
        gains={
            name: torch.stack(
                [(found["after"][name] - found["before"][name]).double().mean(0) for found in runs]
            )
            for name in scores
        },
    )


def _drift(runs: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    rows = [row for found in runs for row in found["captions"]]
    return tuple(drift_histogram(rows)) if rows else ()
