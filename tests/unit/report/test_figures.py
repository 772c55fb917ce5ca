"""`report.figures`: curves show the numbers they are given, in the page's own colours."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.report.figures import Curve, Panel, draw, draw_histogram, panels, smooth
from tests.unit.report.folders import KEYS, metrics

OF_GROUPS = {
    "per_view_reward/mean", "per_view_reward/under_captions", "per_view_reward/group_std",
    "joint_view_reward/mean", "reference_kl", "drift/median", "drift/p95",
}  # fmt: skip

NUMBER = st.floats(-1e6, 1e6)
ONE = Panel(title="One", note="A note.", curves=(Curve(key="a"),))


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
    two = Panel(title="Two", note="A note.", curves=(Curve(key="absent"), Curve(key="a")))
    svg = draw(two, [{"iteration": i, "a": 1.0 + i} for i in range(5)], name="f")

    assert len(vertices(svg, "--curve-1")) == 5
    assert "--curve-0" not in svg


def test_a_noisy_curve_is_drawn_thin_and_its_mean_bold():
    """A long noisy curve is two lines, a short or a quiet one is one."""
    noisy = Panel(title="One", note="A note.", curves=(Curve(key="a"),), noisy=True)
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
    marked = Panel(title="One", note="A note.", curves=(Curve(key="a"),), zero=True)
    plain, zero = draw(ONE, rows, name="f"), draw(marked, rows, name="f")

    assert len(re.findall(r">0<", zero)) == 1 + len(re.findall(r">0<", plain))


# -- the page around it ------------------------------------------------------------------


@pytest.mark.parametrize("panel", panels("dB"), ids=lambda panel: panel.title)
def test_an_element_needs_nothing_but_its_page(panel):
    """It is well-formed, sets no colour, font or size of its own, and refers to itself only."""
    also = {key: 1.0 for key in (*(curve.key for curve in panel.curves), panel.needs)}
    rows = [{**also, **row} for row in metrics(30)]
    svg = draw(panel, rows, name="f7")
    ids = re.findall(r' id="([^"]+)"', svg)

    ET.fromstring(svg)
    assert re.match(r'<svg viewBox="[\d. ]+" version="1.1">', svg)
    assert not re.search(r"#[0-9a-f]{6}|http|DejaVu|xmlns", svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("f7-") for name in ids)
    assert set(re.findall(r"#([\w.-]+)", svg)) <= set(ids)


def test_equal_numbers_give_equal_pictures():
    """A page can be compared with the one that is written again."""
    first, second = (draw(panels("dB")[1], metrics(12), name="f") for _ in range(2))

    assert first == second


def test_every_metric_of_an_iteration_is_drawn_or_told():
    """No number of the metrics file is left out of the page, seconds and memory apart."""
    drawn = {curve.key for panel in panels("") for curve in panel.curves}
    told = {key for key in KEYS if not key.startswith(("seconds/", "peak_memory"))}

    assert drawn == told | {"held_out/per_view", "held_out/joint"} | OF_GROUPS


@pytest.mark.parametrize("group", [False, True])
def test_a_panel_of_pairs_or_of_groups_alone_is_left_out_of_the_other(group):
    """The threshold, which both have, must not draw an empty joint reward."""
    row = {"iteration": 0, "threshold": 1.0, "multiplier": 0.5}
    row |= {"joint_view_reward/mean": 2.0} if group else {"joint_view_reward/zigzag": 2.0}
    titles = [panel.title for panel in panels("") if draw(panel, [row], name="f")]

    assert [title for title in titles if title.startswith("Joint")] == [
        "Joint-view reward of groups" if group else "Joint-view reward"
    ]


def test_a_histogram_shows_shares_of_what_was_counted():
    """The first and last bins are open; nothing counted draws nothing."""
    svg = draw_histogram([0.1, 1.0, 10.0], [0, 3, 1, 0], label="drift", name="h")

    ET.fromstring(svg)
    assert "drift" in svg
    assert svg == draw_histogram([0.1, 1.0, 10.0], [0, 6, 2, 0], label="drift", name="h")
    assert svg != draw_histogram([0.1, 1.0, 10.0], [0, 1, 3, 0], label="drift", name="h")
    assert draw_histogram([0.1, 1.0], [0, 0, 0], label="drift", name="h") is None


def test_units_stand_where_rewards_do():
    """A reward without a unit shows no empty brackets."""
    assert "Per-view reward [dB]" in [panel.title for panel in panels("dB")]
    assert "Per-view reward" in [panel.title for panel in panels("")]
