"""Does it learn? Held-out gains of the tiny recipes over several seeds, with standard errors.

    python -m bench.learning [--recipes tiny tiny_shuffled tiny_per_view] [--seeds 0 1 2]

Runs are kept in ``runs/learning`` and not repeated; a stopped one goes on. The standard error
of a gain counts seeds and prompts as random: SE^2 = var(seed means)/S + var(prompt means)/P.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mvczigal_ref.config import load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.digits import decimals_of, in_errors, plus_minus
from mvczigal_ref.evaluation.evaluate import evaluate
from mvczigal_ref.evaluation.scores import paired_gain
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reproduce.comparison import gain_over_seeds, run_gain
from mvczigal_ref.system import build_system
from mvczigal_ref.tiny_world.colour_area import colour_area
from mvczigal_ref.tiny_world.grammar import parse, split_prompts

SCORES = ("per_view", "joint")


def views_with_part(images: Tensor, prompts: Sequence[str]) -> float:
    """Mean number of an object's views in which the part's colour covers 4 pixels or more."""
    shown = [
        (colour_area(views, parse(prompt).part_colour) >= 4).sum()
        for views, prompt in zip(images, prompts, strict=True)
    ]
    return float(torch.stack(shown).double().mean())


def table(recipes: Sequence[str], seeds: Sequence[int], folder: Path, words: Sequence[str]) -> None:
    """Print one row a recipe."""
    print(
        "| recipe | per view: before, gain ± SE (SEs) | joint: before, gain ± SE (SEs) | s a run |"
    )
    print("| --- | --- | --- | --- |")
    for name in recipes:
        runs = [
            run_gain(
                load_config(recipe(name), overrides=[*words, f"run.seed={seed}"]),
                folder / f"{name}-{seed}",
            )
            for seed in seeds
        ]
        cells = []
        for score in SCORES:
            gains = torch.stack(
                [(r["after"][score] - r["before"][score]).double().mean(0) for r in runs]
            )
            mean, error = gain_over_seeds(gains)
            before = float(runs[0]["before"][score].double().mean())
            gain = plus_minus(mean, error, sign=True)
            cells.append(f"{before:.{decimals_of(error)}f}, {gain} ({in_errors(mean, error)})")
        seconds = max(r["seconds"] for r in runs)
        print(f"| {name} | {cells[0]} | {cells[1]} | {seconds:.0f} |", flush=True)


def zigzag_table(noises: int) -> None:
    """Print ZMV-Sampling against plain sampling from the same noise, shipped weights."""
    config = recipe("tiny")
    system = build_system(config, device=torch.device("cpu"))
    _, held_out = split_prompts()
    plain, zigzag = (
        evaluate(
            system, held_out, config=config, world=World(), num_noises=noises, zigzag=z,
            keep_images=0,
        )
        for z in (False, True)
    )  # fmt: skip
    print("\n| zigzag minus plain, same noise | dB ± SE over prompts |")
    print("| --- | --- |")
    for score in SCORES:
        found = paired_gain(getattr(plain, score), getattr(zigzag, score))
        print(f"| {score} | {plus_minus(found.gain, found.standard_error, sign=True)} |")


def main() -> None:
    """Run everything asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["tiny", "tiny_shuffled", "tiny_per_view"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--zigzag-noises", type=int, default=4)
    parser.add_argument("overrides", nargs="*", help="section.name=value")
    wanted = parser.parse_args()
    table(wanted.recipes, wanted.seeds, wanted.folder, wanted.overrides)
    if wanted.zigzag_noises:
        zigzag_table(wanted.zigzag_noises)


if __name__ == "__main__":
    main()
