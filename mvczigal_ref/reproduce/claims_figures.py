"""Pictures of the claims: gains of all arms against each other, and curves of training."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvczigal_ref.pictures.drawing import CURVES, INK, picture, style
from mvczigal_ref.reproduce.claims import LEAST_SEEDS
from mvczigal_ref.reproduce.claims_record import ArmRecord, ClaimsRecord

__all__ = ["curves_figure", "front_figure"]

_COLOURS = {"tiny": CURVES[0], "tiny_per_view": CURVES[1]}
_WEIGHTED = ("weighted_sum_25", "tiny_ws_zigal", "weighted_sum_75")
_LINE = 0.06  # height of a name, of the picture's
_SMOOTH = 5  # iterations of a running mean


def front_figure(record: ClaimsRecord) -> str:
    """Draw joint against per-view gain of every arm under weak cameras, with both intervals.

    Small dots are single seeds; intervals that leave the picture go on.

    Args:
        record: Numbers and verdicts.

    Returns:
        An SVG file's text, light or dark as the reader's device.
    """
    arms = [arm for arm in record.arms if arm.arm_set == "weak_cameras"]
    by_name = {arm.arm: arm for arm in arms}
    title = "Tiny world, cameras obeyed loosely: held-out gains with 95 % intervals"
    with style("both"):
        drawing = Figure(figsize=(7.4, 5.2), layout="constrained")
        axes = _panel(drawing)
        for arm in arms:
            _cross(axes, arm)
        line = [by_name[name] for name in _WEIGHTED if name in by_name]
        axes.plot(
            [arm.gains["per_view"].estimate for arm in line],
            [arm.gains["joint"].estimate for arm in line],
            color=CURVES[2], linewidth=1.2, linestyle="--", zorder=1,
        )  # fmt: skip
        axes.axhline(0.0, color=INK, linewidth=0.8, zorder=1)
        axes.axvline(0.0, color=INK, linewidth=0.8, zorder=1)
        for arm in arms:
            axes.plot(
                arm.by_seed["per_view"], arm.by_seed["joint"], "o", alpha=0.5,
                color=_COLOURS.get(arm.arm, CURVES[2]), markersize=3,
            )  # fmt: skip
        if arms:
            axes.set_xlim(*_room([v for arm in arms for v in arm.by_seed["per_view"]]))
            axes.set_ylim(*_room([v for arm in arms for v in arm.by_seed["joint"]]))
            _names(axes, arms)
        axes.set_xlabel("per-view gain [dB]")
        axes.set_ylabel("joint gain [dB]")
        axes.set_title(title, fontsize=11, loc="left")
        return picture(drawing, title=f"{title}: {', '.join(arm.name for arm in arms)}")


def _room(values: Sequence[float]) -> tuple[float, float]:
    """Give the ends of an axis: all numbers and 0, and half as much around them."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.25 * (high - low)
    return low - margin, high + margin


def _cross(axes: Axes, arm: ArmRecord) -> None:
    """Draw one arm's gains and its intervals."""
    across, up = arm.gains["per_view"], arm.gains["joint"]
    colour, main = _COLOURS.get(arm.arm, CURVES[2]), arm.arm in _COLOURS
    axes.errorbar(
        [across.estimate], [up.estimate],
        xerr=[[across.estimate - across.low], [across.high - across.estimate]],
        yerr=[[up.estimate - up.low], [up.high - up.estimate]],
        fmt="o", markersize=7 if main else 4, color=colour, elinewidth=1.6 if main else 0.5,
        zorder=3 if main else 2,
    )  # fmt: skip


def _names(axes: Axes, arms: Sequence[ArmRecord]) -> None:
    """Write the names beside the picture from the lowest joint gain up, a line to each dot."""
    ranked = sorted(arms, key=lambda arm: arm.gains["joint"].estimate)
    low, high = axes.get_ylim()
    middle = sum(arm.gains["joint"].estimate for arm in arms) / len(arms)
    first = (middle - low) / (high - low) - _LINE * (len(arms) - 1) / 2
    first = max(0.0, min(first, 1.0 - _LINE * len(arms)))
    for place, arm in enumerate(ranked):
        main, across = arm.arm in _COLOURS, arm.gains["per_view"].estimate
        colour, whole = _COLOURS.get(arm.arm, INK), len(arm.seeds) >= LEAST_SEEDS
        axes.annotate(
            arm.name if whole else f"{arm.name} (seeds: {len(arm.seeds)})",
            (across, arm.gains["joint"].estimate), xytext=(1.02, first + _LINE * place),
            textcoords="axes fraction", fontsize=9 if main else 7.5, color=colour,
            fontweight="bold" if main else "normal", verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "relpos": (0, 0.5)},
        )  # fmt: skip


def curves_figure(record: ClaimsRecord) -> str:
    """Draw the training rewards with and without the constraint, threshold and multiplier beneath.

    Bands are one standard error over seeds; curves are means of five iterations.

    Args:
        record: Numbers and verdicts.

    Returns:
        An SVG file's text, light or dark as the reader's device.
    """
    arms = [arm for arm in record.arms if arm.arm in _COLOURS and arm.curves]
    title = "Tiny world, cameras obeyed loosely: training with and without the constraint"
    panels = (
        ("per_view", "per-view reward [dB]"),
        ("joint", "joint reward [dB]"),
        ("multiplier", "multiplier [1]"),
    )
    with style("y"):
        drawing = Figure(figsize=(7.4, 6.4), layout="constrained")
        drawing.patch.set_alpha(0.0)
        rows = drawing.subplots(len(panels), sharex=True, height_ratios=(2, 2, 1), squeeze=False)
        for axes, (name, label) in zip(rows.flat, panels, strict=True):
            axes.patch.set_alpha(0.0)
            axes.tick_params(length=0, which="both")
            axes.set_ylabel(label)
            for arm in arms:
                if name != "multiplier" or arm.arm == "tiny":
                    _band(axes, arm, name)
        for arm in arms:
            if arm.arm == "tiny" and "threshold" in arm.curves:
                rows[1, 0].plot(
                    arm.curves["threshold"][0], color=_COLOURS[arm.arm], linewidth=1.0,
                    linestyle="--", label="threshold",
                )  # fmt: skip
        rows[0, 0].set_title(title, fontsize=11, loc="left")
        if arms:
            rows[1, 0].legend(frameon=False, fontsize=9)
        rows[-1, 0].set_xlabel("iteration")
        return picture(drawing, title=f"{title}: per-view and joint reward, and the multiplier")


def _band(axes: Axes, arm: ArmRecord, name: str) -> None:
    mean, error = (_smooth(values) for values in arm.curves[name])
    steps = range(len(mean))
    low = [m - e for m, e in zip(mean, error, strict=True)]
    high = [m + e for m, e in zip(mean, error, strict=True)]
    axes.fill_between(steps, low, high, color=_COLOURS[arm.arm], alpha=0.2, linewidth=0)
    axes.plot(steps, mean, color=_COLOURS[arm.arm], label=arm.name)


def _smooth(values: Sequence[float]) -> list[float]:
    """Average every number with its neighbours, fewer at the ends."""
    half = _SMOOTH // 2
    windows = (values[max(0, place - half) : place + half + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _panel(drawing: Figure) -> Axes:
    drawing.patch.set_alpha(0.0)
    axes = drawing.subplots()
    axes.patch.set_alpha(0.0)
    axes.tick_params(length=0, which="both")
    return axes
