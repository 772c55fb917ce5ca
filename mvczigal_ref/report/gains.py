"""Gains as dots: every pair of held-out images, their mean and its standard error."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.pictures.drawing import CURVES, INK, bare_axes, style

__all__ = ["draw_gains", "swarm"]

_BINS = 70  # columns of dots across the figure
_STEP = 0.075  # from one dot to the next in a column, of the distance between two rows


def swarm(values: Sequence[float], *, width: float) -> list[float]:
    """Place equal or close numbers beside one another, so that each is seen.

    Args:
        values: Numbers.
        width: Numbers closer than this share a column; positive.

    Returns:
        Offsets from the row's middle, at most 0.35 either way [distance between rows].

    Examples:
        >>> swarm([1.0, 1.0, 5.0], width=0.5)
        [-0.0375, 0.0375, 0.0]
    """
    columns: dict[int, list[int]] = {}
    for place, value in enumerate(values):
        columns.setdefault(round(value / width), []).append(place)
    most = max((len(column) for column in columns.values()), default=1)
    step = min(_STEP, 0.7 / max(1, most - 1))
    offsets = [0.0] * len(values)
    for column in columns.values():
        for rank, place in enumerate(column):
            offsets[place] = step * (rank - (len(column) - 1) / 2)
    return offsets


def draw_gains(
    gains: Mapping[str, PairedGain],
    pairs: Mapping[str, Float[Any, "noise prompt"]],
    *,
    unit: str,
    marked: Mapping[str, int],
    width: float = 9.0,
) -> Figure:
    """Draw all paired gains, one row per score.

    Args:
        gains: Mean gain and standard error by name of the score.
        pairs: Gains of every noise and prompt, of torch or NumPy, by the same names [reward units].
        unit: Unit of the scores; may be empty.
        marked: Prompts whose dot of the first noise has a ring and a name, in the last row.
        width: Width of the figure [in].

    Returns:
        The figure, for :mod:`mvczigal_ref.pictures.drawing`.
    """
    names = list(gains)
    with style("x"):
        figure, axes = bare_axes(width, 0.85 + 0.95 * len(names), left=0.95, bottom=0.5)
        flat = {name: table.flatten().tolist() for name, table in pairs.items()}
        every = [value for values in flat.values() for value in values]
        extent = max(max(every) - min(every), 1e-9)
        for row, name in enumerate(reversed(names)):
            heights = [row + o for o in swarm(flat[name], width=extent / _BINS)]
            axes.plot(
                flat[name], heights, "o", color=CURVES[1], ms=3.6, alpha=0.55, markeredgewidth=0
            )
            _mean(axes, gains[name], row + 0.42)
            if name == names[-1]:
                _rings(axes, flat[name], heights, marked)
        axes.axvline(0.0, color=INK, linewidth=0.8, zorder=1)
        axes.set_ylim(-0.6, len(names) - 0.38)
        axes.set_yticks(range(len(names)), [name.replace(" ", "\n") for name in reversed(names)])
        axes.set_xlabel(f"gain, after minus before [{unit or 'reward units'}]")
    return figure


def _mean(axes: Axes, gain: PairedGain, height: float) -> None:
    error = gain.standard_error if gain.standard_error == gain.standard_error else 0.0
    axes.errorbar(
        [gain.gain], [height], xerr=[error], fmt="D", color=CURVES[0], ms=5, capsize=3, zorder=4
    )


def _rings(
    axes: Axes, values: Sequence[float], heights: Sequence[float], marked: Mapping[str, int]
) -> None:
    for name, place in marked.items():
        at = (values[place], heights[place])
        axes.plot(*at, "o", ms=8, markerfacecolor="none", markeredgecolor=INK, zorder=3)
        axes.annotate(
            name, at, xytext=(at[0], -0.58), ha="center", va="bottom",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6, "shrinkB": 4},
        )  # fmt: skip
