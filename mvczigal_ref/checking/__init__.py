"""Does training work on this machine? A few network calls, which must come out as theory says."""

from mvczigal_ref.checking.run import check, check_system
from mvczigal_ref.checking.verdict import Finding, Verdict

__all__ = ["Finding", "Verdict", "check", "check_system"]
