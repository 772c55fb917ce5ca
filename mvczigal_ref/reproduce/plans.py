"""Runs of a comparison, planned before any long work: settings, length and folder of each."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from mvczigal_ref import __version__
from mvczigal_ref.config import TrainConfig, fingerprint, load_config
from mvczigal_ref.config.run_file import run_config
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reproduce.calls import network_calls
from mvczigal_ref.reproduce.methods import ArmSet, MethodRow
from mvczigal_ref.training.run_folder import find_checkpoint
from mvczigal_ref.training.tracking import read_metrics

__all__ = ["PlannedRun", "planned_runs", "runs_there"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of a comparison."""

    config: TrainConfig
    """Settings of the run, length and seed among them."""

    folder: Path
    """Run folder, made when the run begins."""

    method: MethodRow
    """Method that it is a run of."""

    words: tuple[str, ...]
    """Settings that ``mvczigal train RECIPE`` needs for just this run."""

    calls: int
    """Latents that its training sends through the network, as planned [latents]."""


def planned_runs(
    methods: ArmSet,
    folder: Path,
    *,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    arms: Collection[str] | None = None,
    progress: Callable[[], None] = lambda: None,
    memory: Path | None = None,
    keep: bool = True,
) -> tuple[tuple[PlannedRun, ...], ...]:
    """Give every method as many iterations as its network calls allow, before any long work.

    The budget is that of the first method for its own number of iterations. Where the seed draws
    the steps, every run is counted with its own, the budget too, so that the plan of a run does
    not depend on which others are asked for.

    Args:
        methods: Methods that are compared.
        folder: Holds one run folder per method and seed.
        seeds: Seeds of the runs; at least one.
        overrides: Settings of all methods, as ``section.name=value``, after the set's own and
            before those of a method.
        arms: Arms whose runs are planned; all if None. The first method is counted anyway.
        progress: Called after each method that was counted.
        memory: File that keeps counts from one command to the next; none if None.
        keep: Whether new counts are written into that file.

    Returns:
        Per method one run per seed.

    Raises:
        CheckpointError: If a run folder holds a run of other settings.
        ConfigError: If a setting is refused.
    """
    first = methods.methods[0]
    chosen = [row for row in methods.methods if arms is None or row.arm in arms]
    words = {
        (row.arm, seed): _words(methods, row, seed, overrides)
        for row in (first, *chosen)
        for seed in seeds
    }
    settings = {
        row.arm: [load_config(recipe(row.recipe), overrides=words[row.arm, seed]) for seed in seeds]
        for row in (first, *chosen)
    }
    counts = {}
    for row in dict.fromkeys((first, *chosen)):
        counts[row.arm] = _calls(settings[row.arm], memory, keep=keep)
        progress()
    planned = tuple(
        tuple(
            _planned(
                row, config, folder, words[row.arm, config.run.seed],
                iterations=max(1, round(sum(budget) * len(calls) / sum(calls))),
                each=sum(calls) / len(calls),
            )
            for config, calls, budget in zip(
                settings[row.arm], counts[row.arm], counts[first.arm], strict=True
            )
        )
        for row in chosen
    )  # fmt: skip
    for run in chain.from_iterable(planned):
        find_checkpoint(run.folder, run.config)
    return planned


def runs_there(
    methods: ArmSet, folder: Path, *, seeds: Sequence[int], overrides: Sequence[str] = ()
) -> tuple[PlannedRun, ...]:
    """Plan the runs whose folders exist, each as long as it is, without counting anything.

    Args:
        methods: Methods that are compared.
        folder: Holds the run folders.
        seeds: Seeds that are looked for.
        overrides: Settings of all methods, as :func:`planned_runs` takes them.

    Returns:
        Runs in the methods' order; their calls are those that they have made.

    Raises:
        CheckpointError: If a run folder holds a run of other settings.
    """
    runs = []
    for row, seed in product(methods.methods, seeds):
        path = folder / f"{row.arm}-{seed}"
        if not (path / "config.json").is_file():
            continue
        words = _words(methods, row, seed, overrides)
        metrics = read_metrics(path / "metrics.jsonl")
        run = _planned(
            row, load_config(recipe(row.recipe), overrides=words), folder, words,
            iterations=run_config(path).run.iterations,
            each=sum(one["network_calls"] for one in metrics) / max(len(metrics), 1),
        )  # fmt: skip
        find_checkpoint(run.folder, run.config)
        runs.append(run)
    return tuple(runs)


def _words(
    methods: ArmSet, row: MethodRow, seed: int, overrides: Sequence[str]
) -> tuple[str, ...]:  # fmt: skip
    return (*methods.settings, *overrides, *row.settings, f"run.seed={seed}")


def _calls(configs: Sequence[TrainConfig], memory: Path | None, *, keep: bool) -> list[list[int]]:
    """Count the network calls of runs that differ in their seeds alone."""
    counts: list[list[int]] = []
    for config in configs:
        equal = counts and not _draws_steps(config)
        counts.append(counts[0] if equal else _remembered(config, memory, keep=keep))
    return counts


def _remembered(config: TrainConfig, memory: Path | None, *, keep: bool) -> list[int]:
    """Count, or read what was counted of equal settings."""
    if memory is None:
        return network_calls(config)
    key = f"{__version__} {fingerprint(config)} {config.run.iterations}"
    try:
        counts = json.loads(memory.read_text("utf-8"))
    except (OSError, ValueError):
        counts = {}
    if key not in counts:
        counts[key] = network_calls(config)
        if keep:
            atomic_write(memory, to_json(counts))
    return list(counts[key])


def _draws_steps(config: TrainConfig) -> bool:
    """Tell whether the seed decides which steps draw noise or are trained, so that calls differ."""
    return config.rollout.window == "random" or config.objective.train_share < 1.0


def _planned(
    row: MethodRow, config: TrainConfig, folder: Path, words: Sequence[str], *, iterations: int,
    each: float,
) -> PlannedRun:  # fmt: skip
    length = [f"run.iterations={iterations}"]
    plain = recipe(row.recipe)
    if plain.optim.decay_iterations == plain.run.iterations:
        # A learning rate that falls to 0 at the recipe's end still does.
        length.append(f"optim.decay_iterations={iterations}")
    return PlannedRun(
        config=load_config(config, overrides=length),
        folder=folder / f"{row.arm}-{config.run.seed}",
        method=row,
        words=_last_of_each((*words, *length)),
        calls=round(iterations * each),
    )


def _last_of_each(words: Sequence[str]) -> tuple[str, ...]:
    """Leave out words that a later one of the same setting overrules."""
    return tuple({word.partition("=")[0]: word for word in words}.values())
