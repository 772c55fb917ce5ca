"""Strip of the claims: the same prompts and noise before, with one reward, and constrained."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from mvczigal_ref.evaluation.scores import Evaluation, read_evaluation
from mvczigal_ref.pictures.strip import strip

__all__ = ["chosen_prompts", "claims_strip"]

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
    lead = states["with the constraint"].joint[0] - states["per-view reward alone"].joint[0]
    places = chosen_prompts(lead.tolist())
    return strip(
        {name: scores.images[places] for name, scores in states.items()},
        rows=[f"{prompts[place]} ({rank})" for rank, place in zip(_SHARES, places, strict=True)],
        notes=_notes(states, places),
    )


def _notes(states: Mapping[str, Evaluation], places: Sequence[int]) -> dict[str, list[str]]:
    return {
        name: [
            f"per view {float(scores.per_view[0, place]):.1f}, "
            f"joint {float(scores.joint[0, place]):.1f} dB"
            for place in places
        ]
        for name, scores in states.items()
    }


def _scores(run: Path, occasion: str) -> Evaluation:
    return read_evaluation(max((run / "evaluations").glob(f"{occasion}_*.safetensors")))[0]
