"""Captions of an iteration as a run records them: texts, rewards, and the samples' drift."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.condition.protocol import Caption

__all__ = ["DRIFT_EDGES", "caption_record", "drift_histogram", "drift_metrics"]

DRIFT_EDGES: Final = tuple(10.0 ** (power / 4) for power in range(-24, 13))
"""Edges of the drift's histogram, four a decade [unit of the log-density]."""


def caption_record(
    prompts: Sequence[str],
    captions: Sequence[Sequence[Caption]],
    reward: Float[Tensor, "condition prompt sample"],
    drift: Float[Tensor, " entry"],
    by_step: Float[Tensor, "step prompt caption"],
) -> dict[str, Any]:
    """Put an iteration's captions into JSON values.

    Args:
        prompts: Of this process.
        captions: K of each prompt.
        reward: Of every sample under every condition, the prompt's own first [reward units].
        drift: How far captions move densities, of all processes [unit of the log-density].
        by_step: Its mean over each group's samples, of these captions [unit of the log-density].

    Returns:
        A list of captions, each with its group's mean reward under prompt and caption and its
        drift at every trained step, and the histogram of the drift over ``DRIFT_EDGES``, whose
        first and last bins are open.
    """
    edges = torch.tensor(DRIFT_EDGES, dtype=torch.float64)
    bins = torch.bucketize(drift.double(), edges)
    counts = torch.bincount(bins, minlength=len(edges) + 1).tolist()
    rows = [
        {
            "prompt": prompt,
            "caption": made.caption,
            "instruction": made.instruction,
            "sample": made.sample,
            "reward_under_prompt": float(reward[0, place].mean()),
            "reward_under_caption": float(reward[1 + index, place].mean()),
            "drift": by_step[:, place, index].tolist(),
        }
        for place, (prompt, texts) in enumerate(zip(prompts, captions, strict=True))
        for index, made in enumerate(texts)
    ]
    return {"captions": rows, "drift_counts": counts}


def drift_metrics(drift: Float[Tensor, " entry"]) -> dict[str, float]:
    """Summarise the drift for the metrics file.

    Args:
        drift: Of every caption, sample and step [unit of the log-density].

    Returns:
        Mean, median and 95th percentile.
    """
    quantiles = torch.quantile(drift.double(), torch.tensor([0.5, 0.95], dtype=torch.float64))
    return {
        "drift/mean": float(drift.mean()),
        "drift/median": float(quantiles[0]),
        "drift/p95": float(quantiles[1]),
    }


def drift_histogram(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Add up the histograms of some iterations.

    Args:
        rows: What :func:`caption_record` made of each.

    Returns:
        Counts, one more than there are edges; all 0 without rows.
    """
    total = [0] * (len(DRIFT_EDGES) + 1)
    for row in rows:
        total = [a + b for a, b in zip(total, row["drift_counts"], strict=True)]
    return total
