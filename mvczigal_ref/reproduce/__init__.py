"""The papers' comparisons on the tiny worlds: every method, at equal network calls."""

from mvczigal_ref.reproduce.comparison import (
    Comparison,
    Outcome,
    PlannedRun,
    compare,
    gain_over_seeds,
    planned_runs,
)
from mvczigal_ref.reproduce.figures import figure
from mvczigal_ref.reproduce.methods import COMPARISONS, MethodRow, MethodSet
from mvczigal_ref.reproduce.summary import Summary, read_summary, summarise, to_text
from mvczigal_ref.reproduce.tables import markdown

__all__ = [
    "COMPARISONS",
    "Comparison",
    "MethodRow",
    "MethodSet",
    "Outcome",
    "PlannedRun",
    "Summary",
    "compare",
    "figure",
    "gain_over_seeds",
    "markdown",
    "planned_runs",
    "read_summary",
    "summarise",
    "to_text",
]
