"""Report: a run folder as one page with its settings, results and curves."""

from mvczigal_ref.report.page import write_report

__all__ = ["write_report"]
