"""A comparison as text and as one picture."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mvczigal_ref.method.caption import DRIFT_EDGES
from mvczigal_ref.reproduce.comparison import Comparison, Outcome, gain_over_seeds

__all__ = ["figure", "markdown"]

_NAMES = {"per_view": "per view", "joint": "joint"}


def markdown(comparison: Comparison) -> str:
    """Lay a comparison out: gains that are measured here beside the published ones.

    Args:
        comparison: Comparison of one paper's methods.

    Returns:
        A heading, a table with one row per method, the scores before training, and the paired test.
        Gains stand in errors twice: with seeds and prompts as random, and with prompts alone.
    """
    methods = comparison.methods
    head = [
        "method",
        *(f"{_NAMES[score]}: gain ± SE (SEs; over prompts alone)" for score in methods.scores),
        "iterations",
        "latents through the network (forward)",
        "s per run",
        *(f"published: {name}" for name in methods.published),
    ]
    lines = [f"### {methods.title}", "", _row(head), _row(["---"] * len(head))]
    for outcome in comparison.outcomes:
        cells = [f"{outcome.method.name} (`{outcome.method.recipe}`)"]
        for score in methods.scores:
            mean, error = gain_over_seeds(outcome.gains[score])
            _, over_prompts = gain_over_seeds(outcome.gains[score].mean(0, keepdim=True))
            both = f"; {mean / over_prompts:+.1f}" if over_prompts else ""
            cells.append(f"{mean:+.2f} ± {error:.2f}{_ratio(mean, error, both)}")
        cells += [str(outcome.iterations), f"{outcome.calls:,}", f"{outcome.seconds:.0f}"]
        published = outcome.method.published or (None,) * len(methods.published)
        cells += ["" if value is None else f"{value:+g}" for value in published]
        lines.append(_row(cells))
    before = [f"{_NAMES[score]} {_before(comparison, score)}" for score in methods.scores]
    lines += ["", f"Before training: {', '.join(before)}."]
    first, second = methods.pair
    for score in methods.scores:
        difference = comparison.paired(score)
        if difference is not None:
            mean, error = difference
            lines += [
                "",
                f"`{second}` minus `{first}`, paired, {_NAMES[score]}: {mean:+.2f} ± {error:.2f}"
                f"{_ratio(mean, error, ' standard errors')}.",
            ]
    return "\n".join(lines) + "\n"


def figure(comparison: Comparison) -> str:
    """Draw the gains with their errors, best first, and below how far captions drift.

    Args:
        comparison: Comparison of one paper's methods.

    Returns:
        An SVG file's text.
    """
    scores = comparison.methods.scores
    shown = sorted(comparison.outcomes, key=lambda outcome: float(outcome.gains[scores[0]].mean()))
    captioned = [outcome for outcome in comparison.outcomes if outcome.drift]
    heights = [0.8 + 0.32 * len(shown), *([2.4] if captioned else [])]
    drawing = Figure(figsize=(7.0, sum(heights)), layout="constrained")
    axes, *below = drawing.subplots(len(heights), height_ratios=heights, squeeze=False).flat
    for place, score in enumerate(scores):
        gains = [gain_over_seeds(outcome.gains[score]) for outcome in shown]
        rows = [row + 0.18 * (place - (len(scores) - 1) / 2) for row in range(len(shown))]
        axes.errorbar(
            [mean for mean, _ in gains], rows, xerr=[error for _, error in gains],
            fmt="o" if place == 0 else "s", markersize=4, capsize=3, label=_NAMES[score],
        )  # fmt: skip
    axes.axvline(0.0, color="0.5", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [outcome.method.name for outcome in shown])
    axes.set_xlabel("held-out gain on the tiny world ± standard error over seeds and prompts")
    axes.set_title(comparison.methods.title, fontsize=9)
    if len(scores) > 1:
        axes.legend(frameon=False)
    for panel in below:
        _draw_drift(panel, captioned)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mvczigal"}):  # equal numbers, equal pictures
        FigureCanvasSVG(drawing).print_svg(text, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _draw_drift(axes: Axes, captioned: Sequence[Outcome]) -> None:
    """Draw each method's histogram; captions that change nothing at all are named in words."""
    ratio = DRIFT_EDGES[1] / DRIFT_EDGES[0]
    bounds = [*DRIFT_EDGES, DRIFT_EDGES[-1] * ratio]
    for outcome in captioned:
        below, *counts = outcome.drift
        total = sum(outcome.drift)
        axes.stairs(
            [100 * count / total for count in counts], bounds, fill=True, alpha=0.5,
            label=f"{outcome.method.name}, {100 * below / total:.0f} % below {DRIFT_EDGES[0]:g}",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("probability drift of captions [nats/element]")
    axes.set_ylabel("% of samples")
    axes.legend(frameon=False, fontsize=8)


def _before(comparison: Comparison, score: str) -> str:
    """Give the score of all methods; those that sample otherwise start from another."""
    scores = sorted(outcome.before[score] for outcome in comparison.outcomes)
    least, most = f"{scores[0]:.2f}", f"{scores[-1]:.2f}"
    return least if least == most else f"{least} to {most}"


def _ratio(mean: float, error: float, unit: str) -> str:
    """Say how many errors a gain is, where there is an error."""
    return f" ({mean / error:+.1f}{unit})" if error else ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
