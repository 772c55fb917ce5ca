"""Where does a zigzag help? Zigzag minus plain sampling from the same noise, without training.

    python -m bench zigzag [--noises 4] [--out docs/results/zigzag.json]

Held-out prompts, shipped weights. Every cell changes one thing: camera scale, guidance, what the
inversion is told, number of steps, noise schedule, how much is zigzagged. A zigzag costs two more
network calls; where it leads, its lead over plain sampling with as many calls stands beside. The
sensitivity is how far what the inversion is told moves the first step's clean latent. The best of
all cells is measured again on noises that no cell has met, four times as many: the best of many is
partly luck.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.digits import in_errors, plus_minus
from mvczigal_ref.evaluation.evaluate import evaluate
from mvczigal_ref.evaluation.scores import Evaluation, paired_gain
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.policy import network_output, step_transition
from mvczigal_ref.recipes import recipe
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.standard import step_indices
from mvczigal_ref.system import System, build_system
from mvczigal_ref.tiny_world.grammar import split_prompts

SCORES = ("per_view", "joint")
WEAK = {"sampler.camera_scale": 0.3, "sampler.guidance_scale": 2.0}
BLIND = WEAK | {"zigzag.inversion_camera_scale": 0.0}
FULL = {"sampler.camera_scale": 1.0, "sampler.guidance_scale": 7.0}
CELLS: tuple[tuple[str, dict[str, float]], ...] = (
    ("setting of the claims", WEAK),
    *(("cameras of the inversion", WEAK | {"zigzag.inversion_camera_scale": c}) for c in (0.3, 0)),
    ("published setting", FULL),
    ("cameras of the inversion, full cameras", FULL | {"zigzag.inversion_camera_scale": 0.0}),
    *(("guidance", BLIND | {"sampler.guidance_scale": g}) for g in (7.0, 4.0, 1.0)),
    *(("steps", BLIND | {"sampler.num_steps": n}) for n in (2, 8)),
    *(("SNR shift", BLIND | {"sampler.snr_shift": s}) for s in (4.0, 0.5)),
    *(("camera scale", BLIND | {"sampler.camera_scale": c}) for c in (0.1, 0.6, 1.0)),
    *(("guidance of the inversion", BLIND | {"zigzag.inversion_guidance_scale": g})
      for g in (0.0, 2.0)),
    ("guidance of the inversion, full cameras", FULL | {"zigzag.inversion_guidance_scale": 0.0}),
    ("steps zigzagged", BLIND | {"zigzag.steps": 4}),
    ("rounds", BLIND | {"zigzag.rounds": 3}),
    *(("guidance, full cameras", FULL | {"sampler.guidance_scale": g}) for g in (2.0, 4.0)),
    ("steps, full cameras", FULL | {"sampler.num_steps": 2}),
)  # fmt: skip
"""Name of the sweep, and the settings of the cell; others are the recipe's."""

_HELPS = 3.1  # standard errors: 5 % over all cells and both sides of one score
_FRESH = 1  # seed of the noises on which the best cell is measured again
_AGAIN = 4  # times as many noises


def _config(settings: Mapping[str, float]) -> TrainConfig:
    words = [f"{name}={value:g}" for name, value in settings.items()]
    return load_config(recipe("tiny"), overrides=words, training=False)


@cache
def _system(words: tuple[str, ...]) -> tuple[System, TrainConfig]:
    config = load_config(recipe("tiny"), overrides=words, training=False)
    return build_system(config, device=torch.device("cpu")), config


def _sampling(config: TrainConfig, *, steps: int) -> tuple[str, ...]:
    """Give the words of what plain sampling reads."""
    sampler = config.sampler
    return (
        f"sampler.camera_scale={sampler.camera_scale:g}", f"sampler.num_steps={steps}",
        f"sampler.guidance_scale={sampler.guidance_scale:g}",
        f"sampler.snr_shift={sampler.snr_shift:g}", f"zigzag.steps={min(1, steps)}",
    )  # fmt: skip


@cache
def _plain(words: tuple[str, ...], noises: int, seed: int) -> Evaluation:
    system, config = _system(words)
    return evaluate(
        system, split_prompts()[1], config=config, world=World(), num_noises=noises, seed=seed,
        keep_images=0,
    )  # fmt: skip


def cell(name: str, settings: Mapping[str, float], *, noises: int, seed: int = 0) -> dict[str, Any]:
    """Measure one cell."""
    config = _config(settings)
    steps = config.sampler.num_steps
    system = _system(_sampling(config, steps=steps))[0]
    plain = _plain(_sampling(config, steps=steps), noises, seed)
    zigzag = evaluate(
        system, split_prompts()[1], config=config, world=World(), num_noises=noises, seed=seed,
        zigzag=True, keep_images=0,
    )  # fmt: skip
    gain, longer = _gains(plain, zigzag), None
    if any(mean > error for mean, error in gain.values()):
        extra = 2 * config.zigzag.steps * config.zigzag.rounds
        longer = _gains(_plain(_sampling(config, steps=steps + extra), noises, seed), zigzag)
    return {
        "sweep": name,
        "settings": dict(settings),
        "sensitivity": sensitivity(system, config),
        "plain": {score: float(getattr(plain, score).double().mean()) for score in SCORES},
        "gain": gain,
        "gain_at_equal_calls": longer,
    }


def _gains(before: Evaluation, after: Evaluation) -> dict[str, list[float]]:
    gains = {name: paired_gain(getattr(before, name), getattr(after, name)) for name in SCORES}
    return {name: [gain.gain, gain.standard_error] for name, gain in gains.items()}


@torch.no_grad()
def sensitivity(system: System, config: TrainConfig, *, objects: int = 16) -> float:
    """Measure how far the inversion's guidance and cameras move the first clean latent.

    Returns:
        RMS of the difference over the RMS of the latent [1].
    """
    prompts = split_prompts()[1][:objects]
    noise = SeededNoise(
        seed=0, iteration="evaluation", objects=range(objects), shape=system.latent_shape
    )
    conditioning, latent = system.conditioning(prompts), noise.initial()[None]
    index = step_indices(system.sampler, latent.device)[0]
    sampler, zigzag = config.sampler, config.zigzag
    clean = [
        step_transition(
            system.sampler,
            network_output(
                system.policy, system.sampler, latent, index, conditioning=conditioning,
                guidance_scale=guidance, camera_scale=camera,
            ),
            latent, index,
        ).denoised
        for guidance, camera in (
            (sampler.guidance_scale, sampler.camera_scale),
            (zigzag.inversion_guidance_scale, zigzag.inversion_camera_scale),
        )
    ]  # fmt: skip
    return float((clean[0] - clean[1]).square().mean().sqrt() / clean[0].square().mean().sqrt())


def best_cell(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Choose the cell whose gains, each in its standard errors, have the largest sum."""
    return max(rows, key=lambda row: sum(mean / error for mean, error in row["gain"].values()))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write one row per cell."""
    head = (
        "sweep", "settings", "sensitivity", "plain: per view, joint [dB]",
        "zigzag minus plain, per view [dB]", "joint [dB]", "at equal calls, per view [dB]",
        "joint [dB]",
    )  # fmt: skip
    lines = [head, ("---",) * len(head), *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    settings = " ".join(f"`{name}={value:g}`" for name, value in row["settings"].items())
    gains = []
    for kind in ("gain", "gain_at_equal_calls"):
        for score in SCORES:
            if row[kind] is None:
                gains.append("")
                continue
            mean, error = row[kind][score]
            text = f"{plus_minus(mean, error, sign=True)} ({in_errors(mean, error)})"
            gains.append(f"**{text}**" if mean > _HELPS * error else text)
    plain = ", ".join(f"{row['plain'][score]:.2f}" for score in SCORES)
    return (row["sweep"], settings, f"{row['sensitivity']:.2f}", plain, *gains)


def main() -> None:
    """Measure every cell that the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noises", type=int, default=4, help="initial noises per prompt")
    parser.add_argument("--out", type=Path, default=Path("docs/results/zigzag.json"))
    asked = parser.parse_args()
    torch.set_grad_enabled(False)
    rows = json.loads(asked.out.read_text("utf-8")) if asked.out.is_file() else []
    for place, (name, settings) in enumerate(CELLS):
        if place < len(rows) and rows[place]["settings"] == settings:
            continue
        rows[place:] = [cell(name, settings, noises=asked.noises)]
        atomic_write(asked.out, to_json(rows))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if len(rows) == len(CELLS):
        best = best_cell(rows)
        name = f"{best['sweep']}: the best cell, fresh noises"
        rows.append(cell(name, best["settings"], noises=_AGAIN * asked.noises, seed=_FRESH))
        atomic_write(asked.out, to_json(rows))
        print(table(rows[-1:]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
