"""Bins of the drift that captions cause, and counts of several iterations."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["DRIFT_EDGES", "drift_histogram"]

DRIFT_EDGES: Final = tuple(10.0 ** (power / 4) for power in range(-24, 13))
"""Edges of the drift's histogram, four per decade [unit of the log-density]."""


def drift_histogram(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Add up the histograms of some iterations.

    Args:
        rows: Record of each iteration, from the log of captions.

    Returns:
        Counts, one more than there are edges; all 0 without rows.
    """
    total = [0] * (len(DRIFT_EDGES) + 1)
    for row in rows:
        total = [a + b for a, b in zip(total, row["drift_counts"], strict=True)]
    return total
