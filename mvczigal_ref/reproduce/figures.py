"""Picture of a comparison: gains with their errors, and how far captions drift."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvczigal_ref.condition.drift_bins import DRIFT_EDGES
from mvczigal_ref.pictures.drawing import CURVES, GRID, INK, picture, style
from mvczigal_ref.reproduce.summary import MethodSummary, Summary
from mvczigal_ref.reproduce.tables import SCORE_NAMES

__all__ = ["figure"]

_MARKS = ("o", "s")  # of the scores


def figure(summary: Summary) -> str:
    """Draw the gains with their errors, best first, and below how far captions drift.

    Args:
        summary: Numbers of one paper's methods.

    Returns:
        An SVG file's text, light or dark as the reader's device.
    """
    first = summary.scores[0]
    shown = sorted(summary.methods, key=lambda method: method.gains[first].mean)
    captioned = [method for method in summary.methods if method.drift]
    heights = [1.1 + 0.32 * len(shown), *([2.4] if captioned else [])]
    title = f"Tiny world: held-out gain of the methods of {summary.paper}"
    with style("x"):
        drawing = Figure(figsize=(7.4, sum(heights)), layout="constrained")
        drawing.patch.set_alpha(0.0)
        axes, *below = drawing.subplots(len(heights), height_ratios=heights, squeeze=False).flat
        _draw_gains(axes, shown, summary)
        axes.set_title(title, fontsize=11, loc="left")
        for panel in below:
            _draw_drift(panel, captioned)
        for panel in (axes, *below):
            panel.patch.set_alpha(0.0)
            panel.tick_params(length=0, which="both")
        return picture(drawing, title=f"{title}; {_names(shown, summary.full)}")


def _names(shown: Sequence[MethodSummary], full: str) -> str:
    """List the methods for those who do not see them."""
    names = [one.name + (" (full method)" if one.recipe == full else "") for one in shown[::-1]]
    return f"from most to least: {', '.join(names)}"


def _draw_gains(axes: Axes, shown: Sequence[MethodSummary], summary: Summary) -> None:
    """Draw one row per method, the full one on a band and named so."""
    count = len(summary.scores)
    for place, (score, colour) in enumerate(zip(summary.scores, CURVES, strict=False)):
        gains = [method.gains[score] for method in shown]
        rows = [row + 0.2 * (place - (count - 1) / 2) for row in range(len(shown))]
        axes.errorbar(
            [gain.mean for gain in gains], rows, xerr=[gain.error for gain in gains],
            fmt=_MARKS[place], markersize=5, capsize=3, color=colour, label=SCORE_NAMES[score],
        )  # fmt: skip
    axes.axvline(0.0, color=INK, linewidth=0.8, zorder=1)
    labels = [one.name + (", full" if one.recipe == summary.full else "") for one in shown]
    axes.set_yticks(range(len(shown)), labels)
    for row, (method, label) in enumerate(zip(shown, axes.get_yticklabels(), strict=True)):
        if method.recipe == summary.full:
            axes.axhspan(row - 0.45, row + 0.45, color=GRID, alpha=0.55, zorder=0, linewidth=0)
            label.set_fontweight("bold")
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("held-out gain [dB] ± standard error over seeds and prompts")
    if count > 1:
        axes.legend(frameon=False, loc="lower right")


def _draw_drift(axes: Axes, captioned: Sequence[MethodSummary]) -> None:
    """Draw each method's histogram; captions that change nothing at all are named in words."""
    ratio = DRIFT_EDGES[1] / DRIFT_EDGES[0]
    bounds = [*DRIFT_EDGES, DRIFT_EDGES[-1] * ratio]
    for method, colour in zip(captioned, CURVES, strict=False):
        below, *shares = method.drift
        axes.stairs(
            shares, bounds, fill=True, alpha=0.5, color=colour,
            label=f"{method.name}, {below:.0f} % below {DRIFT_EDGES[0]:g}",
        )  # fmt: skip
    used = [place for one in captioned for place, share in enumerate(one.drift[1:]) if share]
    axes.set_xscale("log")
    axes.set_xlim(bounds[0], bounds[max(used, default=0) + 1])
    axes.set_xlabel("probability drift of captions [nats/element]")
    axes.set_ylabel("share of samples [%]")
    axes.legend(frameon=False, fontsize=9)
