"""`report.figures`, `report.panels`: curves show the given numbers, in the page's own colours."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.report.figures import draw, draw_histogram, smooth
from mvczigal_ref.report.panel import Curve, Panel
from mvczigal_ref.report.panels import panels
from mvczigal_ref.training.tracking import read_metrics
from tests.unit.report.folders import KEYS, KINDS, learnt, metrics
from tests.unit.training import test_trainer as of_runs

record = of_runs.record

# The latents that pass through the network are a setting's, the drift has its median, and a
# guard that fires ends the run.
LEFT_OUT = {"network_calls", "drift/mean", "guard/fired"}

NUMBER = st.floats(-1e6, 1e6)
ONE = Panel(title="One", axis="size [m]", note="A note.", curves=(Curve(key="a"),))


def vertices(svg, variable):
    """Points of the first curve that is drawn in a colour of the page."""
    path = re.search(rf'd="([^"]*)"[^>]*style="[^"]*stroke: var\({variable}\)', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path[1])]


# -- oracle ------------------------------------------------------------------------------


@given(st.lists(NUMBER | st.just(math.nan), max_size=12), st.integers(1, 5))
def test_a_moving_mean_is_of_the_values_up_to_here(values, window):
    """Each mean is over at most a window of numbers, and over none is no number."""
    for end, mean in enumerate(smooth(values, window), 1):
        kept = [v for v in values[:end][-window:] if v == v]
        if kept:
            assert mean == pytest.approx(sum(kept) / len(kept), rel=1e-9, abs=1e-6)
        else:
            assert math.isnan(mean)


# -- laws --------------------------------------------------------------------------------


def test_a_curve_goes_through_its_numbers():
    """Equal steps in a number are equal steps on the picture, upwards."""
    rows = [{"iteration": i, "a": value} for i, value in enumerate([0.0, 1.0, 3.0, 2.0, 6.0])]
    points = vertices(draw(ONE, rows, name="f"), "--curve-0")
    (x0, y0), (x1, y1), *_ = points

    assert len(points) == 5
    for place, (x, y) in enumerate(points):
        assert x - x0 == pytest.approx(place * (x1 - x0), abs=1e-3)
        assert (y0 - y) == pytest.approx(rows[place]["a"] * (y0 - y1), abs=1e-3)
    assert y1 < y0


def test_what_was_not_measured_is_left_out():
    """A null and an absent key are no points; a panel without any is not drawn."""
    rows = [{"iteration": 0, "a": 1.0}, {"iteration": 1, "a": None}, {"iteration": 2}]
    rows += [{"iteration": 3, "a": 2.0}, {"iteration": 4, "a": 2.5}, {"iteration": 5, "a": 3.0}]

    assert len(vertices(draw(ONE, rows, name="f"), "--curve-0")) == 4
    assert draw(ONE, rows[1:3], name="f") is None
    assert draw(ONE, [], name="f") is None


def test_one_of_two_curves_is_drawn_alone():
    """A run without a threshold still shows its rewards, in their own colour."""
    two = replace(ONE, curves=(Curve(key="absent"), Curve(key="a")))
    svg = draw(two, [{"iteration": i, "a": 1.0 + i} for i in range(5)], name="f")

    assert len(vertices(svg, "--curve-1")) == 5
    assert "--curve-0" not in svg


def test_a_noisy_curve_is_drawn_thin_and_its_mean_bold():
    """A long noisy curve is two lines, a short or a quiet one is one."""
    noisy = replace(ONE, noisy=True)
    rows = [{"iteration": i, "a": float(i % 2)} for i in range(40)]

    assert draw(noisy, rows, name="f").count("var(--curve-0)") == 2
    assert draw(noisy, rows[:9], name="f").count("var(--curve-0)") == 1
    assert draw(ONE, rows, name="f").count("var(--curve-0)") == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_points_are_seen(count):
    """A run of one iteration shows a dot, not an invisible line."""
    svg = draw(ONE, [{"iteration": i, "a": 1.0 + i} for i in range(count)], name="f")

    assert svg.count("<use") == count


def test_zero_is_in_sight_where_it_matters():
    """A panel that marks 0 has a line more."""
    rows = [{"iteration": i, "a": 5.0 + i} for i in range(5)]
    marked = replace(ONE, zero=True)
    plain, zero = draw(ONE, rows, name="f"), draw(marked, rows, name="f")

    assert len(re.findall(r">0<", zero)) == 1 + len(re.findall(r">0<", plain))


# -- the page around it ------------------------------------------------------------------


@pytest.mark.parametrize("panel", panels("dB", KEYS), ids=lambda panel: panel.title)
def test_an_element_needs_nothing_but_its_page(panel):
    """It is well-formed, sets no colour, font or size of its own, and refers to itself only."""
    svg = draw(panel, metrics(30), name="f7")
    ids = re.findall(r' id="([^"]+)"', svg)
    axes = re.findall(r">([^<>]+)</text>", svg)

    ET.fromstring(svg)
    assert re.match(
        r'<svg viewBox="[\d. ]+" version="1.1" role="img" aria-labelledby="f7-title">'
        r'<title id="f7-title">[^<]+</title>', svg,
    )  # fmt: skip
    assert not re.search(r"#[0-9a-f]{6}|http|DejaVu|xmlns", svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("f7-") for name in ids)
    assert set(re.findall(r"#([\w.-]+)", svg)) <= set(ids)
    assert {"iteration", panel.axis} <= set(axes)
    assert re.search(r" \[.+\]$", panel.axis)


def test_equal_numbers_give_equal_pictures():
    """A page can be compared with the one that is written again."""
    first, second = (draw(panels("dB", KEYS)[1], metrics(12), name="f") for _ in range(2))

    assert first == second


def written(folder, record):
    """Names of the metrics that real iterations of every kind write, and the loop around them."""
    kinds = [row for kind in KINDS for row in learnt(kind)]
    guarded = of_runs.config(1, guard=of_runs.GUARD, evaluate_every=1)
    of_runs.go(guarded, folder, record)
    (run,) = read_metrics(folder / "metrics.jsonl")
    return {key for row in (*kinds, run) for key in row} - {"iteration"}


def test_every_metric_is_drawn_or_told(record, tmp_path):
    """Of pairs, groups and the forward process, of all scorers and the guard, but for a few."""
    keys = written(tmp_path, record)
    drawn = [curve.key for panel in panels("", keys) for curve in panel.curves]
    told = {key for key in keys if key.startswith("seconds/")} | {"peak_memory"}

    assert keys - {*drawn} - told == LEFT_OUT
    assert {*KEYS} <= keys | {f"seconds/{stage}" for stage in ("rollout", "reward", "advantage")}
    assert len(set(drawn)) == len([key for key in drawn if key != "threshold"]) + 1


@pytest.mark.parametrize("kind", ["mean", "zigzag"])
def test_a_panel_is_drawn_for_what_was_measured(kind):
    """The threshold, which pairs and groups have, must not draw an empty joint reward."""
    keys = {"threshold", "multiplier", f"joint_view_reward/{kind}"}
    found = [panel for panel in panels("", keys) if panel.title.startswith("Joint")]

    assert [panel.title for panel in found] == [
        "Joint-view reward of groups" if kind == "mean" else "Joint-view reward"
    ]
    assert {curve.key for curve in found[0].curves} == {"threshold", f"joint_view_reward/{kind}"}
    assert "threshold" in found[0].note


@pytest.mark.parametrize("kind", ["mean", "zigzag"])
def test_without_a_constraint_no_threshold_is_spoken_of(kind):
    """The joint reward is a reward as another is."""
    (panel,) = panels("", {f"joint_view_reward/{kind}"})

    assert "threshold" not in panel.note


def test_each_scorer_has_a_panel_of_its_own():
    """Their units differ, and so may those of what the guard sees."""
    keys = ["reward/b", "reward/a/zigzag", "reward/a/standard", "guard/hps", "guard/joint"]
    found = {panel.title: [c.key for c in panel.curves] for panel in panels("dB", keys)}

    assert found == {
        "Reward of a": ["reward/a/zigzag", "reward/a/standard"],
        "Reward of b": ["reward/b"],
        "Guard: hps": ["guard/hps"],
        "Guard: joint view": ["guard/joint"],
    }


def test_a_histogram_shows_shares_of_what_was_counted():
    """The first and last bins are open; nothing counted draws nothing."""

    def histogram(*counts):
        words = {"label": "drift [nats]", "title": "A drift", "name": "h"}
        return draw_histogram([0.1, 1.0, 10.0], counts, **words)

    svg = histogram(0, 3, 1, 0)

    ET.fromstring(svg)
    assert ">drift [nats]<" in svg
    assert ">share [%]<" in svg
    assert '<title id="h-title">A drift</title>' in svg
    assert svg == histogram(0, 6, 2, 0)
    assert svg != histogram(0, 1, 3, 0)
    assert histogram(0, 0, 0, 0) is None


def test_units_stand_where_rewards_do():
    """A reward without a unit has its scorer's, which is not guessed."""
    (named,), (unnamed,) = (panels(unit, {"slack"}) for unit in ("dB", ""))

    assert (named.axis, unnamed.axis) == ("slack [dB]", "slack [reward units]")


def ticks(svg):
    """Numbers below the axis of the iterations."""
    axis = svg.partition("matplotlib.axis_1")[2] or svg
    texts = re.findall(r"text-anchor: middle[^>]*>(\d+)</text>", axis)
    return [int(text) for text in texts]


@pytest.mark.parametrize(("count", "marks"), [(1, [1]), (3, [1, 2, 3]), (40, [1, 10, 20, 30, 40])])
def test_iterations_are_counted_from_one(count, marks):
    """The first is named 1, and stands at the left edge where there are more."""
    assert (
        ticks(draw(ONE, [{"iteration": i, "a": 1.0 + i} for i in range(count)], name="f")) == marks
    )


def test_scores_before_training_stand_at_zero_finished_iterations():
    """They are no iteration's."""
    svg = draw(ONE, [{"iteration": i, "a": 1.0 + i} for i in range(-1, 10)], name="f")

    assert ticks(svg)[0] == 0
    assert ">finished iterations<" in svg


@pytest.mark.parametrize(
    ("values", "flat"),
    [([0.0, 0], True), ([0.0, 1e-9], False), ([None, 0.0], True), ([None], False)],
)
def test_a_panel_is_flat_where_all_of_it_is_zero(values, flat):
    """The smallest number is a curve, and what was not measured is none."""
    assert ONE.is_flat([{"iteration": i, "a": value} for i, value in enumerate(values)]) is flat
