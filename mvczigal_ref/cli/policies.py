"""Sampling from a policy, and scoring one, as a person asks for it."""

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from mvczigal_ref.cli.arguments import Evaluate, Sample
from mvczigal_ref.cli.display import gain_table, score_heading
from mvczigal_ref.cli.processes import join
from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.evaluate import PairedGain, evaluate, paired_gain, sample_objects
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.pictures import as_grid, contact_sheet, save_png, save_turntable
from mvczigal_ref.pipeline.watch import calls_per_step
from mvczigal_ref.report.run_folder import reward_unit, score_tables
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.shapes import Images
from mvczigal_ref.system import System, build_system, with_sampling
from mvczigal_ref.system.networks import rig_of
from mvczigal_ref.system.scorers import build_scorers, no_scorers
from mvczigal_ref.training.prompts import warn_of_cut_prompts
from mvczigal_ref.training.run_folder import load_policy
from mvczigal_ref.training.tracking import peak_memory

__all__ = ["evaluate_policy", "sample_prompts"]

_SHEET_EDGE = 96  # pixels of one view on a sheet, at least


def sample_prompts(command: Sample, config: TrainConfig, prompts: Sequence[str]) -> None:
    """Sample one object a prompt and write its pictures.

    Args:
        command: What was asked for.
        config: How to sample.
        prompts: One an object, checked.
    """
    here = join(command.device)
    console = Console(quiet=not here.is_main)
    with console.status("loading models"):
        system = _system(command.run, config, here.device, no_scorers(), lora=command.lora)
    if here.is_main:
        warn_of_cut_prompts(system.components, prompts, setting="prompts")
    started = time.perf_counter()
    images = _drawn(system, prompts, command, config, console)
    seconds = time.perf_counter() - started
    if not here.is_main:
        return
    for told in _write_pictures(command.out, prompts, images, _azimuths(system, config)):
        print(told)
    objects, views = images.shape[:2]
    peak = f"{peak_memory(here.device) / 2**30:.2f} GiB on {here.device}"
    print(f"{objects} x {views} views in {seconds:.2f} s; peak memory {peak}")


def _drawn(
    system: System,
    prompts: Sequence[str],
    command: Sample,
    config: TrainConfig,
    console: Console,
) -> Images:
    """Sample slice by slice, and show the network's calls as they come."""
    size = config.run.objects_per_slice
    parts = [
        range(first, min(first + size, len(prompts))) for first in range(0, len(prompts), size)
    ]
    calls = calls_per_step(
        system.evaluation_sampler.num_steps,
        zigzag_steps=config.zigzag.steps if command.zigzag else 0,
        zigzag_rounds=config.zigzag.rounds,
    )
    images = []
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("sampling", total=len(parts) * sum(calls))
        counting = system.policy.register_forward_hook(lambda *_: progress.advance(task))
        try:
            for part in parts:
                noise = SeededNoise(
                    seed=command.seed, iteration="sample", objects=part,
                    shape=system.latent_shape, device=system.device,
                )  # fmt: skip
                said = [prompts[index] for index in part]
                drawn = sample_objects(system, said, noise, config=config, zigzag=command.zigzag)
                images.append(drawn.cpu())
        finally:
            counting.remove()
    return torch.cat(images)


def _azimuths(system: System, config: TrainConfig) -> Sequence[float]:
    """Say where the cameras stand; a single view is turned by nothing."""
    return rig_of(config.model).azimuth_deg if system.num_views > 1 else ()


def _write_pictures(
    folder: Path, prompts: Sequence[str], images: Images, azimuths: Sequence[float]
) -> Iterator[str]:
    """Write a sheet, and of each object its views, a grid and a turn; tell each once written."""
    views, edge = images.shape[1], images.shape[-1]
    scale = max(1, -(-_SHEET_EDGE // edge))
    sheet = folder / "sheet.png"
    save_png(sheet, contact_sheet(images, scale=scale, row_labels=list(prompts), gap=scale))
    yield str(sheet)
    for place, (prompt, each) in enumerate(zip(prompts, images, strict=True)):
        name = f"{place:02d}_{_file_name(prompt)}"
        for view, image in enumerate(each):
            path = folder / f"{name}_view{view}.png"
            save_png(path, contact_sheet(image[None, None], scale=1, gap=0))
        yield str(folder / f"{name}_view[0-{views - 1}].png")
        columns = math.ceil(math.sqrt(views))
        if views > columns:  # else the sheet's row is the grid
            path = folder / f"{name}_grid.png"
            save_png(path, contact_sheet(as_grid(each, columns), scale=scale, gap=scale))
            yield str(path)
        if azimuths:
            path = folder / f"{name}_turn.webp"
            save_turntable(path, each, azimuths, scale=scale)
            yield str(path)


def _file_name(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]


def _system(
    run: Path | None,
    config: TrainConfig,
    device: torch.device,
    scorers: dict[str, Any],
    *,
    lora: Path | None = None,
) -> System:
    """Load a policy, with the sampling that the configuration names."""
    if run is None:
        return build_system(config, device=device, scorers=scorers, lora=lora)
    system, _ = load_policy(run, device=device, scorers=scorers)
    return with_sampling(system, config)


def evaluate_policy(command: Evaluate, config: TrainConfig, prompts: Sequence[str]) -> None:
    """Score a policy, compare it where there is something to compare it with, and say so.

    Args:
        command: What was asked for.
        config: How to sample and score.
        prompts: What to score on, checked.
    """
    here = join(command.device)
    console, unit = Console(quiet=not here.is_main), reward_unit(config)
    scorers = build_scorers(config, device=here.device, watched=False)
    system = _system(command.run, config, here.device, scorers)
    if here.is_main:
        warn_of_cut_prompts(system.components, prompts, setting="--prompts")
    with console.status("scoring"):
        scores = _scores(system, command, config, prompts, here, zigzag=command.zigzag)
        against, other = _reference(system, command, config, prompts, here)
    console.print(_score_table(scores, command.seeds, command.noises, unit=unit))
    gains = {name: paired_gain(other[name], table) for name, table in scores.items() if other}
    if gains:
        now = "ZMV-Sampling" if against == "plain sampling" else "this run"
        console.print(gain_table(gains, unit=unit, before=against, after=now))
    if command.json is not None and here.is_main:
        content = _as_json(command, config, prompts, scores, against, gains)
        atomic_write(command.json, to_json(content))


def _scores(
    system: System, command: Evaluate, config: TrainConfig, prompts: Sequence[str], here: World,
    *, zigzag: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Every score that there is, a row a seed and noise, a column a prompt."""
    found = [
        evaluate(
            system, prompts, config=config, world=here, num_noises=command.noises, seed=seed,
            zigzag=zigzag, keep_images=0,
        )
        for seed in command.seeds
    ]  # fmt: skip
    return {
        name: torch.cat([getattr(scores, table) for scores in found])
        for name, table in score_tables(config).items()
    }


def _reference(
    system: System, command: Evaluate, config: TrainConfig, prompts: Sequence[str], here: World
) -> tuple[str, dict[str, Tensor]]:
    """Scores to compare with, on the same noises, and what they are of; nothing if nothing is."""
    if command.run is not None:
        same = {"per_view": system.per_view, "joint": system.joint}
        base = build_system(config, device=here.device, scorers=same)
        return "base weights", _scores(base, command, config, prompts, here, zigzag=command.zigzag)
    if command.zigzag:
        plain = _scores(system, command, config, prompts, here, zigzag=False)
        return "plain sampling", plain
    return "", {}


def _mean(table: Tensor) -> PairedGain:
    """A mean score and its standard error: the gain over scores of 0."""
    return paired_gain(torch.zeros_like(table), table)


def _score_table(
    scores: Mapping[str, Tensor], seeds: Sequence[int], noises: int, *, unit: str
) -> Table:
    table = Table(score_heading(unit), "seed")
    for heading in ("mean", "standard error"):
        table.add_column(heading, justify="right")
    for name, values in scores.items():
        rows = [(str(seed), part) for seed, part in zip(seeds, values.split(noises), strict=True)]
        for label, part in rows if len(rows) == 1 else [*rows, ("all", values)]:
            mean = _mean(part)
            table.add_row(name, label, f"{mean.gain:.3f}", f"{mean.standard_error:.3f}")
    return table


def _as_json(
    command: Evaluate,
    config: TrainConfig,
    prompts: Sequence[str],
    scores: Mapping[str, Tensor],
    against: str,
    gains: Mapping[str, PairedGain],
) -> dict[str, Any]:
    """Everything, a list a prompt; an error that is not finite, of one prompt, is null."""
    means = {name: _mean(table) for name, table in scores.items()}
    return {
        "config": to_dict(config),
        "run": None if command.run is None else str(command.run),
        "prompts": list(prompts),
        "seeds": list(command.seeds),
        "noises": command.noises,
        "zigzag": command.zigzag,
        "scores": {
            name: {
                "mean": mean.gain,
                "standard_error": _finite(mean.standard_error),
                "per_prompt": scores[name].double().mean(0).tolist(),
            }
            for name, mean in means.items()
        },
        "against": against or None,
        "gains": {
            name: {key: _finite(value) for key, value in asdict(gain).items()}
            for name, gain in gains.items()
        },
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
