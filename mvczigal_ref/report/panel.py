"""Panel: one small picture of a run's page, before it is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Curve", "Panel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One number over the iterations."""

    key: str
    """Name of the number in the metrics."""

    label: str = ""
    """Name in the legend; a panel of one curve needs none."""

    dashed: bool = False
    """Whether the curve is drawn as a dashed line and never smoothed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One small picture: curves that share a vertical axis."""

    title: str
    """Name of the drawn quantity."""

    axis: str
    """Name of the vertical axis, with its unit."""

    note: str
    """Sentence that says how to read the panel."""

    curves: tuple[Curve, ...]
    """Curves of the panel, at most three."""

    noisy: bool = False
    """Whether the curves are drawn thin, with a moving mean on top."""

    zero: bool = False
    """Whether 0 is marked, and so always visible."""

    def points(self, rows: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, float]]]:
        """Gather the measured numbers of each curve.

        Args:
            rows: Metrics, one mapping per iteration, each with ``iteration``, from 0.

        Returns:
            Iterations counted from 1, and numbers, curve by curve; empty where it was not measured.
        """
        return [
            [(row["iteration"] + 1, float(row[curve.key])) for row in rows
             if row.get(curve.key) is not None]
            for curve in self.curves
        ]  # fmt: skip

    def is_flat(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether the panel shows nothing but 0.

        Args:
            rows: As :meth:`points` takes them.

        Returns:
            True if something was measured, and all of it was exactly 0.
        """
        values = [value for points in self.points(rows) for _, value in points]
        return bool(values) and not any(values)
