"""What a check reports."""

from dataclasses import dataclass

__all__ = ["Finding", "Verdict"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was tried."""

    name: str
    """What must hold."""
    passed: bool
    """Whether it does."""
    told: str
    """What was seen; where it does not hold, the likely cause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Everything that was tried."""

    findings: tuple[Finding, ...]
    """In the order in which it was tried."""
    seconds: float
    """Time it took, loading left out [s]."""

    @property
    def passed(self) -> bool:
        """Whether all of it holds."""
        return all(finding.passed for finding in self.findings)
