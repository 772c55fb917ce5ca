"""Curves and histograms of a run as SVG elements, in the colours and fonts of the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mvczigal_ref.pictures.drawing import CURVES, INK, bare_axes, element, style
from mvczigal_ref.report.panel import Curve, Panel

__all__ = ["draw", "draw_histogram", "smooth"]

_WIDTH, _HEIGHT = 4.4, 2.4  # of every figure [in], so that their axes stand side by side
_FEW = 3  # so few points are drawn as dots too


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Average each value with those just before it, leaving out NaN.

    Args:
        values: A curve; NaN where nothing was measured.
        window: Values in one mean; at least 1.

    Returns:
        As many values, NaN where a window holds no number.

    Examples:
        >>> smooth([1.0, 3.0, 5.0], 2)
        [1.0, 2.0, 4.0]
    """
    means = []
    for end in range(1, len(values) + 1):
        numbers = [v for v in values[max(0, end - window) : end] if not math.isnan(v)]
        means.append(math.fsum(numbers) / len(numbers) if numbers else math.nan)
    return means


def draw(panel: Panel, rows: Sequence[Mapping[str, Any]], *, name: str) -> str | None:
    """Draw one panel.

    Args:
        panel: Panel to draw.
        rows: Metrics, one mapping per iteration, each with ``iteration``.
        name: Prefix of the SVG's ids, unique on the page.

    Returns:
        An ``<svg>`` element, or None if none of the curves was measured.
    """
    measured = panel.points(rows)
    if not any(measured):
        return None
    with style("y"):
        figure, axes = bare_axes(_WIDTH, _HEIGHT, left=0.72, bottom=0.46)
        for curve, points, colour in zip(panel.curves, measured, CURVES, strict=False):
            if points:
                _line(axes, points, curve, colour, noisy=panel.noisy)
        if panel.zero:
            axes.axhline(0.0, color=INK, linewidth=0.6, zorder=1)
            if all(value >= 0 for points in measured for _, value in points):
                axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])  # a curve at 0 is seen
        _iterations(axes, [x for points in measured for x, _ in points])
        axes.set_ylabel(panel.axis)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
        axes.yaxis.set_label_coords(-0.6 / _WIDTH / 0.82, 0.5)
        return element(figure, name=name, title=f"{panel.title}: {panel.note}")


def draw_histogram(
    edges: Sequence[float], counts: Sequence[int], *, label: str, title: str, name: str
) -> str | None:
    """Draw a histogram of a positive quantity, on a logarithmic axis.

    Args:
        edges: Edges of the bins, increasing and positive.
        counts: One count more than there are edges: the first and last bins are open.
        label: Name of the quantity, with its unit.
        title: Name of the figure, for those who do not see it.
        name: Prefix of the SVG's ids, unique on the page.

    Returns:
        An ``<svg>`` element, or None if nothing was counted.
    """
    if not sum(counts):
        return None
    ratio = edges[1] / edges[0]
    bounds = [edges[0] / ratio, *edges, edges[-1] * ratio]
    shown = [place for place, count in enumerate(counts) if count]
    with style("y"):
        figure, axes = bare_axes(_WIDTH, _HEIGHT, left=0.72, bottom=0.46)
        total = sum(counts)
        axes.stairs([100 * c / total for c in counts], bounds, fill=True, color=CURVES[0])
        axes.set_xscale("log")
        axes.set_xlim(bounds[shown[0]], bounds[shown[-1] + 1])
        axes.set_xlabel(label)
        axes.set_ylabel("share [%]")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return element(figure, name=name, title=title)


def _iterations(axes: Axes, places: Sequence[int]) -> None:
    """Number the iterations from 1; scores before training stand at 0 finished ones."""
    first, last = min(1, *places), max(places)
    axes.set_xlabel("iteration" if first else "finished iterations")
    margin = 0.0 if last > first else 0.5
    axes.set_xlim(first - margin, last + margin)
    locator = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])
    round_ones = [tick for tick in locator.tick_values(first, last) if first < tick <= last]
    axes.set_xticks([first, *round_ones])


def _line(
    axes: Axes, points: list[tuple[int, float]], curve: Curve, colour: str, *, noisy: bool
) -> None:
    x, y = [iteration for iteration, _ in points], [value for _, value in points]
    marker = "o" if len(x) <= _FEW else None
    if curve.dashed:
        axes.plot(x, y, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), marker=marker, ms=3)
        return
    window = max(1, len(x) // 10)
    if noisy and window > 1:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
        y = smooth(y, window)
    axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, ms=3)
