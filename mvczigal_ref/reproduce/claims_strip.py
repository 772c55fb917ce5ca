"""Strips of the claims: the same prompts and noise, with one reward alone and constrained."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.evaluate import evaluate
from mvczigal_ref.evaluation.scores import Evaluation, read_evaluation
from mvczigal_ref.pictures.strip import strip
from mvczigal_ref.system import build_system
from mvczigal_ref.training.origin import read_origin
from mvczigal_ref.training.run_folder import load_newest

__all__ = ["chosen_prompts", "claims_strip", "iterations_strip"]

# Ranks of the prompts by what the constraint keeps, from 0, the least, to 1.
_SHARES = {"most kept": 1.0, "upper quartile": 0.75, "median": 0.5, "least kept": 0.0}


def chosen_prompts(lead: Sequence[float]) -> list[int]:
    """Choose prompts by rule: most, upper quartile, median and least.

    Args:
        lead: Number of each prompt.

    Returns:
        Places of four prompts.

    Examples:
        >>> chosen_prompts([0.0, 1.0, 2.0, 3.0, 4.0])
        [4, 3, 2, 0]
    """
    order = sorted(range(len(lead)), key=lambda place: lead[place])
    return [order[round(share * (len(order) - 1))] for share in _SHARES.values()]


def claims_strip(alone: Path, constrained: Path, prompts: Sequence[str]) -> Image.Image:
    """Draw held-out prompts before training, with the per-view reward alone, and constrained.

    The prompts are those of which the constraint keeps most, the upper quartile, the median and
    the least: joint score of the constrained run minus that of the other, on the first noise.

    Args:
        alone: Run folder of the per-view reward alone.
        constrained: Run folder of the full method, with the same seed.
        prompts: Held-out prompts.

    Returns:
        The picture.
    """
    states = {
        "before": _scores(constrained, "before"),
        "per-view reward alone": _scores(alone, "after"),
        "with the constraint": _scores(constrained, "after"),
    }
    places = chosen_prompts(_lead(alone, constrained))
    return strip(
        {name: scores.images[places] for name, scores in states.items()},
        rows=[f"{prompts[place]} ({rank})" for rank, place in zip(_SHARES, places, strict=True)],
        notes={name: [_note(scores, place) for place in places] for name, scores in states.items()},
    )


def iterations_strip(
    alone: Path, constrained: Path, prompts: Sequence[str], iterations: Sequence[int]
) -> Image.Image:
    """Draw what training does to two held-out prompts, from the same noise, over iterations.

    The prompts are those of which the constraint keeps most and the median, as
    :func:`claims_strip` chooses them; above with the per-view reward alone, below constrained.

    Args:
        alone: Run folder of the per-view reward alone.
        constrained: Run folder of the full method, with the same seed.
        prompts: Held-out prompts.
        iterations: Checkpoints that both folders hold [iterations].

    Returns:
        The picture.

    Raises:
        CheckpointError: If a folder holds no checkpoint of an iteration.
    """
    most, _, median, _ = chosen_prompts(_lead(alone, constrained))
    runs = {"per-view reward alone": alone, "with the constraint": constrained}
    cells = [(name, place) for place in (most, median) for name in runs]
    states = {
        f"iteration {iteration}": {
            name: _scores(run, "before") if iteration == 0 else _after(run, iteration, prompts)
            for name, run in runs.items()
        }
        for iteration in (0, *iterations)
    }
    return strip(
        {
            title: torch.stack([scores[name].images[place] for name, place in cells])
            for title, scores in states.items()
        },
        rows=[f"{prompts[place]}: {name}" for name, place in cells],
        notes={
            title: [_note(scores[name], place) for name, place in cells]
            for title, scores in states.items()
        },
    )


def _after(run: Path, iteration: int, prompts: Sequence[str]) -> Evaluation:
    """Score a run's policy as it was after some iterations, on the first noise."""
    config = load_newest(run).config
    system = build_system(config, device=torch.device("cpu"))
    read_origin(f"{run}@{iteration}", config).apply(system)
    return evaluate(system, prompts, config=config, world=World(), num_noises=1)


def _lead(alone: Path, constrained: Path) -> list[float]:
    """Subtract the joint scores of both runs' policies, prompt by prompt, on the first noise."""
    lead = _scores(constrained, "after").joint[0] - _scores(alone, "after").joint[0]
    return [float(difference) for difference in lead]


def _note(scores: Evaluation, place: int) -> str:
    per_view, joint = float(scores.per_view[0, place]), float(scores.joint[0, place])
    return f"per view {per_view:.1f}, joint {joint:.1f} dB"


def _scores(run: Path, occasion: str) -> Evaluation:
    return read_evaluation(max((run / "evaluations").glob(f"{occasion}_*.safetensors")))[0]
