"""Curves of a run as SVG text, in the colours and fonts of the page around it."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mvczigal_ref.report.panels import Curve, Panel

__all__ = ["draw", "draw_histogram", "smooth"]

# matplotlib needs colours; the page has two sets of them, light and dark. Each of these stands
# for one of the page's variables.
_INK, _GRID = "#010101", "#020202"
_CURVES = ("#0a0a01", "#0a0a02", "#0a0a03")
_VARIABLES = {_INK: "var(--soft)", _GRID: "var(--line)"} | {
    colour: f"var(--curve-{place})" for place, colour in enumerate(_CURVES)
}


_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mvczigal",  # equal runs give equal pages
    "font.size": 10,
    "path.simplify": True,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
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
    measured = [
        [(row["iteration"] + 1, float(row[curve.key])) for row in rows
         if row.get(curve.key) is not None]
        for curve in panel.curves
    ]  # fmt: skip
    if not any(measured):
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _empty()
        for curve, points, colour in zip(panel.curves, measured, _CURVES, strict=False):
            if points:
                _line(axes, points, curve, colour, noisy=panel.noisy)
        if panel.zero:
            axes.axhline(0.0, color=_INK, linewidth=0.6, zorder=1)
            if all(value >= 0 for points in measured for _, value in points):
                axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])  # a curve at 0 is seen
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(length=0)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
        return _svg(figure, name)


def draw_histogram(
    edges: Sequence[float], counts: Sequence[int], *, label: str, name: str
) -> str | None:
    """Draw a histogram of a positive quantity, on a logarithmic axis.

    Args:
        edges: Edges of the bins, increasing and positive.
        counts: One count more than there are edges: the first and last bins are open.
        label: Name of the quantity, with its unit.
        name: Prefix of the SVG's ids, unique on the page.

    Returns:
        An ``<svg>`` element, or None if nothing was counted.
    """
    if not sum(counts):
        return None
    ratio = edges[1] / edges[0]
    bounds = [edges[0] / ratio, *edges, edges[-1] * ratio]
    shown = [place for place, count in enumerate(counts) if count]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _empty()
        total = sum(counts)
        axes.stairs([100 * c / total for c in counts], bounds, fill=True, color=_CURVES[0])
        axes.set_xscale("log")
        axes.set_xlim(bounds[shown[0]], bounds[shown[-1] + 1])
        axes.set_xlabel(label)
        axes.set_ylabel("%")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(length=0, which="both")
        return _svg(figure, name)


def _empty() -> tuple[Figure, Axes]:
    """Make a figure with a transparent background."""
    figure = Figure(figsize=(4.4, 2.3))
    figure.subplots_adjust(left=0.13, right=0.985, bottom=0.22, top=0.91)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata=_NO_METADATA)
    return _adapt(text.getvalue(), name)


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


def _adapt(svg: str, name: str) -> str:
    """Cut matplotlib's file down to an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    # Only elements that are referred to keep their id, made unique on the page.
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#([\w.-]+)', rf"\1#{name}-\2", svg)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # The page gives the size; the view box keeps the shape.
    svg = re.sub(r'^<svg( [^>]*?)? width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg( [^>]*?)? height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(
        r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", svg
    )
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()
