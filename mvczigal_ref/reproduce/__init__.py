"""The papers' comparisons on the tiny worlds: every method, at equal network calls.

Names are imported when they are used, so that the list of methods needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvczigal_ref.reproduce.comparison import (
        Comparison,
        Outcome,
        compare,
        gain_over_seeds,
    )
    from mvczigal_ref.reproduce.figures import figure
    from mvczigal_ref.reproduce.methods import COMPARISONS, MethodRow, MethodSet
    from mvczigal_ref.reproduce.plans import PlannedRun, planned_runs
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

_HOMES = {
    **dict.fromkeys(("COMPARISONS", "MethodRow", "MethodSet"), "methods"),
    **dict.fromkeys(("Summary", "read_summary", "summarise", "to_text"), "summary"),
    **dict.fromkeys(("PlannedRun", "planned_runs"), "plans"),
    "figure": "figures",
    "markdown": "tables",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name is
    """Import a public name from its module."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'comparison')}"), name)
