"""Report: a run folder as one page with its settings, results and curves.

The page is imported when it is first asked for: what a run holds is read without Matplotlib.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvczigal_ref.report.page import write_report as write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module holds
    """Import the public name when it is first asked for."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from mvczigal_ref.report.page import write_report

    return write_report
