"""A run folder as one page: what was run, what came of it, and how."""

from mvczigal_ref.report.page import write_report

__all__ = ["write_report"]
